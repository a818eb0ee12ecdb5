"""A plan as a Ray Dataset: one read task a file, streaming blocks small enough for several workers to share a file.

The only module of the readers that imports Ray.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from sentiment.corpora.files import ROWS_PER_TABLE, read_file, read_reviews
from sentiment.corpora.planning import ReadPlan, SourceFile
from sentiment.schema import SOURCE_FILE

if TYPE_CHECKING:
    from ray.data import DataContext

# Ray joins what a task yields up to this size, by default 128 MiB: a file of 50,000 tweets would be one block and keep
# one worker busy while the others wait. 8,192 tweets with their source columns are 2 to 3 MiB.
BLOCK_BYTES = 2 << 20
REVIEWS_PER_TASK = 1000


class ArchiveDatasource(Datasource):
    """The files of a plan as Ray read tasks.

    Args:
        plan: What to read.
        board: An actor whose `add_read` is told how many rows each file had; None for nobody.
    """

    def __init__(self, plan: ReadPlan, board: Any = None) -> None:
        super().__init__()
        self._board = board
        self._groups = group_files(plan)
        # A task carries its own files only: a plan of 50,000 reviews pickled into each would be hundreds of MB.
        self._shared = dataclasses.replace(plan, files=(), skipped=())

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: what a file holds can't be told from its compressed size."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Make one task for each group of files; a text file can't be entered in the middle."""
        return [
            ReadTask(
                functools.partial(_read_group, group, self._shared, self._board),
                BlockMetadata(None, None, None, tuple(source.path for source in group[:16])),
                schema=self._shared.schema,
                per_task_row_limit=per_task_row_limit,
            )
            for group in self._groups
        ]


def group_files(plan: ReadPlan) -> list[tuple[SourceFile, ...]]:
    """Divide a plan's files among tasks: each alone, IMDB's one-review files by the thousand.

    Args:
        plan: The plan.

    Returns:
        The groups; together they hold each file once.
    """
    reviews = [source for source in plan.files if source.form == "imdb"]
    alone = [(source,) for source in plan.files if source.form != "imdb"]
    chunks = [tuple(reviews[at : at + REVIEWS_PER_TASK]) for at in range(0, len(reviews), REVIEWS_PER_TASK)]
    return [*alone, *chunks]


def _read_group(group: tuple[SourceFile, ...], plan: ReadPlan, board: Any) -> Iterator[pa.Table]:
    rows = dict.fromkeys((source.path for source in group), 0)
    for table in _tables(group, plan):
        for counted in pc.value_counts(table[SOURCE_FILE]).to_pylist():
            rows[counted["values"]] += counted["counts"]
        yield table
    if board is not None:
        # Waited for: the count must be there before the last block can be written.
        ray.get(board.add_read.remote(rows))
    if not any(rows.values()):
        yield plan.schema.empty_table()  # Ray would make a block without columns.


def _tables(group: tuple[SourceFile, ...], plan: ReadPlan) -> Iterator[pa.Table]:
    if group[0].form == "imdb":
        yield from read_reviews(group, plan)
        return
    for source in group:
        yield from read_file(source, plan, ROWS_PER_TABLE)


def read(plan: ReadPlan, *, num_cpus: float = 1.0, board: Any = None) -> ray.data.Dataset:
    """Read a plan with Ray Data.

    Args:
        plan: What to read.
        num_cpus: CPUs each read task reserves; a fraction lets reads run beside workers that hold the CPUs.
        board: An actor whose `add_read` is told how many rows each file had; None for nobody.

    Returns:
        A lazy dataset of rows in `plan.schema`, in blocks of at most about BLOCK_BYTES. Its own context is set so, and
        operators chained to it inherit that; the process-wide context isn't touched.
    """
    source = ArchiveDatasource(plan, board)
    groups = len(group_files(plan))
    # Without this Ray splits each block again, to reach 200 blocks however few files there are.
    # And max_calls=0, Ray's default said aloud, keeps it from fusing the read into the operator behind it: fused, one
    # actor would read a file and do all of its work. Operators fuse only if their remote arguments are equal.
    dataset = ray.data.read_datasource(source, num_cpus=num_cpus, override_num_blocks=groups, max_calls=0)
    dataset.context.target_max_block_size = BLOCK_BYTES
    return dataset
