#!/usr/bin/env python
"""Run a job on a Ray cluster as if it ran here: the command `sentiment submit` as a file, for a Python without it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # This checkout's code, installed or not.

from sentiment.submission import main

if __name__ == "__main__":
    sys.exit(main(program="python jobs/submit.py"))
