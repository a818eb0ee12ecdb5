#!/usr/bin/env python
"""Score an archive of texts with a trained bundle, to Parquet: each row once, whatever happens on the way.

  python jobs/score.py --model runs/bilstm/bundle --input tweets.jsonl --output runs/scored
  python jobs/score.py --model runs/bilstm/bundle --input 's3://bucket/2021/*.jsonl.gz' --output s3://bucket/scored-2021

Reads csv, tsv, JSON lines or Parquet (gzip or zstd too) from files, folders, globs or URIs. The output folder gets
scored/ (the columns that came in, source_file, source_row, label, score, p_positive, model_id), rejected/ (rows that
can't be scored, each with its reason) and, last, manifest.json and _SUCCESS. A run that was killed goes on where it
was: give the same command again. The last line of stdout is one JSON object; rows_in = rows_scored + rows_rejected.
"""

from __future__ import annotations

import sys
from typing import Any

from sentiment.cli import Job
from sentiment.settings import RaySettings, ScoreSettings


def run(settings: ScoreSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Score `settings.input`."""
    from jobs.archive import score
    from jobs.scoring_run import writing_to

    with writing_to(settings.output):
        return score(settings, ray_settings)


JOB = Job("score", __doc__, ScoreSettings, run)

if __name__ == "__main__":
    sys.exit(JOB.main())
