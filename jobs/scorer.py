"""The model's side of scoring: an actor that turns a shard into its files and a report.

All of a shard is done in one call: texts are tokenised and scored slice by slice, sorted by length inside a slice,
the rows go back into their order, and the files are written. What a user can mend comes back as a value, for raised it
would come out wrapped.
"""

from __future__ import annotations

import gc
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from jobs.report import kind_of_reason
from sentiment.corpora.columns import RAW_ID, RAW_LABEL, RAW_TEXT
from sentiment.corpora.lines import UNREADABLE, raw_text
from sentiment.corpora.parts import HISTOGRAM_BINS, PartWriter, Report, ShardReport
from sentiment.corpora.reading import shard_of
from sentiment.corpora.shards import Shard
from sentiment.corpora.tables import NO_TEXT
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
from sentiment.settings import Precision

# What comes of a shard: a report or an error, and when it was begun and ended, in seconds since 1970.
REPORT, ERROR, BEGAN_S, ENDED_S = "report", "error", "began_s", "ended_s"
# Calls that may die with one shard. Nodes and actors go for reasons of their own, but not so often at one place.
_MAX_ATTEMPTS = 8
_RESULT = pa.schema(
    [(REPORT, pa.large_string()), (ERROR, pa.string()), (BEGAN_S, pa.float64()), (ENDED_S, pa.float64())]
)


@dataclass(frozen=True)
class Work:
    """What every actor of a run is told.

    Attributes:
        model: Path of the bundle.
        model_id: What it must be there, on whatever node.
        precision: Number format of the forward pass.
        use_gpu: Whether actors have a GPU.
        num_threads: Threads of torch.
        slice_rows: Rows that are sorted by length together.
        strict: A file that can't be read is an error.
        writer: Of the output.
    """

    model: str
    model_id: str
    precision: Precision
    use_gpu: bool
    num_threads: int
    slice_rows: int
    strict: bool
    writer: PartWriter


