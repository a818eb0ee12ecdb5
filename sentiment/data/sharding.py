"""An archive as shards: the unit that is scored, written, and done or not done.

A group is a plan of a large file, or of as many small ones as a read task is worth; a shard is a run of whole batches
of a group. All of it follows from the plan and the number of rows asked for, so every run comes to the same shards, and
a shard's name says which rows it holds whoever works on it, and however often. What is done needn't be kept in
anybody's memory: it is a listing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from sentiment.data.byte_stream import InputFile
from sentiment.data.formats import batches_of
from sentiment.data.read_plan import ReadPlan
from sentiment.data.validation import BYTES_PER_BATCH, ROWS_PER_BATCH

# Raised whenever a change here, in batches or in a format moves the place where a shard begins, or in what a run keeps
# on disk: a run that was begun before can't be resumed then.
LAYOUT = 5
# Small files share a group up to so many stored bytes, and so many files: each is a request to a remote store.
_GROUP_BYTES, _GROUP_FILES = 8 << 20, 1000
# Memory of a shard, about; a shard of long texts has fewer rows than were asked for.
BYTES_PER_SHARD = BYTES_PER_BATCH
# Rows of a shard if nobody says: enough of them that the last ones don't keep one actor busy while the others wait,
# but no more than a Parquet reader likes.
SHARDS_PER_ACTOR = 32
MIN_ROWS, MIN_ROWS_REMOTE, MAX_ROWS = 4096, 16_384, 262_144
# A rough guess at what a stored row takes; only the number of shards hangs on it.
_BYTES_PER_ROW = 128


@dataclass(frozen=True, slots=True)
class Shard:
    """Some of a group's rows.

    Attributes:
        group: Number of the group.
        number: Its place in the group.
        is_last: The group ends with it.
        stored_bytes: What it takes in the input files, about.
        table: Its rows, in `plan.schema`; there may be none.
    """

    group: int
    number: int
    is_last: bool
    stored_bytes: int
    table: pa.Table

    @property
    def name(self) -> str:
        """What its files are called."""
        return shard_name(self.group, self.number)


def shard_name(group: int, number: int) -> str:
    """Name of a shard; sorted by name, shards are in the order of their rows."""
    return f"{group:06d}-{number:06d}"


def default_rows(plan: ReadPlan, num_actors: int, *, is_remote: bool = False) -> int:
    """Rows of a shard that keep so many actors busy to the end.

    Args:
        num_actors: Who shares the shards.
        is_remote: They are written to a store, which takes a while to answer: then they are larger.

    Returns:
        A power of two.
    """
    wanted = plan.size_bytes // _BYTES_PER_ROW // (SHARDS_PER_ACTOR * num_actors)
    fewest = MIN_ROWS_REMOTE if is_remote else MIN_ROWS
    return min(MAX_ROWS, max(fewest, 1 << max(0, wanted.bit_length() - 1)))


def group_files(plan: ReadPlan) -> dict[int, ReadPlan]:
    """Divide a plan's files among groups, in the plan's order.

    Returns:
        Number of each group → its plan; together they hold each file once.
    """
    runs: list[list[InputFile]] = []
    size = 0
    for file in plan.files:
        stored = max(0, file.size_bytes)
        if not runs or size + stored > _GROUP_BYTES or len(runs[-1]) >= _GROUP_FILES:
            runs.append([])
            size = 0
        runs[-1].append(file)
        size += stored
    return {number: plan.with_files(files) for number, files in enumerate(runs)}


def replace_file(groups: Mapping[int, ReadPlan], file: InputFile) -> dict[int, ReadPlan]:
    """Put another description of a file in the place of the one with the same path.

    Returns:
        The groups. The file's group has a new number, above all others: it is cut into other shards, whose names must
        not be those of shards that were made of it before.
    """
    (number,) = (number for number, group in groups.items() if any(one.path == file.path for one in group.files))
    new = max(groups) + 1
    return {(new if key == number else key): group.with_problems([file]) for key, group in groups.items()}


def shards_of(group: int, plan: ReadPlan, rows_per_shard: int, done: Collection[int] = ()) -> Iterator[Shard]:
    """Read a group.

    Args:
        plan: The plan of its files.
        rows_per_shard: Rows of a shard, about.
        done: Numbers of the shards that aren't wanted: they are passed over, their tables not made.

    Yields:
        The others, in order. A group without rows has one shard without rows, so that it is seen to be done.
    """
    number, rows, size, position, start = 0, 0, 0, 0, 0
    tables: list[pa.Table] = []
    rows_per_batch = -(-rows_per_shard // -(-rows_per_shard // ROWS_PER_BATCH))

    def shard(end: int, *, is_last: bool) -> Shard:
        table = pa.concat_tables(tables or [plan.schema.empty_table()]).combine_chunks()
        return Shard(group, number, is_last, max(0, end - start), table)

    for batch in batches_of(plan, rows_per_batch):
        # Looked at when the next batch is there: only then it is known that the shard isn't the last.
        if rows >= rows_per_shard or size >= BYTES_PER_SHARD:
            if number not in done:
                yield shard(position, is_last=False)
            number, rows, size, tables, start = number + 1, 0, 0, [], position
        rows, size, position = rows + batch.num_rows, size + batch.size_bytes, batch.position
        if number not in done:
            tables.append(batch.build())
    if number not in done:
        yield shard(plan.size_bytes, is_last=True)
