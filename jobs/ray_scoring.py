"""Ray Data from any archive to scored Parquet: read → score in a pool of model actors → write.

Each CPU runs one actor with one thread: torch on two threads of a small model waits more than it works. The actors hold
most of each CPU and leave the rest to reading and writing, which are light; were actors given whole CPUs, reads would
never start. Rows that can't be scored travel along with their reason and are written to `rejected/` in the same pass,
so rows in = rows scored + rows rejected, which is checked against the row numbers that the readers gave.

Several shards of one archive may be scored by several runs into folders of their own; within a run Ray retries failed
tasks, and a task that runs again replaces its own file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import ray
from ray.data import ActorPoolStrategy

from jobs.progress import Progress
from jobs.session import node_resources, require
from sentiment.corpora.columns import RAW_LABEL, RAW_TEXT
from sentiment.corpora.folder import Folder
from sentiment.corpora.lines import raw_text
from sentiment.corpora.planning import ReadPlan
from sentiment.corpora.reading import read
from sentiment.corpora.sink import FolderSink
from sentiment.corpora.tables import NO_TEXT
from sentiment.devices import limit_threads
from sentiment.predictor import Predictor, labels_and_scores
from sentiment.schema import (
    DESTINATION,
    MODEL_ID,
    P_POSITIVE,
    RAW,
    REASON,
    REJECTED,
    REJECTED_SCHEMA,
    SCORE,
    SCORE_LABEL,
    SCORED,
    SOURCE_FILE,
    SOURCE_ROW,
    TRUE_LABEL,
)
from sentiment.settings import EvaluateSettings, ScoreSettings

# Shares of a CPU; together 1, so that on a single CPU each of the three can run.
_ACTOR_CPUS, _READ_CPUS, _WRITE_CPUS = 0.75, 0.2, 0.05


@dataclass(frozen=True)
class Totals:
    """What a scoring run did.

    Attributes:
        rows_in: Rows that the readers counted.
        rows: Rows written to each subfolder.
        rows_per_s: Rows over the time from the first batch to the last write; loading the model isn't counted.
    """

    rows_in: int
    rows: dict[str, int]
    rows_per_s: float


class Scorer:
    """Actor of the pool: loads the bundle once, scores blocks.

    Args:
        model: Path of the bundle.
        precision: Number format of the forward pass.
        use_gpu: Whether this actor was given a GPU.
        num_threads: Threads of torch.
        board: Where rows are reported.
    """

    def __init__(self, model: str, precision: Any, use_gpu: bool, num_threads: int, board: Any) -> None:
        limit_threads(num_threads)
        self._predictor = Predictor.load(model, use_gpu=use_gpu, precision=precision)
        self._predictor.warm_up()
        self._board = board

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add label, score, p_positive, model_id and the destination to a block of rows."""
        self._board.begin.remote(time.time())
        texts, reasons, raws = table[RAW_TEXT].to_pylist(), table[REASON].to_pylist(), table[RAW].to_pylist()
        ids = self._predictor.encode([text or "" for text in texts])
        for at, text in enumerate(texts):
            if reasons[at] is None and len(ids[at]) <= self._predictor.tokenizer.num_special_tokens:
                # Nothing but what the normaliser takes out, such as control characters.
                reasons[at], raws[at] = NO_TEXT, raw_text(text.encode())
        usable = np.array([reason is None for reason in reasons], dtype=bool)
        p_positive = np.zeros(len(texts), dtype=np.float32)
        p_positive[usable] = self._predictor.forward([row for row, use in zip(ids, usable, strict=True) if use])
        labels, scores = labels_and_scores(p_positive)
        added = {
            SCORE_LABEL: pa.array(labels, pa.string()),
            SCORE: pa.array(scores),
            P_POSITIVE: pa.array(p_positive),
            MODEL_ID: pa.array([self._predictor.model_id] * len(texts), pa.string()),
            DESTINATION: pc.if_else(pa.array(usable), SCORED, REJECTED),
        }
        table = table.rename_columns([TRUE_LABEL if name == RAW_LABEL else name for name in table.column_names])
        table = table.set_column(table.schema.get_field_index(REASON), REASON, pa.array(reasons, pa.string()))
        table = table.set_column(table.schema.get_field_index(RAW), RAW, pa.array(raws, pa.string()))
        for name, column in added.items():
            table = table.append_column(name, column)
        self._board.add.remote(len(texts))
        return table


