"""The scoring job: from any archive to scored Parquet, each row once, by shards that a pool of model actors works off.

Why shards and not Ray Data's own checkpointing of jobs: that one needs an id column in the source, which archives don't
have, reads all input again to find out what is done, keeps all ids in memory, and its filters take CPUs that the pool
holds. A shard's name follows from the input (`sentiment.data.sharding`), one actor makes all of it and writes it under
that name, the report last. So a retry overwrites, a resumed run passes over what is reported, and what a resume costs
is a listing, and of files that are half done a read without tokenizing or scoring. The price: a shard is scored by one
actor, so an archive of few rows is cut into smaller shards (`default_rows`).

Each CPU runs one actor with one thread: torch on two threads of a small model waits more than it works. Actors reserve
most of each CPU and leave the rest to reading, which is light; were they given whole CPUs, reads would never start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy, ExecutionResources
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError

from sentiment.bundle import Bundle
from sentiment.data.byte_stream import UnreachableError
from sentiment.data.manifest import commonest, manifest_head, reason_lines
from sentiment.data.parquet_writer import ParquetWriter
from sentiment.data.ray_source import read_shards
from sentiment.data.read_plan import ReadPlan, plan, refuse_changed
from sentiment.data.sharding import BYTES_PER_SHARD, default_rows, group_files, replace_file
from sentiment.data.validation import UNREADABLE
from sentiment.data.workers import CRASHES_READER, ReaderDiedError, WorkerWatch, find_crashing
from sentiment.errors import ConfigError, DataError, ResourceError, brief
from sentiment.observability.progress import Progress
from sentiment.observability.prometheus import ScoringMeter
from sentiment.observability.status import status_line
from sentiment.schema import ID_FIELD, REJECTED, REJECTED_SCHEMA, SCORE_FIELDS, SCORE_LABEL, SCORED, SOURCE_FIELDS
from sentiment.scoring.actors import BEGAN_S, ENDED_S, ERROR, READ_CPUS, REPORT, Pool, Scorer, end_actors
from sentiment.scoring.progress import ScoringBoard
from sentiment.scoring.run_state import (
    REPORTS,
    SUCCESS,
    Identity,
    ScoringRun,
    ShardReport,
    check_parquet_files,
    read_reports,
)
from sentiment.session import ray_session
from sentiment.settings import EvaluateSettings, RaySettings, ScoreSettings
from sentiment.storage.filesystems import absolute
from sentiment.storage.lock import Lock
from sentiment.storage.output_directory import OutputDirectory
from sentiment.storage.uris import is_uri

_log = logging.getLogger(__name__)

# Shards in the object store for each actor: the one it works on, the next one, and two being read.
SHARDS_IN_FLIGHT = 4
# What the output depends on; the other settings say how fast it comes.
_DECISIVE = {
    *("text_column", "label_column", "id_column", "encoding", "precision", "rows_per_file", "partition_by"),
    "sort_window_rows",
}
# What the job's JSON has of the manifest.
_RESULT = ("rows_in", "rows_scored", "rows_rejected", "rows_per_s", "duration_s", "output", "model_id")
Settings = ScoreSettings | EvaluateSettings
# Makes the manifest of the counts of all rows, also those of earlier attempts; of the rows/s of this attempt, from the
# first shard begun to the last written, None if there was nothing left to do; and of the number of attempts.
Conclude = Callable[[ShardReport, float | None, int], dict[str, Any]]


def open_run(settings: Settings, reads: ReadPlan, model_id: str, **how: str) -> ScoringRun:
    """Check the output folder and say what the run is.

    Args:
        settings: Section `score` or `evaluate`.
        reads: What is read.
        model_id: Of the bundle.
        how: Further arguments of `ScoringRun`.

    Raises:
        ConfigError: The output overlaps with an input.
    """
    output = OutputDirectory(settings.output)
    output.check_inputs([settings.model, *settings.input])
    output.check_files(file.path for file in reads.files)
    return ScoringRun(output, Identity.of(reads, model_id, settings.model_dump(include=_DECISIVE)), **how)


def score_archive(
    plan: ReadPlan,
    settings: Settings,
    run: ScoringRun,
    columns: Sequence[pa.Field],
    conclude: Conclude,
    worker_timeout_s: float,
) -> dict[str, Any]:
    """Score every row of a plan into `output/scored` and `output/rejected`, or what is left of that.

    Args:
        settings: Model, actors, sort window; for `score` also the size of files, partitions and strictness.
        run: What this is; not finished.
        columns: Columns of the scored rows.
        conclude: Makes the manifest once all is there.
        worker_timeout_s: Seconds after which a frozen worker process is replaced.

    Raises:
        ResourceError: The cluster has no room for the actors.
        ConfigError: Another run works on the output.
        DataError: What was written isn't what is there, or can't be written.
    """
    pool, output = Pool.of(settings), run.output
    rows, partition_by = None, list[str]()
    if isinstance(settings, ScoreSettings):
        rows, partition_by = settings.rows_per_file, settings.partition_by
    with Lock(output) as lock:
        rows = rows or default_rows(plan, pool.size, is_remote=is_uri(output.uri))
        run.begin(rows, overwrite=settings.overwrite)
        lock.renew()  # A clean start has removed it.
        rejected = REJECTED_SCHEMA if plan.id_column is None else REJECTED_SCHEMA.append(ID_FIELD)
        schemas = {SCORED: pa.schema(columns), REJECTED: rejected}
        writer = ParquetWriter(output, schemas, partition_by)
        writer.make_folders(REPORTS)
        job = _Job(plan, settings, run, writer, lock)
        rows_per_s = job.run(pool, worker_timeout_s)
        refuse_changed(plan, settings.input)
        total = job.total()
        # A file isn't there or isn't what was reported.
        check_parquet_files(output, (SCORED, REJECTED), total.parquet_files)
        manifest = conclude(total, rows_per_s, run.attempts)
        lock.check_now()
        run.finish(manifest)
    return manifest


class _Job:
    """The shards of a run and what is known of them."""

    def __init__(self, plan: ReadPlan, settings: Settings, run: ScoringRun, writer: ParquetWriter, lock: Lock) -> None:
        self._plan, self._settings, self._run, self._writer, self._lock = plan, settings, run, writer, lock
        self._strict = isinstance(settings, ScoreSettings) and settings.strict
        self._groups = group_files(plan)
        files = {file.path: file for file in plan.files}
        for path in run.crashing:
            self._groups = replace_file(self._groups, replace(files[path], problem=CRASHES_READER))
        reports = read_reports(run.output, run.tag)
        self._reports = {(report.group, report.number): report for report in reports}
        self._forget_replaced()
        self._began, self._ended, self._rows = float("inf"), 0.0, 0
        total = self.total()
        self._meter = ScoringMeter(run.output.uri, total.scored, total.stored_bytes)
        for report in self._reports.values() if self._strict else ():  # An earlier attempt may not have been strict.
            if any(kind.startswith(UNREADABLE) for kind in report.reasons):
                path = next(path for path, (_, rejected) in report.files.items() if rejected)
                raise DataError(f"--strict: {path} (or one behind it) has what can't be read; see rejected/")

    def _forget_replaced(self) -> None:
        """Drop what was made of groups that have been replaced; `check_parquet_files` removes their files."""
        self._reports = {key: report for key, report in self._reports.items() if key[0] in self._groups}

    def total(self) -> ShardReport:
        """All counts."""
        total = ShardReport()
        for report in self._reports.values():
            total.add(report)
        return total

    def run(self, pool: Pool, worker_timeout_s: float) -> float | None:
        """Score what is left; returns the rate."""
        while groups := {number: group for number, group in self._groups.items() if not self._is_done(number)}:
            before = len(self._reports)
            paths = ", ".join(file.path for file in next(iter(groups.values())).files[:3])
            if before:
                _log.info(f"resuming: {self.total().rows:,} rows are done")
            try:
                self._execute(groups, pool, worker_timeout_s)
                if len(self._reports) == before:
                    raise DataError(f"{paths}: rows that were there before can't be read any more; start clean")
            except RayTaskError as error:
                if isinstance(error.cause, UnreachableError):
                    said = str(error.cause).splitlines()[0]  # Ray writes advice for programmers behind it.
                    raise DataError(f"{said}; once that is mended, the same command resumes the run") from None
                raise
            except ReaderDiedError as error:
                self._reject_crashing(error.paths, is_stuck=len(self._reports) == before)
            except (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError) as error:
                # Nodes went, and the rest has no room for the pool; unless that can't be the reason.
                if pool.fits and len(self._reports) == before:
                    raise ResourceError(
                        f"model actors die again and again, first at {paths} ({brief(error)}): if memory is what they "
                        "lack, try fewer --num-actors or --rows-per-file; the same command resumes the run"
                    ) from error
                pool = Pool.of(self._settings, at_most=pool.size)
                _log.warning(f"workers were lost: continuing with {pool.size} model actors")
        # Of the last shards the board may not have heard before it was read for the last time.
        total = self.total()
        self._meter.reach(total.scored, total.stored_bytes)
        return round(self._rows / (self._ended - self._began), 1) if self._rows else None

    def _reject_crashing(self, paths: Collection[str], *, is_stuck: bool) -> None:
        """Find out which files of some groups crash their readers, and make them rejected files."""
        suspects = [group for group in self._groups.values() if group.files[0].path in paths]
        files = [file for group in suspects for file in group.files]
        others = f" or one of {len(files) - 1:,} that were read with it" if len(files) > 1 else ""
        _log.warning(f"readers died at {files[0].path}{others}: reading each alone")
        crashing = find_crashing(self._plan.with_files(files), READ_CPUS)
        if is_stuck and not crashing:
            raise ResourceError(
                f"readers die again and again at {files[0].path}, though alone it can be read: if memory is what they "
                "lack, try fewer --num-actors; the same command resumes the run"
            )
        for file in crashing:
            if self._strict:
                raise DataError(f"--strict: {file.path}: {UNREADABLE}{file.problem}")
            self._run.note_crashing(file.path)
            self._groups = replace_file(self._groups, file)
            _log.warning(f"{file.path} is rejected: {file.problem}")
        self._forget_replaced()

    def _execute(self, groups: dict[int, ReadPlan], pool: Pool, worker_timeout_s: float) -> None:
        """One execution of the pipeline."""
        done: dict[int, list[int]] = {}
        for group, number in self._reports:
            done.setdefault(group, []).append(number)
        total, settings = self.total(), self._settings
        counts = {"rows": total.rows, "rejected": total.rejected, "bytes_done": total.stored_bytes}
        counts["stored_bytes"] = sum(group.size_bytes for group in self._groups.values())
        label = f"loading the model in {pool.size} actor(s)"
        with Progress(label, "rows", ScoringBoard, meter=self._meter.update, **counts) as progress:
            workers = WorkerWatch(progress.actor, worker_timeout_s)
            dataset = read_shards(groups, self._run.rows_per_shard, done, num_cpus=READ_CPUS, around=workers.reading)
            # Else reading runs ahead and fills the object store: memory would grow with the archive.
            dataset.context.execution_options.resource_limits = ExecutionResources(
                object_store_memory=SHARDS_IN_FLIGHT * pool.size * BYTES_PER_SHARD
            )
            scored = dataset.map_batches(
                Scorer,
                fn_constructor_args=(settings.model_copy(update={"model": absolute(settings.model)}),),
                fn_constructor_kwargs={
                    "model_id": self._run.identity.model,
                    "num_threads": pool.num_threads,
                    "text_columns": self._plan.text_columns,
                    "strict": self._strict,
                    "writer": self._writer,
                    "tag": self._run.tag,
                    "board": progress.actor,
                    "watch": workers,
                },
                batch_format="pyarrow",
                batch_size=None,
                compute=ActorPoolStrategy(
                    size=pool.size,
                    # On a GPU one call tokenizes and writes while the other computes.
                    max_concurrent_calls_per_actor=2 if settings.use_gpu else None,
                    enable_true_multi_threading=settings.use_gpu or None,
                ),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
            )
            try:
                with pool.watch(progress.actor), workers.killing_frozen(), workers.naming_suspects():
                    for row in scored.iter_rows():
                        self._lock.check()
                        if row[ERROR] is not None:
                            raise DataError(row[ERROR])
                        report = ShardReport.from_json(row[REPORT])
                        self._reports[report.group, report.number] = report
                        self._rows += report.rows
                        self._meter.reject(report.reasons)
                        self._began, self._ended = min(self._began, row[BEGAN_S]), max(self._ended, row[ENDED_S])
            except Exception:
                end_actors(progress.actor)
                raise

    def _is_done(self, group: int) -> bool:
        """Whether its last shard is known and all before it."""
        number = 0
        while (report := self._reports.get((group, number))) is not None:
            if report.is_last:
                return True
            number += 1
        return False


def score(settings: ScoreSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Score an archive, or what is left of it.

    Returns:
        The job's JSON: rows in, scored, rejected, the rate and where things are.

    Raises:
        SentimentError: Bundle, inputs or output are not as they must be.
    """
    started = time.monotonic()
    with status_line("checking the model and the input"):
        bundle = Bundle.open(settings.model)
        reads = plan(
            settings.input,
            text_column=settings.text_column,
            id_column=settings.id_column,
            encoding=settings.encoding,
            reserved=[field.name for field in SCORE_FIELDS],
        )
    columns = [*reads.columns, *SOURCE_FIELDS, *SCORE_FIELDS]
    check(settings, reads, columns)
    run = open_run(settings, reads, bundle.model_id)
    output = run.output
    manifest = run.finished(overwrite=settings.overwrite)
    if manifest is not None:
        unreadable = [kind for kind in manifest["rejected_by_reason"] if kind.startswith(UNREADABLE)]
        if settings.strict and unreadable:
            raise DataError(f"--strict: {output.uri} is complete, but not all could be read ({unreadable[0]})")
        _log.info(f"{output.uri} is complete: nothing to do ({SUCCESS} is there)")
        return {name: manifest[name] for name in _RESULT}

    def conclude(total: ShardReport, rows_per_s: float | None, attempts: int) -> dict[str, Any]:
        if total.rows and not total.scored:
            raise DataError(f"no row could be scored: {commonest(total.reasons)}; {output.uri}/{REJECTED} has them all")
        inputs = []
        for file in reads.files:
            rows, rejected = total.files.get(file.path, (0, 0))
            inputs.append({"path": file.path, "bytes": file.size_bytes, "rows": rows, "rejected": rejected})
        return {
            "rows_in": total.rows,
            "rows_scored": total.scored,
            "rows_rejected": total.rejected,
            "rows_per_s": rows_per_s,
            "duration_s": round(time.monotonic() - started, 1),
            "output": output.uri,
            "model_id": bundle.model_id,
            "attempts": attempts,
            "labels": {
                label: {"rows": rows, "share": round(rows / total.scored, 6) if total.scored else None}
                for label, rows in total.labels.items()
            },
            "p_positive_histogram": total.histogram,
            "rejected_by_reason": total.reasons,
            "files": len(total.parquet_files),
            **manifest_head(reads, settings),
            "inputs": inputs,
        }

    with ray_session(ray_settings):
        Pool.wait(settings, ray_settings)
        manifest = score_archive(reads, settings, run, columns, conclude, ray_settings.worker_timeout_s)
    rate = "" if manifest["rows_per_s"] is None else f", {manifest['rows_per_s']:,.0f}/s"
    if manifest["rows_rejected"]:
        _log.info(reason_lines(manifest["rejected_by_reason"]))
    _log.info(f"{manifest['rows_scored']:,} rows scored, {manifest['rows_rejected']:,} rejected{rate}")
    _log.info(f"{output.uri}/{SCORED}\n{output.uri}/{REJECTED}")
    return {name: manifest[name] for name in _RESULT}


def check(settings: ScoreSettings, reads: ReadPlan, columns: Sequence[pa.Field]) -> None:
    """Refuse what can't be done before anything is started.

    Args:
        settings: What is asked for.
        reads: What is read.
        columns: Of the scored rows.

    Raises:
        ConfigError: A column isn't there.
        DataError: `--strict`, and a file can't even be opened.
    """
    names = [field.name for field in columns if field.name == SCORE_LABEL or not pa.types.is_nested(field.type)]
    for column in settings.partition_by:
        if column not in names:
            raise ConfigError(f"--partition-by {column!r}: no such column; there are {', '.join(names)}")
    for file in reads.files if settings.strict else ():
        if file.problem is not None:
            raise DataError(f"--strict: {file.path}: {file.problem}")
