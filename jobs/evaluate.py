#!/usr/bin/env python
"""Measure a trained bundle on labelled texts: accuracy, loss, macro-F1 and the confusion counts.

  python jobs/evaluate.py --model runs/bilstm/bundle --input labelled.csv --output runs/evaluated
  python jobs/evaluate.py --model runs/bilstm/bundle --input reviews.parquet --label-column sentiment --output runs/eval

Reads what jobs/score.py reads, with a label column. The output folder gets evaluation.json, scored/ (true_label and
p_positive of each row, addressed by source_file and source_row) and rejected/ (rows without usable text or label). The
last line of stdout is one JSON object.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from sentiment.cli import Job
from sentiment.settings import EvaluateSettings, RaySettings


def run(settings: EvaluateSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Evaluate `settings.model` on `settings.input`."""
    from jobs.ray_evaluating import evaluate
    from jobs.scoring_run import writing_to

    started = time.monotonic()
    with writing_to(settings.output):
        result = evaluate(settings, ray_settings)
    return {**result, "duration_s": round(time.monotonic() - started, 1)}


JOB = Job("evaluate", __doc__, EvaluateSettings, run)

if __name__ == "__main__":
    sys.exit(JOB.main())