def score_archive(
    plan: ReadPlan,
    settings: ScoreSettings | EvaluateSettings,
    output: Folder,
    columns: Sequence[pa.Field],
    rows_per_file: int,
) -> Totals:
    """Score every row of a plan into `output/scored` and `output/rejected`.

    Args:
        plan: What to read.
        settings: Model, actors, batch size.
        output: Where.
        columns: Columns of the scored rows.
        rows_per_file: Rows of a Parquet file, about.

    Returns:
        Rows written and the rate.

    Raises:
        ResourceError: The cluster has no room for the actors.
        ConfigError: The output holds something and may not be overwritten.
    """
    num_actors, num_threads = _actors(settings)
    output.claim(overwrite=settings.overwrite)
    sink = FolderSink(output, {SCORED: pa.schema(columns), REJECTED: REJECTED_SCHEMA}, rows_per_file)
    with Progress("score", "rows") as progress:
        read(plan, num_cpus=_READ_CPUS, board=progress.board).map_batches(
            Scorer,
            fn_constructor_kwargs={
                "model": str(Path(settings.model).absolute()),
                "precision": settings.precision,
                "use_gpu": settings.use_gpu,
                "num_threads": num_threads,
                "board": progress.board,
            },
            batch_format="pyarrow",
            batch_size=settings.batch_rows,
            compute=ActorPoolStrategy(size=num_actors),
            num_cpus=_ACTOR_CPUS * num_threads,
            num_gpus=settings.gpus_per_actor if settings.use_gpu else 0,
        ).write_datasink(sink, ray_remote_args={"num_cpus": _WRITE_CPUS})
        began = ray.get(progress.board.began.remote())
        elapsed_s = time.time() - began if began else float("inf")
        read_rows = ray.get(progress.board.rows_read.remote())
    rows = {name: sink.rows[name] for name in (SCORED, REJECTED)}
    _check_complete(output, read_rows)
    return Totals(sum(read_rows.values()), rows, round(sum(rows.values()) / elapsed_s, 1))


def _actors(settings: ScoreSettings | EvaluateSettings) -> tuple[int, int]:
    """How many actors, and threads of each, fit the cluster."""
    nodes = node_resources()
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if settings.use_gpu:
        gpus = sum(node.get("GPU", 0) for node in nodes)
        num_actors = settings.num_actors or max(1, int(gpus / settings.gpus_per_actor))
        num_threads = 1
    else:
        num_actors = settings.num_actors or max(1, sum(cpus))
        # Threads for the CPUs that fewer actors leave idle, as far as one node has them.
        num_threads = max(1, min(sum(cpus) // num_actors, min(cpus, default=1)))
    gpus_each = settings.gpus_per_actor if settings.use_gpu else 0
    require(num_actors, "model actors", cpus=num_threads, gpus=gpus_each)
    return num_actors, num_threads


def _check_complete(output: Folder, read_rows: dict[str, int]) -> None:
    """Hold what was written against what the readers counted: of each file 0, 1, … n - 1, none missing, none twice.

    Takes the driver a byte a row: as many rows as were read, none numbered n or over, and every number below n seen.
    """
    paths, counts = list(read_rows), np.array(list(read_rows.values()), dtype=np.int64)
    ends = np.cumsum(counts)
    # All files' rows side by side: an archive of many small files costs no more than one large one.
    seen = np.zeros(counts.sum(), dtype=bool)
    written = np.zeros(len(paths), dtype=np.int64)
    foreign: set[str] = set()
    for batch in _row_numbers(output):
        files = pc.index_in(batch[SOURCE_FILE], pa.array(paths, pa.string()))
        foreign.update(pc.unique(batch[SOURCE_FILE].filter(files.is_null())).to_pylist())
        at = files.drop_null().to_numpy(zero_copy_only=False)
        rows = batch[SOURCE_ROW].filter(files.is_valid()).to_numpy(zero_copy_only=False)
        written += np.bincount(at, minlength=len(paths))
        at, rows = at[rows < counts[at]], rows[rows < counts[at]]
        seen[ends[at] - counts[at] + rows] = True
    unseen = np.searchsorted(ends, np.flatnonzero(~seen), side="right")
    wrong = np.union1d(np.flatnonzero(written != counts), unseen)
    if foreign or len(wrong):
        names = [*sorted(foreign), *(paths[file] for file in wrong)]
        raise RuntimeError(f"{output.uri} doesn't hold each row of {', '.join(names[:5])} once")


def _row_numbers(output: Folder) -> Iterator[pa.RecordBatch]:
    """File and row number of everything that was written, scored and rejected."""
    for name in (SCORED, REJECTED):
        dataset = pyarrow.dataset.dataset(output.inner(name), filesystem=output.fs, format="parquet")
        if dataset.count_rows():  # An empty folder has no columns.
            yield from dataset.to_batches(columns=[SOURCE_FILE, SOURCE_ROW])
