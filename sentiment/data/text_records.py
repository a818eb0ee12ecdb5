"""Text files cut into physical lines and records, bounded in memory: what csv and JSON share.

A line is the unit of damage: one that is too long or doesn't decode is rejected by itself and the next one begins where
it ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sentiment.data.byte_stream import READ_BYTES, ByteStream, InputFile, UnreadableError
from sentiment.data.validation import BYTES_PER_BATCH, KEEP_BYTES, MAX_VALUE_BYTES, UNREADABLE, Batch
from sentiment.errors import DataError

if TYPE_CHECKING:
    from sentiment.data.read_plan import ReadPlan

MAX_LINE_BYTES = MAX_VALUE_BYTES
OVERLONG = f"line longer than {MAX_LINE_BYTES >> 20} MiB"
# A field of a csv record is a Python string, however short, and what stands in JSON between two commas some object.
_BYTES_PER_VALUE = 64
_SAMPLE_BYTES = 1 << 18
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# Consecutive physical lines without their newline, and the number of the first; why the line can't be parsed, if so:
# then it is a single one.
LineBlock = tuple[int, list[bytes], str | None]


@dataclass(slots=True)
class Records:
    """Records in file order, as parallel lists.

    Attributes:
        values: Per record its fields (csv: list of str, JSON: dict); None where there is a reason.
        lines: 1-based line at which the record begins.
        reasons: Why it can't be used; None for a good one.
        raws: The record as it stands in the file.
    """

    values: list[Any] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    raws: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, line: int, value: Any, reason: str | None, raw: bytes) -> None:
        """Append one record."""
        self.values.append(None if reason else value)
        self.lines.append(line)
        self.reasons.append(reason)
        self.raws.append(raw)

    def extend(self, other: Records) -> None:
        """Append another run of records."""
        self.values += other.values
        self.lines += other.lines
        self.reasons += other.reasons
        self.raws += other.raws

    def take(self, count: int) -> Records:
        """Remove the first `count` records and return them."""
        head = Records(self.values[:count], self.lines[:count], self.reasons[:count], self.raws[:count])
        del (self.values[:count], self.lines[:count], self.reasons[:count], self.raws[:count])
        return head


def text_batches(
    file: InputFile,
    plan: ReadPlan,
    max_rows: int,
    parse: Callable[[ByteStream], Iterator[Records]],
    build: Callable[[Records, InputFile, ReadPlan, int], pa.Table],
    separator: bytes = b",",
) -> Iterator[Batch]:
    """Read a text file in batches, cut by their number of records and by what these take in memory.

    Args:
        max_rows: Most rows of a batch.
        parse: Makes records of the file's bytes.
        build: Makes a table of records, of which the first has that number.
        separator: Stands between values.
    """

    def memory(records: Records) -> int:
        return sum(len(raw) + _BYTES_PER_VALUE * raw.count(separator) for raw in records.raws)

    held, size, first_row = Records(), 0, 0
    stream = ByteStream(file)
    try:
        for records in parse(stream):
            size += memory(records)
            held.extend(records)
            while len(held) and (len(held) >= max_rows or size >= BYTES_PER_BATCH):
                taken = held.take(max_rows)
                size = memory(held)
                stored = sum(map(len, taken.raws))
                yield Batch(len(taken), stored, stream.position, functools.partial(build, taken, file, plan, first_row))
                first_row += len(taken)
        if len(held):
            stored = sum(map(len, held.raws))
            yield Batch(len(held), stored, stream.position, functools.partial(build, held, file, plan, first_row))
    finally:
        stream.close()


def iter_lines(read: Callable[[int], bytes]) -> Iterator[LineBlock]:
    """Cut a stream into blocks of whole lines, bounded in memory.

    Args:
        read: Returns the next bytes, empty at the end; raises UnreadableError.

    Yields:
        Blocks of lines; a line over MAX_LINE_BYTES, or the place where reading failed, as a block of its own.
    """
    line, tail, is_overlong = 1, bytearray(), False
    while True:
        try:
            chunk = read(READ_BYTES)
        except UnreadableError as failure:
            yield line, [bytes(tail[:KEEP_BYTES])], UNREADABLE + str(failure)
            return
        if not chunk:
            break
        cut = chunk.find(b"\n") if is_overlong or len(tail) + len(chunk) > MAX_LINE_BYTES else -1
        if is_overlong or (cut < 0 and len(tail) + len(chunk) > MAX_LINE_BYTES) or cut + len(tail) > MAX_LINE_BYTES:
            tail = tail[:KEEP_BYTES] + chunk[: KEEP_BYTES if cut < 0 else min(cut, KEEP_BYTES)]
            is_overlong = True
            if cut < 0:
                continue
            yield line, [bytes(tail[:KEEP_BYTES])], OVERLONG
            line, tail, is_overlong, chunk = line + 1, bytearray(), False, chunk[cut + 1 :]
        complete, newline, rest = chunk.rpartition(b"\n")
        if newline:
            raws = (bytes(tail) + complete).split(b"\n")
            yield line, raws, None
            line, tail = line + len(raws), bytearray(rest)
        else:
            tail += rest
    if tail:
        yield (line, [bytes(tail[:KEEP_BYTES])], OVERLONG) if is_overlong else (line, [bytes(tail)], None)


def decode(raw: bytes, encoding: str) -> str:
    """Decode one line.

    Args:
        encoding: utf-8, latin-1, or mixed: UTF-8 if it can be, else latin-1, as in Sentiment140.

    Raises:
        UnicodeDecodeError: It isn't valid UTF-8.
    """
    if encoding == "latin-1":
        return raw.decode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        if encoding == "mixed":
            return raw.decode("latin-1")
        raise


def read_sample(file: InputFile) -> tuple[bytes, bool, bool] | None:
    """Read the first bytes of a text file: at least one whole line, if it has one that is short enough.

    Returns:
        The bytes, whether a byte order mark stood before them, and whether they are all; None for a file with nothing
        in it.

    Raises:
        UnreadableError: It has only blank lines there, or can't be read.
        DataError: It is UTF-16.
    """
    stream, sample, is_complete = ByteStream(file), bytearray(), False
    try:
        while len(sample) < _SAMPLE_BYTES or (b"\n" not in sample and len(sample) <= MAX_LINE_BYTES):
            chunk = stream.read()
            if not chunk:
                is_complete = True
                break
            sample += chunk
    except UnreadableError:
        if not sample:
            raise
    finally:
        stream.close()
    if not is_complete:
        del sample[sample.rfind(b"\n") + 1 or len(sample) :]
    if not sample.strip():
        if is_complete:
            return None
        raise UnreadableError("only blank lines at its head")
    if sample.startswith(_UTF16):
        raise DataError(f"{file.path}: UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)")
    return bytes(sample), stream.has_bom, is_complete
