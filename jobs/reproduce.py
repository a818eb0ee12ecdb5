#!/usr/bin/env python
"""Train the named recipes and compare with their sources; `python jobs/reproduce.py --help` says how."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # This checkout's code, installed or not.

from benchmarks.reproduction import REPRODUCE as JOB

if __name__ == "__main__":
    sys.exit(JOB.main())
