#!/usr/bin/env python
"""Prepare labeled texts for training: the command `sentiment prepare` as a file, for Ray's job submission."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # This checkout's code, installed or not.

from sentiment.commands import PREPARE as JOB

if __name__ == "__main__":
    sys.exit(JOB.main())
