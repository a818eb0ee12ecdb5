"""The model's side of scoring: an actor that turns a shard into its files and a report, and the pool of such actors.

All of a shard is done in one call: texts are tokenized and scored window by window, sorted by length inside a window,
the rows go back into their order, and the files are written. What a user can mend comes back as a value, for raised it
would come out wrapped.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from sentiment.background import Background
from sentiment.data.manifest import kind_of_reason
from sentiment.data.parquet_writer import ParquetWriter
from sentiment.data.ray_source import shard_of
from sentiment.data.read_plan import texts_of
from sentiment.data.schema_inference import RAW_ID, RAW_LABEL
from sentiment.data.sharding import Shard
from sentiment.data.validation import UNREADABLE, raw_text
from sentiment.data.workers import WorkerWatch, ask
from sentiment.devices import limit_threads
from sentiment.errors import BundleError, DataError, SentimentError, brief
from sentiment.predictor import Predictor, labels_and_scores
from sentiment.schema import (
    ID_FIELD,
    LABELS,
    LINE,
    MODEL_ID,
    P_POSITIVE,
    RAW,
    REASON,
    REJECTED,
    SCORE,
    SCORE_LABEL,
    SCORED,
    SOURCE_FILE,
    SOURCE_ROW,
    TRUE_LABEL,
)
from sentiment.scoring.run_state import HISTOGRAM_BINS, ShardReport, write_report
from sentiment.session import capacity, node_resources, require_capacity
from sentiment.settings import EvaluateSettings, RaySettings, ScoreSettings
from sentiment.text import NO_TEXT

# What comes of a shard: a report or an error, and when it was begun and ended, in seconds since 1970.
REPORT, ERROR, BEGAN_S, ENDED_S = "report", "error", "began_s", "ended_s"
# Calls that may die with one shard. Nodes and actors go for reasons of their own, but not so often with one shard.
_MAX_ATTEMPTS = 8
_ANSWER_SCHEMA = pa.schema(
    [(REPORT, pa.large_string()), (ERROR, pa.string()), (BEGAN_S, pa.float64()), (ENDED_S, pa.float64())]
)
# Shares of a CPU; together under 1, so that on a single CPU both can run.
ACTOR_CPUS, READ_CPUS = 0.75, 0.2
_CHECK_EVERY_S, _ANSWER_S = 2.0, 10.0


class Scorer:
    """Actor of the pool: loads the bundle once, scores shards.

    Args:
        settings: Model, precision, GPU and sort window; the model's path absolute.
        model_id: What it must be there, on whatever node.
        num_threads: Threads of torch.
        strict: A file that can't be read is an error.
        writer: Of the output.
        tag: The run's, in the names of its files.
        board: Where rows are reported, a `ScoringBoard`.
        watch: Of the run.
    """

    def __init__(
        self,
        settings: ScoreSettings | EvaluateSettings,
        *,
        model_id: str,
        num_threads: int,
        text_columns: Sequence[str],
        strict: bool,
        writer: ParquetWriter,
        tag: str,
        board: Any,
        watch: WorkerWatch,
    ) -> None:
        # So that whoever watches over the pool can end it.
        board.join.remote(ray.get_runtime_context().current_actor)
        # For as long as this process lives.
        self._alive = ExitStack()
        self._alive.enter_context(watch.alive())
        limit_threads(num_threads)
        self._text_columns, self._strict, self._sort_window_rows = text_columns, strict, settings.sort_window_rows
        self._writer, self._tag, self._board = writer, tag, board
        self._problem: str | None = None
        try:
            self._predictor = self._load(settings, model_id)
        except SentimentError as problem:
            self._problem = str(problem)
        # Else the collector walks over model and libraries again and again while it looks through new lists of ids,
        # which costs a fifth of the time that tokenizing takes.
        gc.freeze()

    def _load(self, settings: ScoreSettings | EvaluateSettings, model_id: str) -> Predictor:
        predictor = Predictor.load(settings.model, use_gpu=settings.use_gpu, precision=settings.precision)
        if predictor.model_id != model_id:
            raise BundleError(
                f"{settings.model} is {predictor.model_id} on {socket.gethostname()}, not {model_id}: --model must be "
                "the same folder on all nodes, and stay as it is while it is used"
            )
        predictor.warm_up()
        return predictor

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score the shard of a block; returns its report, or why there is none."""
        began, report, error = time.time(), None, self._problem
        try:
            if error is None:
                shard = shard_of(block)
                # Ray gives a shard to another actor as often as one dies with it: for ever, if the shard is why.
                if ask(self._board.begin.remote(shard.name, began), 1) > _MAX_ATTEMPTS:
                    rows = shard.table.num_rows
                    path = shard.table[SOURCE_FILE][0].as_py() if rows else f"shard {shard.name}"
                    raise DataError(
                        f"{path}: {_MAX_ATTEMPTS} model actors died with the same shard ({rows:,} rows); if memory is "
                        "what they lack, try fewer --num-actors; the same command resumes the run"
                    )
                report = self._score(shard).to_json()
        except SentimentError as problem:
            error = str(problem)
        except OSError as problem:
            error = f"can't write the output ({brief(problem)}); once that is mended, the same command resumes the run"
        return pa.table([[report], [error], [began], [time.time()]], schema=_ANSWER_SCHEMA)

    def _score(self, shard: Shard) -> ShardReport:
        """Score a shard's rows, write them and report."""
        table, predictor = shard.table, self._predictor
        texts = texts_of(table, self._text_columns).to_pylist()
        reasons, raws = table[REASON].to_pylist(), table[RAW].to_pylist()
        for index, reason in enumerate(reasons) if self._strict else ():
            if reason is not None and reason.startswith(UNREADABLE):
                raise DataError(f"--strict: {table[SOURCE_FILE][index].as_py()}: {reason}")
        p_positive, num_rejected = np.zeros(len(texts), dtype=np.float32), 0
        for start in range(0, len(texts), self._sort_window_rows):
            window = range(start, min(len(texts), start + self._sort_window_rows))
            ids = predictor.encode([texts[index] or "" for index in window])
            for index, row_ids in zip(window, ids, strict=True):
                if reasons[index] is None and not predictor.has_text(row_ids):
                    reasons[index], raws[index] = NO_TEXT, raw_text((texts[index] or "").encode())
            usable = [index for index in window if reasons[index] is None]
            p_positive[usable] = predictor.forward([ids[index - start] for index in usable])
            num_rejected += len(window) - len(usable)
            stored = int(shard.stored_bytes * (window.stop / len(texts)))
            self._board.shard.remote(shard.name, window.stop, num_rejected, stored)
        is_usable = np.array([reason is None for reason in reasons], dtype=bool)
        rejected = {name: table[name] for name in (SOURCE_FILE, SOURCE_ROW, LINE)}
        rejected |= {REASON: pa.array(reasons, pa.string()), RAW: pa.array(raws, pa.string())}
        if RAW_ID in table.column_names:
            rejected[ID_FIELD.name] = table[RAW_ID]
        scored = {(TRUE_LABEL if name == RAW_LABEL else name): table[name] for name in table.column_names}
        p_usable = p_positive[is_usable]
        labels, scores = labels_and_scores(p_usable)
        added = {SCORE_LABEL: pa.array(labels, pa.string()), SCORE: scores, P_POSITIVE: p_usable}
        added[MODEL_ID] = pa.repeat(pa.scalar(predictor.model_id), len(labels))
        kept = pa.table(scored).filter(pa.array(is_usable))
        tables = {
            SCORED: pa.table({**dict(zip(kept.column_names, kept.columns, strict=True)), **added}),
            REJECTED: pa.table(rejected).filter(pa.array(~is_usable)),
        }
        written = self._writer.write(f"{shard.name}-{self._tag}", tables)
        report = _report(shard, reasons, p_usable)
        report.parquet_files = written
        write_report(self._writer.folder, self._tag, report)
        self._board.shard.remote(shard.name, len(texts), report.rejected, shard.stored_bytes)
        return report


