"""An archive as shards: the unit that is scored, written, and done or not done.

A group is a large file, or as many small ones as a read task is worth; a shard is a run of whole pieces of a group. All
of it follows from the plan and the number of rows asked for, so every run comes to the same shards, and a shard's name
says which rows it holds whoever works on it, and however often. What is done needn't be kept in anybody's memory: it is
a listing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa

from sentiment.corpora.files import pieces_of
from sentiment.corpora.pieces import BYTES_PER_PIECE, ROWS_PER_PIECE
from sentiment.corpora.planning import ReadPlan, SourceFile

# Raised whenever a change here, in pieces or in a reader moves the place where a shard begins: a run that was begun
# before can't go on then.
LAYOUT = 3
# Small files share a group up to so many stored bytes, and so many files: each is a request to a remote store.
_GROUP_BYTES, _GROUP_FILES = 8 << 20, 1000
# Memory of a shard, about; a shard of long texts has fewer rows than were asked for.
BYTES_PER_SHARD = BYTES_PER_PIECE
# Rows of a shard if nobody says: enough of them that the last ones don't keep one actor busy while the others wait,
# but no more than a Parquet reader likes.
_SHARDS_PER_ACTOR = 32
_FEWEST_ROWS, _FEWEST_ROWS_REMOTE, _MOST_ROWS = 4096, 16_384, 262_144
# A rough guess at what a stored row takes; only the number of shards hangs on it.
_BYTES_PER_ROW = 128


@dataclass(frozen=True, slots=True)
class Group:
    """Files that are read one after another by one task.

    Attributes:
        number: Its place in the plan.
        files: The files.
        rows_per_shard: Rows of a shard, about.
    """

    number: int
    files: tuple[SourceFile, ...]
    rows_per_shard: int

    @property
    def size_bytes(self) -> int:
        """Stored bytes, as far as they are known."""
        return sum(max(0, file.size_bytes) for file in self.files)


@dataclass(frozen=True, slots=True)
class Shard:
    """Some of a group's rows.

    Attributes:
        group: Number of the group.
        number: Its place in the group.
        is_last: The group ends with it.
        stored_bytes: What it takes where it lies, about.
        table: Its rows, in `plan.schema`; there may be none.
    """

    group: int
    number: int
    is_last: bool
    stored_bytes: int
    table: pa.Table

    @property
    def name(self) -> str:
        """What its files are called; sorted by name, shards are in the order of their rows."""
        return shard_name(self.group, self.number)


def shard_name(group: int, number: int) -> str:
    """Name of a shard."""
    return f"{group:06d}-{number:06d}"


def default_rows(plan: ReadPlan, num_actors: int, *, is_remote: bool = False) -> int:
    """Rows of a shard that keep so many actors busy to the end.

    Args:
        plan: What will be read.
        num_actors: Who shares the shards.
        is_remote: They are written to a store, which takes a while to answer: then they are larger.

    Returns:
        A power of two.
    """
    stored = sum(max(0, file.size_bytes) for file in plan.files)
    wanted = stored // _BYTES_PER_ROW // (_SHARDS_PER_ACTOR * num_actors)
    fewest = _FEWEST_ROWS_REMOTE if is_remote else _FEWEST_ROWS
    return min(_MOST_ROWS, max(fewest, 1 << max(0, wanted.bit_length() - 1)))


def group_shards(plan: ReadPlan, rows_per_shard: int) -> list[Group]:
    """Divide a plan's files among groups, in the plan's order.

    Args:
        plan: The plan.
        rows_per_shard: Rows of a shard, about.

    Returns:
        The groups; together they hold each file once.
    """
    runs: list[list[SourceFile]] = []
    size = 0
    for file in plan.files:
        stored = max(0, file.size_bytes)
        if not runs or size + stored > _GROUP_BYTES or len(runs[-1]) >= _GROUP_FILES:
            runs.append([])
            size = 0
        runs[-1].append(file)
        size += stored
    return [Group(number, tuple(files), rows_per_shard) for number, files in enumerate(runs)]


def shards_of(group: Group, plan: ReadPlan, done: Collection[int] = ()) -> Iterator[Shard]:
    """Read a group.

    Args:
        group: Its files.
        plan: The plan; only its schema and label rules are used.
        done: Numbers of the shards that aren't wanted: they are passed over, their tables not made.

    Yields:
        The others, in order. A group without rows has one shard without rows, so that it is seen to be done.
    """
    number, rows, size, position, before = 0, 0, 0, 0, 0
    tables: list[pa.Table] = []
    each = -(-group.rows_per_shard // -(-group.rows_per_shard // ROWS_PER_PIECE))

    def shard(end: int, *, is_last: bool) -> Shard:
        table = pa.concat_tables(tables or [plan.schema.empty_table()]).combine_chunks()
        return Shard(group.number, number, is_last, max(0, end - before), table)

    for piece in pieces_of(group.files, plan, each):
        # Looked at when the next piece is there: only then it is known that the shard isn't the last.
        if rows >= group.rows_per_shard or size >= BYTES_PER_SHARD:
            if number not in done:
                yield shard(position, is_last=False)
            number, rows, size, tables, before = number + 1, 0, 0, [], position
        rows, size, position = rows + piece.num_rows, size + piece.size_bytes, piece.position
        if number not in done:
            tables.append(piece.build())
    if number not in done:
        yield shard(group.size_bytes, is_last=True)
