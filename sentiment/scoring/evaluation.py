"""Evaluation: the scoring pipeline over labeled rows, then the figures of what it wrote.

Figures come from `scored/`, so that whoever reads it later (plots, error analysis) works with the same rows.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs as pafs
import torch
from torch.nn.functional import binary_cross_entropy

from sentiment.bundle import Bundle
from sentiment.data.manifest import commonest, manifest_head, reason_lines
from sentiment.data.read_plan import plan
from sentiment.errors import DataError
from sentiment.labels import refuse_labels, refuse_one_class, unknown_labels
from sentiment.metrics import Counts, Figures
from sentiment.observability.status import status_line
from sentiment.schema import (
    LABELS,
    MODEL_ID,
    P_POSITIVE,
    REASON,
    REJECTED,
    SCORE_FIELDS,
    SCORED,
    SOURCE_FIELDS,
    TRUE_LABEL,
)
from sentiment.scoring.actors import Pool
from sentiment.scoring.pipeline import open_run, score_archive
from sentiment.scoring.run_state import ShardReport
from sentiment.session import ray_session
from sentiment.settings import EvaluateSettings, RaySettings
from sentiment.storage.output_directory import OutputDirectory

_log = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
# What the job's JSON has of evaluation.json.
_RESULT = (*(figure.name for figure in fields(Figures)), "rows_rejected", "rows_per_s", "model_id", "output")


def evaluate(settings: EvaluateSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Score labeled rows and measure.

    Returns:
        The job's JSON: rows, accuracy, loss, macro_f1, confusion, rejected rows and where things are.

    Raises:
        SentimentError: Bundle, inputs or output are not as they must be.
    """
    with status_line("checking the model and the input"):
        bundle = Bundle.open(settings.model)
        reads = plan(
            settings.input,
            text_column=settings.text_column,
            label_column=settings.label_column,
            need_label=True,
            encoding=settings.encoding,
            # The scorer adds these to what came in.
            reserved=[*(field.name for field in SCORE_FIELDS), TRUE_LABEL],
        )
    run = open_run(settings, reads, bundle.model_id, manifest=EVALUATION)
    output = run.output
    finished = run.finished(overwrite=settings.overwrite)
    if finished is not None:
        _log.info(f"{output.uri} is complete: nothing to do")
        # An older version may have written it, without a figure that was added since.
        return {name: finished.get(name) for name in _RESULT}
    columns = [
        *SOURCE_FIELDS,
        pa.field(TRUE_LABEL, pa.int8()),
        pa.field(P_POSITIVE, pa.float32()),
        pa.field(MODEL_ID, pa.string()),
    ]

    def conclude(total: ShardReport, rows_per_s: float | None, attempts: int) -> dict[str, Any]:
        reasons = _rejected_reasons(output)
        refuse_labels(reasons, total.rows, total.scored)
        if not total.scored:
            why = f": {commonest(total.reasons)}" if total.rows else " in the input"
            raise DataError(f"no row could be evaluated{why}; {output.uri}/{REJECTED} has them all")
        if unknown := unknown_labels(reasons):
            _log.info(f"rejected for {unknown}")
        figures = measure(output)
        refuse_one_class([sum(row) for row in figures.confusion], "evaluated rows")
        if total.rejected:
            _log.info(reason_lines(total.reasons))
        _log.info(table(figures))
        return {
            **asdict(figures),
            "rows_rejected": total.rejected,
            "rows_per_s": rows_per_s,
            "model_id": bundle.model_id,
            "output": output.uri,
            **manifest_head(reads, settings),
        }

    with ray_session(ray_settings):
        Pool.wait(settings, ray_settings)
        evaluation = score_archive(reads, settings, run, columns, conclude, ray_settings.worker_timeout_s)
    return {name: evaluation[name] for name in _RESULT}


def _rejected_reasons(output: OutputDirectory) -> Counter[str]:
    """Rejected rows by reason."""
    reasons: Counter[str] = Counter()
    # A store has no empty folders.
    found = output.fs.get_file_info(pafs.FileSelector(output.inner(REJECTED), recursive=True, allow_not_found=True))
    if files := [info.path for info in found if info.extension == "parquet"]:
        dataset = pyarrow.dataset.dataset(files, filesystem=output.fs, format="parquet")
        for batch in dataset.to_batches(columns=[REASON]):
            reasons.update(batch[REASON].to_pylist())
    return reasons


def measure(output: OutputDirectory) -> Figures:
    """Work the figures out from `scored/`.

    The loss is clipped where float32 rounds a probability to 0 or 1 (at 100, as torch does).
    """
    counts = Counts()
    dataset = pyarrow.dataset.dataset(output.inner(SCORED), filesystem=output.fs, format="parquet")
    for batch in dataset.to_batches(columns=[TRUE_LABEL, P_POSITIVE]):
        labels_B = torch.tensor(batch[TRUE_LABEL].to_numpy()).float()
        p_positive_B = torch.tensor(batch[P_POSITIVE].to_numpy())
        losses_B = binary_cross_entropy(p_positive_B, labels_B, reduction="none")
        counts.add(torch.where(p_positive_B >= 0.5, 1.0, -1.0), labels_B, losses_B)
    return counts.figures()


def table(figures: Figures) -> str:
    """The figures as a person reads them."""
    (tn, fp), (fn, tp) = figures.confusion
    return (
        f"rows {figures.rows:,}   accuracy {figures.accuracy:.2%}   loss {figures.loss:.4f}   "
        f"macro-F1 {figures.macro_f1:.2%}\n"
        f"{'true / predicted':>18} {LABELS[0]:>10} {LABELS[1]:>10}\n"
        f"{LABELS[0]:>18} {tn:>10,} {fp:>10,}\n"
        f"{LABELS[1]:>18} {fn:>10,} {tp:>10,}"
    )