def _report(shard: Shard, reasons: Sequence[str | None], p_positive: npt.NDArray[np.float32]) -> ShardReport:
    """Count a shard's rows."""
    rejected = [reason for reason in reasons if reason is not None]
    positive = int((p_positive >= 0.5).sum())
    histogram, _ = np.histogram(p_positive, HISTOGRAM_BINS, (0.0, 1.0))
    is_rejected = pa.array([reason is not None for reason in reasons], pa.bool_())
    by_file = pa.table({"file": shard.table[SOURCE_FILE], "rejected": pc.cast(is_rejected, pa.int64())})
    counted = by_file.group_by("file").aggregate([([], "count_all"), ("rejected", "sum")])
    return ShardReport(
        group=shard.group,
        number=shard.number,
        is_last=shard.is_last,
        stored_bytes=shard.stored_bytes,
        scored=len(p_positive),
        rejected=len(rejected),
        labels=dict(zip(LABELS, (len(p_positive) - positive, positive), strict=True)),
        histogram=histogram.tolist(),
        reasons=dict(Counter(map(kind_of_reason, rejected))),
        files={row["file"]: [row["count_all"], row["rejected_sum"]] for row in counted.to_pylist()},
    )


@dataclass(frozen=True)
class Pool:
    """Model actors: how many fit the cluster, and whether they still do.

    Attributes:
        size: How many.
        num_threads: Threads of torch of each.
        cpus: CPUs that each reserves.
        gpus: GPUs, or the share of one, that each reserves.
    """

    size: int
    num_threads: int
    cpus: float
    gpus: float

    @classmethod
    def of(cls, settings: ScoreSettings | EvaluateSettings, at_most: int | None = None) -> Pool:
        """What fits the cluster as it is.

        Args:
            settings: What is asked for.
            at_most: Actors, if there were more nodes before.

        Raises:
            ResourceError: Nothing, or not what was asked for.
        """
        nodes = node_resources()
        cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
        gpus_each = settings.gpus_per_actor if settings.use_gpu else 0.0
        most = capacity(ACTOR_CPUS, gpus_each, READ_CPUS) if settings.use_gpu else sum(cpus)
        size = settings.num_actors or max(1, most)
        if at_most is not None:
            size = max(1, min(size, at_most, most))
        num_threads = 1
        if not settings.use_gpu:
            # Threads for the CPUs that fewer actors leave idle, as far as one node has them.
            num_threads = max(1, min(sum(cpus) // size, min(cpus, default=1)))
        _require_nodes(size, settings, num_threads)
        return cls(size, num_threads, ACTOR_CPUS * num_threads, gpus_each)

    @staticmethod
    def wait(settings: ScoreSettings | EvaluateSettings, ray_settings: RaySettings) -> None:
        """Wait for room for the actors that are asked for, or for one: the pool is made of what there is then.

        Args:
            settings: What is asked for.
            ray_settings: How long.

        Raises:
            ResourceError: There is none in the end.
        """
        _require_nodes(settings.num_actors or 1, settings, 1, ray_settings.wait_for_nodes_s)

    @property
    def fits(self) -> bool:
        """Whether it still does: nodes may have gone."""
        return capacity(self.cpus, self.gpus, spare_cpus=READ_CPUS) >= self.size

    def watch(self, board: Any) -> Background:
        """End the actors once they no longer fit, for a `with` block.

        Ray keeps calls of an actor whose node has gone until there is room for it elsewhere, which may be never. Killed
        for good, the pool's calls fail and the execution with them; the next one has a pool that fits.

        Args:
            board: A `ScoringBoard`, which knows the actors.
        """

        def check() -> None:
            # Whatever fails while nodes come and go: the next check may succeed, and without any nobody would.
            with contextlib.suppress(Exception):
                if not self.fits:
                    end_actors(board)

        return Background("watch", _CHECK_EVERY_S, check)


def _require_nodes(
    size: int, settings: ScoreSettings | EvaluateSettings, num_threads: int, wait_s: float = 0.0
) -> None:
    """Require nodes for so many actors: on CPUs each has its threads', beside a GPU what reading leaves."""
    if settings.use_gpu:
        gpus = settings.gpus_per_actor
        require_capacity(size, "model actors", cpus=ACTOR_CPUS, gpus=gpus, spare_cpus=READ_CPUS, wait_s=wait_s)
    else:
        require_capacity(size, "model actors", cpus=num_threads, wait_s=wait_s)


def end_actors(board: Any) -> None:
    """Kill a pool's actors for good; those of a failed execution live on while anything holds it, and take its room.

    Args:
        board: A `ScoringBoard`, which knows them.
    """
    actors: list[Any] = ask(board.actors.remote(), [], _ANSWER_S)
    for actor in actors:
        ray.kill(actor)
