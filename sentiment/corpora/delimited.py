"""Records of csv and tsv files, each parsed or carrying its reason.

A record never takes others down with it. Whole blocks go through one call of Python's csv; only a block in which
something is odd is parsed again record by record. A quote that is opened and never closed costs its own line, not the
rest of the file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from sentiment.corpora.lines import MAX_LINE_BYTES, OVERLONG, Lines, Records, decode, undecodable

# How far a quoted csv field may run over lines before its quote counts as never closed.
MAX_QUOTED_LINES = 1000
MAX_QUOTED_BYTES = 1 << 20
_CSV_REASONS = {
    "unexpected end of data": "quote opened and never closed",
    "new-line character": "bare carriage return in an unquoted field",
    "field larger than": OVERLONG,
    "expected after": "quote inside a quoted field isn't doubled",
}


class CsvRecords:
    """Records of a csv or tsv file, whose field count is known.

    Args:
        lines: Blocks of physical lines.
        fields: Fields a record has; None accepts any (to read a header).
        delimiter: "," or a tab.
        encoding: utf-8, latin-1 or mixed.
    """

    def __init__(self, lines: Iterator[Lines], fields: int | None, delimiter: str, encoding: str) -> None:
        csv.field_size_limit(MAX_LINE_BYTES)  # Python's default of 131,072 is less than a line may have.
        self._source, self._fields, self._delimiter, self._encoding = (lines, fields, delimiter, encoding)
        self._raw: list[bytes] = []  # The lines at hand, the first of them number _first.
        self._first = 1
        self._trouble: dict[int, str] = {}

    def _more(self) -> bool:
        """Put the next block behind the lines at hand."""
        block = next(self._source, None)
        if block is None:
            return False
        if not self._raw:
            self._first = block.first
        self._raw += block.raw
        if block.trouble:
            self._trouble[block.first] = block.trouble
        return True

    def __iter__(self) -> Iterator[Records]:
        while self._raw or self._more():
            yield self._whole_block() or self._one_by_one()

    def _whole_block(self) -> Records | None:
        """Parse all lines at hand in one call; None unless each is a good record by itself."""
        if self._trouble or self._fields is None:
            return None
        raw = self._raw
        try:
            rows = list(csv.reader((decode(r, self._encoding) for r in raw), delimiter=self._delimiter, strict=True))
        except (csv.Error, UnicodeDecodeError):
            return None
        # Each row takes at least one line, so as many rows as lines means one line each.
        if len(rows) != len(raw) or set(map(len, rows)) != {self._fields}:
            return None
        self._raw = []
        return Records(rows, list(range(self._first, self._first + len(raw))), [None] * len(raw), raw)

    def _one_by_one(self) -> Records:
        """Parse the lines at hand record by record; the last may reach into the next block."""
        out, at, end = Records(), 0, len(self._raw)
        while at < end:
            # Where reading failed between two lines, an empty one stands for what is missing.
            if self._raw[at] in (b"", b"\r") and self._first + at not in self._trouble:
                at += 1
                continue
            value, reason, used = self._record(at)
            out.add(self._first + at, value, reason, b"\n".join(self._raw[at : at + used]))
            at += used
        del self._raw[:at]
        self._first += at
        self._trouble = {line: why for line, why in self._trouble.items() if line >= self._first}
        return out

    def _record(self, at: int) -> tuple[list[str] | None, str | None, int]:
        """Parse the record at a place: (fields, reason, lines used); a bad one uses a single line."""
        if trouble := self._trouble.get(self._first + at):
            return None, trouble, 1
        try:
            first = decode(self._raw[at], self._encoding)
        except UnicodeDecodeError as error:
            return None, undecodable(error), 1
        reader = csv.reader(self._following(at, first), delimiter=self._delimiter, strict=True)
        try:
            fields = next(reader)
            if self._fields in (None, len(fields)) and not self._swallowed(fields):
                return fields, None, reader.line_num
            some = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
            reason = f"{some} where the header has {self._fields}"
        except csv.Error as error:
            reason = next((why for said, why in _CSV_REASONS.items() if said in str(error)), str(error))
            if reader.line_num > 1:
                reason = _CSV_REASONS["unexpected end of data"]
        if self._delimiter == "\t":  # Many tsv files know no quoting at all.
            plain = first.removesuffix("\r").split("\t")
            if self._fields in (None, len(plain)):
                return plain, None, 1
        return None, reason, 1

    def _swallowed(self, fields: list[str]) -> bool:
        """Tell whether a quoted tsv field holds whole records: its quote is then only a character."""
        tabs = (self._fields or 0) - 1
        if self._delimiter != "\t" or tabs < 1:
            return False
        return any("\n" in field and any(part.count("\t") == tabs for part in field.split("\n")) for field in fields)

    def _following(self, at: int, first: str) -> Iterator[str]:
        """Yield a line and, while csv asks for more to close a quote, those after it, up to the bound."""
        yield first + "\n"
        size = len(first)
        for count in range(1, MAX_QUOTED_LINES):
            if at + count >= len(self._raw) and not self._more():
                return
            raw = self._raw[at + count]
            size += len(raw)
            if size > MAX_QUOTED_BYTES or self._first + at + count in self._trouble:
                return
            try:
                yield decode(raw, self._encoding) + "\n"
            except UnicodeDecodeError:
                return
