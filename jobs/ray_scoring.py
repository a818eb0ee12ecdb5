"""Ray Data from any archive to scored Parquet, each row once: read shards → score and write each in a pool of actors.

Why shards and not Ray Data's own checkpointing of jobs: that one needs an id column in the source, which archives don't
have, reads all input again to find out what is done, keeps all ids in memory, and its filters take CPUs that the pool
holds. A shard's name follows from the input (`sentiment.corpora.shards`), one actor makes all of it and writes it under
that name, the report last. So a retry overwrites, a resumed run passes over what is reported, and what a resume costs
is a listing, and of files that are half done a read without tokenising or scoring. The price: a shard is scored by one
actor, so an archive of few rows is cut into smaller shards (`default_rows`).

Each CPU runs one actor with one thread: torch on two threads of a small model waits more than it works. Actors reserve
most of each CPU and leave the rest to reading, which is light; were they given whole CPUs, reads would never start.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy, ExecutionResources
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError

from jobs.lock import Lock
from jobs.metrics import ScoringMeter
from jobs.progress import Progress
from jobs.scorer import BEGAN_S, ENDED_S, ERROR, REPORT, Scorer, Work
from jobs.scoring_pool import READ_CPUS, Pool, watch
from jobs.scoring_progress import ScoringBoard
from jobs.scoring_run import ScoringRun
from sentiment.corpora.folder import Folder
from sentiment.corpora.lines import UNREADABLE
from sentiment.corpora.parts import PartWriter, Report, ShardReport, check_parts, read_reports
from sentiment.corpora.planning import ReadPlan, refuse_changed
from sentiment.corpora.reading import read_shards
from sentiment.corpora.shards import BYTES_PER_SHARD, Group, default_rows, group_shards
from sentiment.corpora.streams import UnreachableError
from sentiment.errors import DataError, ResourceError, brief
from sentiment.schema import ID_FIELD, REJECTED, REJECTED_SCHEMA, SCORED
from sentiment.settings import EvaluateSettings, ScoreSettings
from sentiment.stores import absolute
from sentiment.uris import is_uri

# Shards on their way for each actor: the one it works on, the next one, and two being read.
_SHARDS_UNDER_WAY = 4


@dataclass(frozen=True)
class Totals:
    """What a scoring run did.

    Attributes:
        report: Counts of all rows, also those of earlier attempts.
        rows_per_s: Rows of this attempt over the time from the first shard begun to the last written; loading the model
            isn't counted. None if there was nothing left to do.
        attempts: How often the run was started.
    """

    report: Report
    rows_per_s: float | None
    attempts: int


def score_archive(
    plan: ReadPlan,
    settings: ScoreSettings | EvaluateSettings,
    run: ScoringRun,
    columns: Sequence[pa.Field],
    conclude: Callable[[Totals], dict[str, Any]],
    *,
    rows_per_file: int | None = None,
    partition_by: Sequence[str] = (),
    strict: bool = False,
) -> dict[str, Any]:
    """Score every row of a plan into `output/scored` and `output/rejected`, or what is left of that.

    Args:
        plan: What to read.
        settings: Model, actors, batch size.
        run: What this is; not finished.
        columns: Columns of the scored rows.
        conclude: Makes the manifest once all is there.
        rows_per_file: Rows of a Parquet file, about; None for what suits the input and the actors.
        partition_by: Columns that become folders.
        strict: Stop at the first file that can't be read.

    Returns:
        The manifest.

    Raises:
        ResourceError: The cluster has no room for the actors.
        ConfigError: Somebody else is at it.
        DataError: What was written isn't what is there, or can't be written.
    """
    pool, output = Pool.of(settings), run.output
    with Lock(output) as lock:
        rows = rows_per_file or default_rows(plan, pool.size, is_remote=is_uri(output.uri))
        begun = run.begin(rows, overwrite=settings.overwrite)
        lock.renew()  # A clean start has removed it.
        rejected = REJECTED_SCHEMA if plan.id_column is None else REJECTED_SCHEMA.append(ID_FIELD)
        schemas = {SCORED: pa.schema(columns), REJECTED: rejected}
        writer = PartWriter(output, begun.tag, schemas, partition_by)
        writer.make_folders()
        work = Work(
            model=absolute(settings.model),
            model_id=run.identity.model,
            precision=settings.precision,
            use_gpu=settings.use_gpu,
            num_threads=pool.num_threads,
            slice_rows=settings.batch_rows,
            strict=strict,
            writer=writer,
        )
        job = _Job(plan, group_shards(plan, begun.rows_per_shard), work, read_reports(output, begun.tag), output, lock)
        rows_per_s = job.run(pool, settings)
        refuse_changed(plan, settings.input)
        manifest = conclude(Totals(job.total(), rows_per_s, begun.attempts))
        lock.check_now()
        run.finish(manifest)
    return manifest


class _Job:
    """The shards of a run and what is known of them."""

    def __init__(
        self,
        plan: ReadPlan,
        groups: Sequence[Group],
        work: Work,
        reports: Sequence[ShardReport],
        output: Folder,
        lock: Lock,
    ) -> None:
        self._plan, self._groups, self._work, self._output, self._lock = plan, groups, work, output, lock
        self._reports = {(report.group, report.number): report for report in reports}
        self._began, self._ended, self._rows = float("inf"), 0.0, 0
        self._meter = ScoringMeter(output.uri, self._sum().scored, self._stored_bytes())
        if work.strict:
            self._refuse_unreadable()

    def _refuse_unreadable(self) -> None:
        """An earlier attempt may not have been strict."""
        for report in self._reports.values():
            if any(kind.startswith(UNREADABLE) for kind in report.report.reasons):
                path = next(path for path, (_, rejected) in report.report.files.items() if rejected)
                raise DataError(f"--strict: {path} (or one behind it) has what can't be read; see rejected/")

    def run(self, pool: Pool, settings: ScoreSettings | EvaluateSettings) -> float | None:
        """Score what is left; returns the rate."""
        while groups := [group for group in self._groups if not self._is_done(group)]:
            before = len(self._reports)
            if before:
                _say(f"going on: {self._sum().rows:,} rows are done")
            try:
                self._pass(groups, pool)
                if len(self._reports) == before:
                    paths = ", ".join(file.path for file in groups[0].files[:3])
                    raise DataError(f"{paths}: rows that were there before can't be read any more; start clean")
            except RayTaskError as error:
                if isinstance(error.cause, UnreachableError):
                    said = str(error.cause).splitlines()[0]  # Ray writes advice for programmers behind it.
                    raise DataError(f"{said}; once that is mended, the same command goes on") from None
                raise
            except (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError) as error:
                # Nodes went, and the rest has no room for the pool; unless that can't be the reason.
                if pool.fits and len(self._reports) == before:
                    paths = ", ".join(file.path for file in groups[0].files[:3])
                    raise ResourceError(
                        f"model actors die again and again, first at {paths} ({brief(error)}): if memory is what they "
                        "lack, try fewer --num-actors or --rows-per-file; the same command goes on"
                    ) from error
                pool = Pool.of(settings, at_most=pool.size)
                _say(f"workers were lost: going on with {pool.size} model actors")
        # Of the last shards the board may not have heard before it was read for the last time.
        self._meter.reach(self._sum().scored, self._stored_bytes())
        elapsed_s = self._ended - self._began
        return round(self._rows / elapsed_s, 1) if self._rows else None

    def _pass(self, groups: Sequence[Group], pool: Pool) -> None:
        """One execution of the pipeline."""
        done: dict[int, list[int]] = {}
        for group, number in self._reports:
            done.setdefault(group, []).append(number)
        total = self._sum()
        stored = sum(group.size_bytes for group in self._groups)
        told = {"stored_bytes": stored, "rows": total.rows, "rejected": total.rejected}
        told |= {"bytes_done": self._stored_bytes()}
        with Progress("score", "rows", ScoringBoard, meter=self._meter.tell, **told) as progress:
            dataset = read_shards(self._plan, groups, done, num_cpus=READ_CPUS)
            # Else reading runs ahead and fills the object store: memory would grow with the archive.
            dataset.context.execution_options.resource_limits = ExecutionResources(
                object_store_memory=_SHARDS_UNDER_WAY * pool.size * BYTES_PER_SHARD
            )
            scored = dataset.map_batches(
                Scorer,
                fn_constructor_kwargs={"work": self._work, "board": progress.board},
                batch_format="pyarrow",
                batch_size=None,
                compute=ActorPoolStrategy(
                    size=pool.size,
                    # On a GPU one call tokenises and writes while the other computes.
                    max_concurrent_calls_per_actor=2 if self._work.use_gpu else None,
                    enable_true_multi_threading=self._work.use_gpu or None,
                ),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
            )
            with watch(pool, progress.board):
                for row in scored.iter_rows():
                    self._lock.check()
                    if row[ERROR] is not None:
                        raise DataError(row[ERROR])
                    self._keep(ShardReport.from_json(row[REPORT]), row[BEGAN_S], row[ENDED_S])

    def _keep(self, report: ShardReport, began: float, ended: float) -> None:
        self._reports[report.group, report.number] = report
        self._rows += report.report.rows
        self._meter.reject(report.report.reasons)
        self._began, self._ended = min(self._began, began), max(self._ended, ended)

    def _is_done(self, group: Group) -> bool:
        """Whether its last shard is known and there are all before it."""
        number = 0
        while (report := self._reports.get((group.number, number))) is not None:
            if report.is_last:
                return True
            number += 1
        return False

    def _sum(self) -> Report:
        total = Report()
        for report in self._reports.values():
            total.add(report.report)
        return total

    def _stored_bytes(self) -> int:
        """Of the input that is done."""
        return sum(report.stored_bytes for report in self._reports.values())

    def total(self) -> Report:
        """All counts, once they were held against what is there.

        Raises:
            DataError: A file isn't there or isn't what was reported.
        """
        total = self._sum()
        check_parts(self._output, (SCORED, REJECTED), total.parts)
        return total


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
