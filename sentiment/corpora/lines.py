"""Text files cut into physical lines, bounded in memory, and the lists that records are kept in.

A line is the unit of damage: one that is too long or doesn't decode is rejected by itself and the next one begins where
it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sentiment.corpora.streams import PIECE_BYTES, UnreadableError
from sentiment.schema import RAW_LIMIT

MAX_LINE_BYTES = 16 << 20
OVERLONG = f"line longer than {MAX_LINE_BYTES >> 20} MiB"
UNREADABLE = "file can't be read on: "
KEEP_BYTES = 4 * RAW_LIMIT  # Bytes of a rejected line worth keeping: enough for RAW_LIMIT characters.


@dataclass(slots=True)
class Records:
    """Records in file order, as parallel lists.

    Attributes:
        values: Per record its fields (csv: list of str, JSON: dict); None where there is a reason.
        lines: 1-based line at which the record begins.
        reasons: Why it can't be used; None for a good one.
        raws: The record as it stood.
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


@dataclass(slots=True)
class Lines:
    """Consecutive physical lines without their newline; `trouble` marks a single one that can't be parsed."""

    first: int
    raw: list[bytes]
    trouble: str | None = None


def iter_lines(read: Callable[[int], bytes]) -> Iterator[Lines]:
    """Cut a stream into blocks of whole lines, bounded in memory.

    Args:
        read: Returns the next bytes, empty at the end; raises UnreadableError.

    Yields:
        Blocks of lines; a line over MAX_LINE_BYTES, or the place where reading failed, as a block of its own.
    """
    line, tail, overlong = 1, bytearray(), False
    while True:
        try:
            piece = read(PIECE_BYTES)
        except UnreadableError as failure:
            yield Lines(line, [bytes(tail[:KEEP_BYTES])], UNREADABLE + str(failure))
            return
        if not piece:
            break
        cut = piece.find(b"\n") if overlong or len(tail) + len(piece) > MAX_LINE_BYTES else -1
        if overlong or (cut < 0 and len(tail) + len(piece) > MAX_LINE_BYTES) or cut + len(tail) > MAX_LINE_BYTES:
            tail = tail[:KEEP_BYTES] + piece[: KEEP_BYTES if cut < 0 else min(cut, KEEP_BYTES)]
            overlong = True
            if cut < 0:
                continue
            yield Lines(line, [bytes(tail[:KEEP_BYTES])], OVERLONG)
            line, tail, overlong, piece = line + 1, bytearray(), False, piece[cut + 1 :]
        whole, newline, rest = piece.rpartition(b"\n")
        if newline:
            raw = (bytes(tail) + whole).split(b"\n")
            yield Lines(line, raw)
            line, tail = line + len(raw), bytearray(rest)
        else:
            tail += rest
    if tail:
        yield (Lines(line, [bytes(tail[:KEEP_BYTES])], OVERLONG) if overlong else Lines(line, [bytes(tail)]))


def decode(raw: bytes, encoding: str) -> str:
    """Decode one line.

    Args:
        raw: The line.
        encoding: utf-8, latin-1, or mixed: UTF-8 if it can be, else latin-1, as in Sentiment140.

    Returns:
        The text.

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


def undecodable(error: UnicodeDecodeError) -> str:
    """Reason for a line that isn't UTF-8: which byte, where."""
    return f"not valid UTF-8 (byte 0x{error.object[error.start]:02x} at column {error.start + 1})"


def raw_text(raw: bytes) -> str:
    """Show a rejected record: what doesn't decode backslash-escaped, cut to RAW_LIMIT characters."""
    return raw[:KEEP_BYTES].decode("utf-8", "backslashreplace")[:RAW_LIMIT]
