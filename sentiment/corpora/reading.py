"""A plan as a Ray Dataset: of rows, in blocks small enough for several workers to share a file, or of whole shards.

The only module of the readers that imports Ray.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from sentiment.corpora.files import pieces_of
from sentiment.corpora.planning import ReadPlan, SourceFile
from sentiment.corpora.shards import Group, Shard, shards_of
from sentiment.corpora.streams import UnreachableError

if TYPE_CHECKING:
    from ray.data import DataContext

# Ray joins what a task yields up to this size, by default 128 MiB: a file of 50,000 tweets would be one block and keep
# one worker busy while the others wait. 8,192 tweets with their source columns are 2 to 3 MiB.
BLOCK_BYTES = 2 << 20
REVIEWS_PER_TASK = 1000
# With pauses of up to 2, 4, 8 and 16 s.
_RETRIES = 4

SHARD_SCHEMA = pa.schema(
    [
        pa.field("group", pa.int64()),
        pa.field("number", pa.int64()),
        pa.field("is_last", pa.bool_()),
        pa.field("stored_bytes", pa.int64()),
        pa.field("table", pa.large_binary()),
    ]
)


class _GroupDatasource(Datasource):
    """Groups of files as Ray read tasks, one for each group.

    Args:
        groups: What each task is given, and the files in it.
        make: Reads one group.
        schema: Of the tables that come of it.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Any, Sequence[SourceFile]]],
        make: Callable[[Any], Iterable[pa.Table]],
        schema: pa.Schema,
    ) -> None:
        super().__init__()
        self._groups, self._make, self._schema = groups, make, schema

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: what a file holds can't be told from its compressed size."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Make one task for each group of files; a text file can't be entered in the middle."""
        return [
            ReadTask(
                functools.partial(self._make, group),
                BlockMetadata(None, None, None, tuple(source.path for source in files[:16])),
                schema=self._schema,
                per_task_row_limit=per_task_row_limit,
            )
            for group, files in self._groups
        ]

    def dataset(self, num_cpus: float, block_bytes: int) -> ray.data.Dataset:
        """Read with Ray Data.

        Args:
            num_cpus: CPUs that each task reserves.
            block_bytes: Ray joins and cuts what a task yields to blocks of about this size.
        """
        # Without a number of blocks Ray splits each again, to reach 200 however few files there are.
        # And max_calls=0, Ray's default said aloud, keeps it from fusing the read into the operator behind it: fused,
        # one actor would read a file and do all of its work. Operators fuse only if their remote arguments are equal.
        blocks = len(self._groups)
        dataset = ray.data.read_datasource(self, num_cpus=num_cpus, override_num_blocks=blocks, max_calls=0)
        dataset.context.target_max_block_size = block_bytes
        return dataset


def _shared(plan: ReadPlan) -> ReadPlan:
    """What every task needs of a plan: it carries its own files only, for 50,000 in each would be hundreds of MB."""
    return dataclasses.replace(plan, files=(), skipped=())


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


def _read_group(group: tuple[SourceFile, ...], plan: ReadPlan) -> Iterator[pa.Table]:
    is_empty = True
    for piece in pieces_of(group, plan):
        is_empty = False
        yield piece.build()
    if is_empty:
        yield plan.schema.empty_table()  # Ray would make a block without columns.


def read(plan: ReadPlan, *, num_cpus: float = 1.0) -> ray.data.Dataset:
    """Read a plan with Ray Data.

    Args:
        plan: What to read.
        num_cpus: CPUs each read task reserves; a fraction lets reads run beside workers that hold the CPUs.

    Returns:
        A lazy dataset of rows in `plan.schema`, in blocks of at most about BLOCK_BYTES. Its own context is set so, and
        operators chained to it inherit that; the process-wide context isn't touched.
    """
    groups = [(group, group) for group in group_files(plan)]
    make = functools.partial(_read_group, plan=_shared(plan))
    return _GroupDatasource(groups, make, plan.schema).dataset(num_cpus, BLOCK_BYTES)


def _read_shards(wanted: tuple[Group, frozenset[int]], plan: ReadPlan) -> Iterator[pa.Table]:
    """Shards as blocks of one row: Ray cuts and joins blocks by their size, but not within a row.

    So a shard's table travels as one value, an Arrow IPC stream, and arrives whole.
    """
    group, done = wanted
    for shard in shards_of(group, plan, done):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, shard.table.schema) as writer:
            writer.write_table(shard.table)
        content = sink.getvalue()
        ends = pa.array([0, content.size], pa.int64()).buffers()[1]
        value = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, content])  # without a copy
        facts = [shard.group, shard.number, shard.is_last, shard.stored_bytes]
        yield pa.table([*([fact] for fact in facts), value], schema=SHARD_SCHEMA)


def shard_of(block: pa.Table) -> Shard:
    """Open a block of `read_shards`, without a copy of its rows."""
    assert block.num_rows == 1, "shards travel alone"
    facts = block.drop_columns("table").to_pylist()[0]
    with pa.ipc.open_stream(block["table"][0].as_buffer()) as reader:
        return Shard(**facts, table=reader.read_all())


def read_shards(
    plan: ReadPlan, groups: Sequence[Group], done: Mapping[int, Collection[int]], *, num_cpus: float
) -> ray.data.Dataset:
    """Read shards with Ray Data.

    Args:
        plan: What to read.
        groups: Of the plan, one at least; those that are done are left out.
        done: Group → numbers of its shards that are done.
        num_cpus: CPUs each read task reserves.

    Returns:
        A lazy dataset of blocks for `shard_of`.
    """
    wanted = [((group, frozenset(done.get(group.number, ()))), group.files) for group in groups]
    make = functools.partial(_read_shards, plan=_shared(plan))
    # Blocks so small that no two rows fit in one.
    dataset = _GroupDatasource(wanted, make, SHARD_SCHEMA).dataset(num_cpus, 1)
    # A store that is slow or away for a moment; a reader comes to the same shards when it begins anew.
    dataset.context.retried_map_errors = [UnreachableError.__name__]
    dataset.context.max_map_retries = _RETRIES
    return dataset
