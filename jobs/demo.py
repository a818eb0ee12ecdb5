#!/usr/bin/env python
"""Prepare, train and score from end to end: the command `sentiment demo` as a file, for Ray's job submission."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # This checkout's code, installed or not.

from sentiment.commands import DEMO as JOB

if __name__ == "__main__":
    sys.exit(JOB.main())
