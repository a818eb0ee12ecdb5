#!/usr/bin/env python
"""Score an archive of texts to Parquet: the command `sentiment score` as a file, for Ray's job submission."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # This checkout's code, installed or not.

from sentiment.commands import SCORE as JOB

if __name__ == "__main__":
    sys.exit(JOB.main())
