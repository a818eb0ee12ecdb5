"""A plan as a Ray Dataset: of rows, in blocks small enough for several workers to share a file, or of whole shards."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.annotations import RayDeprecationWarning

from sentiment.data.byte_stream import UnreachableError
from sentiment.data.formats import FORMATS, batches_of
from sentiment.data.read_plan import ReadPlan
from sentiment.data.sharding import Shard, shards_of

if TYPE_CHECKING:
    from ray.data import DataContext

# Ray joins what a task yields up to this size, by default 128 MiB: a file of 50,000 tweets would be one block and keep
# one worker busy while the others wait. 8,192 tweets with their source columns are 2 to 3 MiB.
BLOCK_BYTES = 2 << 20
FILES_PER_TASK = 1000
# Made in the task that reads some files, for as long as it does; it is given the path of the first of them.
Around = Callable[[str], AbstractContextManager[object]]
# How often a reader whose process dies is started again; Ray's default is for ever. The file may be the cause.
_MAX_RESTARTS = 2
# After an UnreachableError, with pauses of up to 2, 4, 8 and 16 s.
_MAX_RETRIES = 4

SHARD_SCHEMA = pa.schema(
    [
        pa.field("group", pa.int64()),
        pa.field("number", pa.int64()),
        pa.field("is_last", pa.bool_()),
        pa.field("stored_bytes", pa.int64()),
        pa.field("table", pa.large_binary()),
    ]
)


class _GroupDatasource(Datasource):  # type: ignore[misc]
    """Groups of files as Ray read tasks, one for each group; a text file can't be entered in the middle.

    Args:
        tasks: The files of each task, and what makes tables of them.
        schema: Of those tables.
        around: A context for each task.
    """

    def __init__(
        self, tasks: Sequence[tuple[ReadPlan, Callable[[], Iterator[pa.Table]]]], schema: pa.Schema, around: Around
    ) -> None:
        super().__init__()
        self._tasks, self._schema, self._around = tasks, schema, around

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: what a file holds can't be told from its compressed size."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Make one task for each group of files."""
        return [
            ReadTask(
                functools.partial(read_within, self._around, plan.files[0].path, read),
                BlockMetadata(None, None, None, tuple(file.path for file in plan.files[:16])),
                schema=self._schema,
                per_task_row_limit=per_task_row_limit,
            )
            for plan, read in self._tasks
        ]

    def dataset(self, num_cpus: float, block_bytes: int) -> ray.data.Dataset:
        """Read with Ray Data.

        Args:
            num_cpus: CPUs that each task reserves.
            block_bytes: Ray joins and cuts what a task yields to blocks of about this size.
        """
        with warnings.catch_warnings():
            # Deprecated in favor of single parameters, among which there is none for this.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
            dataset = ray.data.read_datasource(
                self,
                num_cpus=num_cpus,
                # Else Ray splits each again, to reach 200 however few files there are.
                override_num_blocks=len(self._tasks),
                # Ray's default, but given it keeps Ray from fusing the read into the operator behind it: fused, one
                # actor would read a file and do all of its work. Operators fuse only if their arguments are equal.
                max_calls=0,
                ray_remote_args={"max_retries": _MAX_RESTARTS},
            )
        dataset.context.target_max_block_size = block_bytes
        return dataset


def read_within(around: Around, path: str, read: Callable[[], Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """A read task: reads within a context."""
    with around(path):
        yield from read()


def read_groups(plan: ReadPlan) -> list[ReadPlan]:
    """Divide a plan's files among tasks: each alone, files of one row by the thousand."""
    alone = [file for file in plan.files if not FORMATS[file.format].is_combined]
    others = [file for file in plan.files if FORMATS[file.format].is_combined]
    runs = [others[start : start + FILES_PER_TASK] for start in range(0, len(others), FILES_PER_TASK)]
    return [plan.with_files(files) for files in (*([file] for file in alone), *runs)]


def _read_group(plan: ReadPlan) -> Iterator[pa.Table]:
    is_empty = True
    for batch in batches_of(plan):
        is_empty = False
        yield batch.build()
    if is_empty:
        yield plan.schema.empty_table()  # Ray would make a block without columns.


def read(plan: ReadPlan, *, num_cpus: float = 1.0, around: Around = nullcontext) -> ray.data.Dataset:
    """Read a plan with Ray Data.

    Args:
        num_cpus: CPUs each read task reserves; a fraction lets reads run beside workers that hold the CPUs.
        around: A context for each read task.

    Returns:
        A lazy dataset of rows in `plan.schema`, in blocks of at most about BLOCK_BYTES. Its own context is set so, and
        operators chained to it inherit that; the process-wide context isn't touched.
    """
    tasks = [(group, functools.partial(_read_group, group)) for group in read_groups(plan)]
    return _GroupDatasource(tasks, plan.schema, around).dataset(num_cpus, BLOCK_BYTES)


def _read_shards(group: int, plan: ReadPlan, rows_per_shard: int, done: Collection[int]) -> Iterator[pa.Table]:
    """Shards as blocks of one row: Ray cuts and joins blocks by their size, but not within a row.

    So a shard's table travels as one value, an Arrow IPC stream, and arrives whole.
    """
    for shard in shards_of(group, plan, rows_per_shard, done):
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
    groups: Mapping[int, ReadPlan],
    rows_per_shard: int,
    done: Mapping[int, Collection[int]],
    *,
    num_cpus: float,
    around: Around = nullcontext,
) -> ray.data.Dataset:
    """Read shards with Ray Data.

    Args:
        groups: Number of each group → its plan, one at least; groups that are done are left out.
        rows_per_shard: Rows of a shard, about.
        done: Group → numbers of its shards that are done.
        num_cpus: CPUs each read task reserves.
        around: A context for each read task.

    Returns:
        A lazy dataset of blocks for `shard_of`.
    """
    tasks = [
        (plan, functools.partial(_read_shards, group, plan, rows_per_shard, frozenset(done.get(group, ()))))
        for group, plan in groups.items()
    ]
    # Blocks so small that no two rows fit in one.
    dataset = _GroupDatasource(tasks, SHARD_SCHEMA, around).dataset(num_cpus, 1)
    # A store that is slow or away for a moment; a reader comes to the same shards when it begins anew.
    dataset.context.retried_map_errors = [UnreachableError.__name__]
    dataset.context.max_map_retries = _MAX_RETRIES
    return dataset
