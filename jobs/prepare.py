#!/usr/bin/env python
"""Prepare labelled texts for training: normalise, drop duplicates, split, build the vocabulary, encode.

  python jobs/prepare.py --input training.1600000.processed.noemoticon.csv --output runs/sentiment140
  python jobs/prepare.py --input aclImdb/train --test-input aclImdb/test --output runs/imdb
  python jobs/prepare.py --input 's3://bucket/*.parquet' --text-column body --output runs/reviews

Reads Sentiment140, IMDB's folders, and csv, tsv, JSON lines or Parquet (gzip or zstd too) from files, folders, globs or
URIs. The output folder gets train/, validation/, test/ and rejected/ as Parquet, tokenizer.json and manifest.json. The
last line of stdout is one JSON object; rows_in = train + validation + test + duplicates + neutral + rejected.
"""

from __future__ import annotations

import sys
from typing import Any

from sentiment.cli import Job
from sentiment.settings import PrepareSettings, RaySettings


def run(settings: PrepareSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Prepare `settings.input`."""
    from jobs.ray_preparing import prepare
    from jobs.scoring_run import writing_to

    with writing_to(settings.output, "start anew with --overwrite"):
        return prepare(settings, ray_settings)


JOB = Job("prepare", __doc__, PrepareSettings, run)

if __name__ == "__main__":
    sys.exit(JOB.main())
