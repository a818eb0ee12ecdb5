"""The scoring job: what is to be scored, whether it is done already, and the manifest of it."""

from __future__ import annotations

import sys
import time
from typing import Any

import pyarrow as pa

from jobs.ray_scoring import Totals, score_archive
from jobs.report import manifest_head
from jobs.scoring_pool import Pool
from jobs.scoring_run import SUCCESS, Identity, ScoringRun
from sentiment.bundle import Bundle
from sentiment.corpora.folder import Folder
from sentiment.corpora.lines import UNREADABLE
from sentiment.corpora.planning import ReadPlan, plan
from sentiment.errors import ConfigError, DataError
from sentiment.schema import REJECTED, SCORE_FIELDS, SCORE_LABEL, SCORED, SOURCE_FIELDS
from sentiment.session import ray_session
from sentiment.settings import RaySettings, ScoreSettings

# What the output depends on; the others say how fast it comes.
_DECISIVE = {"text_column", "id_column", "encoding", "precision", "rows_per_file", "partition_by", "batch_rows"}
# What the job's JSON has of the manifest.
_RESULT = ("rows_in", "rows_scored", "rows_rejected", "rows_per_s", "duration_s", "output", "model_id")


def score(settings: ScoreSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Score an archive, or what is left of it.

    Args:
        settings: Section `score`.
        ray_settings: Section `ray`.

    Returns:
        The job's JSON: rows in, scored, rejected, the rate and where things are.

    Raises:
        SentimentError: Bundle, inputs or output are not as they must be.
    """
    started = time.monotonic()
    bundle = Bundle.open(settings.model)
    reads = plan(
        settings.input,
        text_column=settings.text_column,
        id_column=settings.id_column,
        encoding=settings.encoding,
        reserved=[field.name for field in SCORE_FIELDS],
    )
    columns = [*reads.columns, *SOURCE_FIELDS, *SCORE_FIELDS]
    _check(settings, reads, columns)
    output = Folder(settings.output)
    output.check_inputs([settings.model, *settings.input])
    output.check_files(file.path for file in reads.files)
    run = ScoringRun(output, Identity.of(reads, bundle.model_id, settings.model_dump(include=_DECISIVE)))
    manifest = run.finished(overwrite=settings.overwrite)
    if manifest is not None:
        unreadable = [kind for kind in manifest["rejected_by_reason"] if kind.startswith(UNREADABLE)]
        if settings.strict and unreadable:
            raise DataError(f"--strict: {output.uri} is complete, but not all could be read ({unreadable[0]})")
        print(f"{output.uri} is complete: nothing to do ({SUCCESS} is there)", file=sys.stderr)
        return {name: manifest[name] for name in _RESULT}

    def conclude(totals: Totals) -> dict[str, Any]:
        return {
            "rows_in": totals.report.rows,
            "rows_scored": totals.report.scored,
            "rows_rejected": totals.report.rejected,
            "rows_per_s": totals.rows_per_s,
            "duration_s": round(time.monotonic() - started, 1),
            "output": output.uri,
            "model_id": bundle.model_id,
            **_shares(totals),
            **manifest_head(reads, settings),
            "inputs": _inputs(reads, totals),
        }

    with ray_session(ray_settings):
        Pool.wait(settings, ray_settings)
        manifest = score_archive(
            reads,
            settings,
            run,
            columns,
            conclude,
            rows_per_file=settings.rows_per_file,
            partition_by=settings.partition_by,
            strict=settings.strict,
        )
    rate = "" if manifest["rows_per_s"] is None else f", {manifest['rows_per_s']:,.0f}/s"
    counts = f"{manifest['rows_scored']:,} rows scored, {manifest['rows_rejected']:,} rejected{rate}"
    print(f"{counts}\n{output.uri}/{SCORED}\n{output.uri}/{REJECTED}", file=sys.stderr)
    return {name: manifest[name] for name in _RESULT}


def _check(settings: ScoreSettings, reads: ReadPlan, columns: list[pa.Field]) -> None:
    """Refuse what can't be done before anything is started.

    Raises:
        ConfigError: A column isn't there.
        DataError: `--strict`, and a file can't even be opened.
    """
    names = [field.name for field in columns if field.name == SCORE_LABEL or not pa.types.is_nested(field.type)]
    for column in settings.partition_by:
        if column not in names:
            raise ConfigError(f"--partition-by {column!r}: no such column; there are {', '.join(names)}")
    if settings.strict:
        for file in reads.files:
            if file.problem is not None:
                raise DataError(f"--strict: {file.path}: {file.problem}")


def _shares(totals: Totals) -> dict[str, Any]:
    report = totals.report
    return {
        "attempts": totals.attempts,
        "labels": {
            label: {"rows": rows, "share": round(rows / report.scored, 6) if report.scored else None}
            for label, rows in report.labels.items()
        },
        "p_positive_histogram": report.histogram,
        "rejected_by_reason": report.reasons,
        "files": len(report.parts),
    }


def _inputs(reads: ReadPlan, totals: Totals) -> list[dict[str, Any]]:
    """Each input file with its rows."""
    lines = []
    for file in reads.files:
        rows, rejected = totals.report.files.get(file.path, (0, 0))
        lines.append({"path": file.path, "bytes": file.size_bytes, "rows": rows, "rejected": rejected})
    return lines
