#!/usr/bin/env python
"""Train a BERT-GRU classifier on Ray Train: the command `sentiment train bert` as a file, for Ray's job submission."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # This checkout's code, installed or not.

from sentiment.commands import TRAIN_BERT as JOB

if __name__ == "__main__":
    sys.exit(JOB.main())
