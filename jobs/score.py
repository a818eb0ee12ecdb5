#!/usr/bin/env python
"""Score an archive of texts with a trained bundle, to Parquet.

  python jobs/score.py --model runs/bilstm/bundle --input tweets.jsonl --output runs/scored
  python jobs/score.py --model runs/bilstm/bundle --input 's3://bucket/2021/*.jsonl.gz' --output s3://bucket/scored-2021

Reads csv, tsv, JSON lines or Parquet (gzip or zstd too) from files, folders, globs or URIs. The output folder gets
scored/ (the columns that came in, source_file, source_row, label, score, p_positive, model_id), rejected/ (rows that
can't be scored, each with its reason) and, last, manifest.json. The last line of stdout is one JSON object;
rows_in = rows_scored + rows_rejected.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from jobs.cli import Job
from sentiment.settings import RaySettings, ScoreSettings


def run(settings: ScoreSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Score `settings.input`."""
    from jobs.ray_scoring import score_archive
    from jobs.report import manifest_head
    from jobs.session import ray_session
    from sentiment.bundle import Bundle
    from sentiment.corpora.folder import Folder
    from sentiment.corpora.planning import plan
    from sentiment.schema import MANIFEST, REJECTED, SCORE_FIELDS, SCORED, SOURCE_FIELDS

    started = time.monotonic()
    bundle = Bundle.open(settings.model)
    reads = plan(
        settings.input,
        text_column=settings.text_column,
        encoding=settings.encoding,
        reserved=[field.name for field in SCORE_FIELDS],
    )
    output = Folder(settings.output)
    output.check(overwrite=settings.overwrite, inputs=[settings.model, *settings.input])
    columns = [*reads.columns, *SOURCE_FIELDS, *SCORE_FIELDS]
    with ray_session(ray_settings):
        totals = score_archive(reads, settings, output, columns, settings.rows_per_file)
    result = {
        "rows_in": totals.rows_in,
        "rows_scored": totals.rows[SCORED],
        "rows_rejected": totals.rows[REJECTED],
        "rows_per_s": totals.rows_per_s,
        "duration_s": round(time.monotonic() - started, 1),
        "output": output.uri,
        "model_id": bundle.model_id,
    }
    output.write_json(MANIFEST, {**result, **manifest_head(reads, settings)})
    counts = f"{result['rows_scored']:,} rows scored, {result['rows_rejected']:,} rejected, {totals.rows_per_s:,.0f}/s"
    print(f"{counts}\n{output.uri}/{SCORED}\n{output.uri}/{REJECTED}", file=sys.stderr)
    return result


JOB = Job("score", __doc__, ScoreSettings, run)

if __name__ == "__main__":
    sys.exit(JOB.main())