class Scorer:
    """Actor of the pool: loads the bundle once, scores shards.

    Args:
        work: What to do.
        board: Where rows are reported.
    """

    def __init__(self, work: Work, board: Any) -> None:
        limit_threads(work.num_threads)
        self._work, self._board = work, board
        self._problem: str | None = None
        try:
            self._predictor = self._load()
        except SentimentError as problem:
            self._problem = str(problem)
        # So that whoever watches over the pool can end it.
        board.join.remote(ray.get_runtime_context().current_actor)

    def _load(self) -> Predictor:
        work = self._work
        predictor = Predictor.load(work.model, use_gpu=work.use_gpu, precision=work.precision)
        if predictor.model_id != work.model_id:
            raise BundleError(
                f"{work.model} is {predictor.model_id} on {socket.gethostname()}, not {work.model_id}: --model must be "
                "the same folder on all nodes, and stay as it is while it is used"
            )
        predictor.warm_up()
        # Else the collector walks over model and libraries again and again while it looks through new lists of ids,
        # which costs a fifth of the time that tokenising takes.
        gc.freeze()
        return predictor

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score the shard of a block; returns its report, or why there is none."""
        began, report, error = time.time(), None, self._problem
        try:
            if error is None:
                shard = shard_of(block)
                self._refuse_deadly(shard, ray.get(self._board.begin.remote(shard.name, began)))
                report = self._score(shard).to_json()
        except SentimentError as problem:
            error = str(problem)
        except OSError as problem:
            error = f"can't write the output ({brief(problem)}); once that is mended, the same command goes on"
        return pa.table([[report], [error], [began], [time.time()]], schema=_RESULT)

    def _refuse_deadly(self, shard: Shard, attempts: int) -> None:
        """Ray gives a shard to another actor as often as one dies with it: for ever, if the shard is why."""
        if attempts > _MAX_ATTEMPTS:
            path = shard.table[SOURCE_FILE][0].as_py() if shard.table.num_rows else f"shard {shard.name}"
            raise DataError(
                f"{path}: {_MAX_ATTEMPTS} model actors died with the same shard ({shard.table.num_rows:,} rows); if "
                "memory is what they lack, try fewer --num-actors; the same command goes on"
            )

    def _score(self, shard: Shard) -> ShardReport:
        table, writer = shard.table, self._work.writer
        texts, reasons, raws = table[RAW_TEXT].to_pylist(), table[REASON].to_pylist(), table[RAW].to_pylist()
        if self._work.strict:
            _refuse_unreadable(table, reasons)
        p_positive = self._forward(shard, texts, reasons, raws)
        usable = np.array([reason is None for reason in reasons], dtype=bool)
        tables = {
            SCORED: self._scored(table.filter(pa.array(usable)), p_positive[usable]),
            REJECTED: _rejected(table, reasons, raws, ~usable),
        }
        parts = writer.write(shard.name, tables)
        counts = _counts(table, reasons, p_positive[usable])
        counts.parts = parts
        report = ShardReport(shard.group, shard.number, shard.is_last, counts, shard.stored_bytes)
        writer.report(shard.name, report)
        self._board.shard.remote(shard.name, len(texts), int((~usable).sum()), shard.stored_bytes)
        return report

    def _forward(
        self, shard: Shard, texts: list[str | None], reasons: list[str | None], raws: list[str | None]
    ) -> npt.NDArray[np.float32]:
        """p(positive) of a shard's usable rows; rows found wanting get their reason."""
        p_positive = np.zeros(len(texts), dtype=np.float32)
        rejected = 0
        for start in range(0, len(texts), self._work.slice_rows):
            here = range(start, min(len(texts), start + self._work.slice_rows))
            ids = self._predictor.encode([texts[at] or "" for at in here])
            for at, row in zip(here, ids, strict=True):
                if reasons[at] is None and len(row) <= self._predictor.tokenizer.num_special_tokens:
                    # Nothing but what the normaliser takes out, such as control characters.
                    reasons[at], raws[at] = NO_TEXT, raw_text((texts[at] or "").encode())
            usable = [at for at in here if reasons[at] is None]
            p_positive[usable] = self._predictor.forward([ids[at - start] for at in usable])
            rejected += len(here) - len(usable)
            done = here.stop / len(texts)
            self._board.shard.remote(shard.name, here.stop, rejected, int(shard.stored_bytes * done))
        return p_positive

    def _scored(self, table: pa.Table, p_positive: npt.NDArray[np.float32]) -> pa.Table:
        """Add label, score, p_positive and model_id."""
        labels, scores = labels_and_scores(p_positive)
        added = {
            SCORE_LABEL: pa.array(labels, pa.string()),
            SCORE: pa.array(scores),
            P_POSITIVE: pa.array(p_positive),
            MODEL_ID: pa.repeat(pa.scalar(self._predictor.model_id), len(labels)),
        }
        table = table.rename_columns([TRUE_LABEL if name == RAW_LABEL else name for name in table.column_names])
        for name, column in added.items():
            table = table.append_column(name, column)
        return table


def _refuse_unreadable(table: pa.Table, reasons: list[str | None]) -> None:
    for at, reason in enumerate(reasons):
        if reason is not None and reason.startswith(UNREADABLE):
            raise DataError(f"--strict: {table[SOURCE_FILE][at].as_py()}: {reason}")


def _rejected(
    table: pa.Table, reasons: list[str | None], raws: list[str | None], where: npt.NDArray[np.bool_]
) -> pa.Table:
    columns = {name: table[name] for name in (SOURCE_FILE, SOURCE_ROW, LINE)}
    columns |= {REASON: pa.array(reasons, pa.string()), RAW: pa.array(raws, pa.string())}
    if RAW_ID in table.column_names:
        columns[ID_FIELD.name] = table[RAW_ID]
    return pa.table(columns).filter(pa.array(where))


def _counts(table: pa.Table, reasons: list[str | None], p_positive: npt.NDArray[np.float32]) -> Report:
    rejected = [reason for reason in reasons if reason is not None]
    positive = int((p_positive >= 0.5).sum())
    histogram, _ = np.histogram(p_positive, HISTOGRAM_BINS, (0.0, 1.0))
    is_rejected = pa.array([reason is not None for reason in reasons], pa.bool_())
    by_file = pa.table({"file": table[SOURCE_FILE], "rejected": pc.cast(is_rejected, pa.int64())})
    counted = by_file.group_by("file").aggregate([([], "count_all"), ("rejected", "sum")])
    return Report(
        scored=len(p_positive),
        rejected=len(rejected),
        labels=dict(zip(LABELS, (len(p_positive) - positive, positive), strict=True)),
        histogram=histogram.tolist(),
        reasons=dict(Counter(map(kind_of_reason, rejected))),
        files={row["file"]: [row["count_all"], row["rejected_sum"]] for row in counted.to_pylist()},
    )
