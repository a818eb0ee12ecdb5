"""csv and tsv files, each record parsed or carrying its reason; and Sentiment140's own form of csv.

A record never takes others down with it. Whole blocks go through one call of Python's csv; only a block in which
something is odd is parsed again record by record. A quote that is opened and never closed costs its own line, not the
rest of the file.

Sentiment140 is distributed as six quoted columns without a header, latin-1 with some UTF-8 in it; its polarity is 0 or
4, and 2 (neutral) in the manual test set alone (http://help.sentiment140.com/for-students). Copies with a header row
are common; they are read the same way. Any other csv has a header, and is UTF-8 unless the user says otherwise.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from sentiment.data.byte_stream import ByteStream, InputFile
from sentiment.data.schema_inference import InferredSchema, check_names, unique_names
from sentiment.data.text_records import (
    MAX_LINE_BYTES,
    OVERLONG,
    LineBlock,
    Records,
    decode,
    iter_lines,
    read_sample,
    text_batches,
)
from sentiment.data.validation import Batch, make_table, raw_text, undecodable, validate
from sentiment.errors import DataError

if TYPE_CHECKING:
    from sentiment.data.read_plan import ReadPlan

# How far a quoted csv field may run over lines before its quote counts as never closed.
MAX_QUOTED_LINES = 1000
MAX_QUOTED_BYTES = 1 << 20
_CSV_REASONS = {
    "unexpected end of data": "quote opened and never closed",
    "new-line character": "bare carriage return in an unquoted field",
    "field larger than": OVERLONG,
    "expected after": "quote inside a quoted field isn't doubled",
}
SENTIMENT140 = "sentiment140"
# Column → what copies with a header call it.
_SENTIMENT140_COLUMNS = {
    "polarity": ("polarity", "target", "sentiment", "label"),
    "id": ("id", "ids"),
    "date": ("date",),
    "query": ("query", "flag"),
    "user": ("user", "username"),
    "text": ("text", "tweet"),
}


@dataclass(frozen=True)
class CsvFormat:
    """A format of `sentiment.data.formats`.

    Attributes:
        extensions: Of its files' names.
        delimiter: Between two fields.
        has_neutral: Whether 2 is a neutral label.
    """

    extensions: tuple[str, ...]
    delimiter: str = ","
    has_neutral: bool = False
    layout = None
    is_combined = False
    has_extra = False

    def detect(self, file: InputFile, encoding: str) -> tuple[InputFile, InferredSchema] | None:
        """Recognize Sentiment140's form, else take the first record for the header."""
        read = read_sample(file)
        if read is None:
            return None
        sample, has_bom, is_complete = read
        settled = "utf-8" if encoding == "auto" else encoding

        def records(encoding: str) -> Iterator[Records]:
            lines = iter_lines(io.BytesIO(sample).read)
            return filter(len, CsvRecords(lines, None, self.delimiter, encoding))

        found = _sentiment140_header(next(records("mixed"), Records()).values[:20]) if self.delimiter == "," else None
        if found is not None:
            mixed = "mixed" if encoding == "auto" and not has_bom else settled
            names = tuple(_SENTIMENT140_COLUMNS)
            file = replace(file, format=SENTIMENT140, encoding=mixed, has_header=found, columns=names)
            return file, InferredSchema.of_strings(names)
        blocks = records(settled)
        first = next(blocks)
        header = first.values[0]
        if header is None:
            try:
                first.raws[0].decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{file.path}: its header is {undecodable(error)}; if it is latin-1, say --encoding latin-1"
                ) from error
            raise DataError(f"{file.path}: its header (line {first.lines[0]}) can't be parsed: {first.reasons[0]}")
        check_names(header)
        names = unique_names(header)
        schema = InferredSchema.of_strings(names)
        schema.has_rows = not is_complete or len(first) > 1 or next(blocks, None) is not None
        return replace(file, encoding=settled, has_header=True, columns=names), schema

    def read(self, files: Sequence[InputFile], plan: ReadPlan, max_rows: int) -> Iterator[Batch]:
        """Read a file."""
        (file,) = files

        def parse(stream: ByteStream) -> Iterator[Records]:
            header = file.has_header
            for records in CsvRecords(iter_lines(stream.read), len(file.columns), self.delimiter, file.encoding):
                if header and len(records):
                    records.take(1)
                    header = False
                yield records

        return text_batches(file, plan, max_rows, parse, self._table, self.delimiter.encode())

    def _table(self, records: Records, file: InputFile, plan: ReadPlan, first_row: int) -> pa.Table:
        nulls = (None,) * len(file.columns)
        rows = [nulls if value is None else value for value in records.values] if any(records.reasons) else None
        columns = dict(zip(file.columns, zip(*(rows or records.values), strict=True), strict=True))
        labels = columns.get(file.label_column or "")
        known = validate(columns[file.text_column or ""], labels, records.reasons, plan, has_neutral=self.has_neutral)
        return make_table(
            {name: pa.array(column, pa.string()) for name, column in columns.items()},
            file,
            plan,
            first_row,
            lines=records.lines,
            reasons=records.reasons,
            raw_of=lambda index: raw_text(records.raws[index]),
            labels=known,
            ids=None if plan.id_column is None else columns.get(plan.id_column, [None] * len(records)),
        )


def _sentiment140_header(rows: Sequence[Sequence[str] | None]) -> bool | None:
    """Tell Sentiment140's form from its first records, None for one that didn't parse.

    Returns:
        Whether the first one is a header; None for another csv. One broken row in four is forgiven.
    """
    first = rows[0] if rows else None
    # Any other number of fields: the rest of a record that the file begins in the middle of.
    if first is not None and len(first) == len(_SENTIMENT140_COLUMNS):
        if all(
            name.strip().lower() in names for name, names in zip(first, _SENTIMENT140_COLUMNS.values(), strict=True)
        ):
            return True
        if not first[0].strip().lstrip("-").isdigit():
            return None  # A header of its own, whatever the rows below it begin with.
    fitting = sum(
        row is not None and len(row) == len(_SENTIMENT140_COLUMNS) and row[0] in ("0", "2", "4") for row in rows
    )
    return False if fitting and fitting >= 0.75 * len(rows) else None


class CsvRecords:
    """Records of a csv or tsv file, whose field count is known.

    Args:
        lines: Blocks of physical lines.
        fields: Fields a record has; None accepts any (to read a header).
        delimiter: "," or a tab.
        encoding: utf-8, latin-1 or mixed.
    """

    def __init__(self, lines: Iterator[LineBlock], fields: int | None, delimiter: str, encoding: str) -> None:
        csv.field_size_limit(MAX_LINE_BYTES)  # Python's default of 131,072 is less than a line may have.
        self._blocks, self._fields, self._delimiter, self._encoding = lines, fields, delimiter, encoding
        self._raws: list[bytes] = []  # The lines at hand, the first of them number _first.
        self._first = 1
        self._problems: dict[int, str] = {}  # By number of the line.

    def _read_block(self) -> bool:
        """Put the next block behind the lines at hand; False at the end."""
        block = next(self._blocks, None)
        if block is None:
            return False
        first, raws, problem = block
        if not self._raws:
            self._first = first
        self._raws += raws
        if problem:
            self._problems[first] = problem
        return True

    def __iter__(self) -> Iterator[Records]:
        while self._raws or self._read_block():
            yield self._parse_block() or self._parse_singly()

    def _parse_block(self) -> Records | None:
        """Parse all lines at hand in one call; None unless each is a good record by itself."""
        if self._problems or self._fields is None:
            return None
        raws = self._raws
        try:
            texts = (decode(raw, self._encoding) for raw in raws)
            rows = list(csv.reader(texts, delimiter=self._delimiter, strict=True))
        except (csv.Error, UnicodeDecodeError):
            return None
        # Each row takes at least one line, so as many rows as lines means one line each.
        if len(rows) != len(raws) or set(map(len, rows)) != {self._fields}:
            return None
        self._raws = []
        return Records(rows, list(range(self._first, self._first + len(raws))), [None] * len(raws), raws)

    def _parse_singly(self) -> Records:
        """Parse the lines at hand record by record; the last may reach into the next block."""
        out, index, end = Records(), 0, len(self._raws)
        while index < end:
            # Where reading failed between two lines, an empty one stands for what is missing.
            if self._raws[index] in (b"", b"\r") and self._first + index not in self._problems:
                index += 1
                continue
            value, reason, used = self._parse_record(index)
            out.add(self._first + index, value, reason, b"\n".join(self._raws[index : index + used]))
            index += used
        del self._raws[:index]
        self._first += index
        self._problems = {line: why for line, why in self._problems.items() if line >= self._first}
        return out

    def _parse_record(self, index: int) -> tuple[list[str] | None, str | None, int]:
        """Parse the record that begins at a line: (fields, reason, lines used); a bad one uses a single line."""
        if problem := self._problems.get(self._first + index):
            return None, problem, 1
        try:
            first = decode(self._raws[index], self._encoding)
        except UnicodeDecodeError as error:
            return None, undecodable(error), 1
        reader = csv.reader(self._lines_from(index, first), delimiter=self._delimiter, strict=True)
        is_tsv = self._delimiter == "\t"
        try:
            fields = next(reader)
            tabs = (self._fields or 0) - 1
            # A quoted tsv field that holds whole records: its quote is only a character.
            swallowed = (
                is_tsv
                and tabs >= 1
                and any(
                    "\n" in field and any(part.count("\t") == tabs for part in field.split("\n")) for field in fields
                )
            )
            if self._fields in (None, len(fields)) and not swallowed:
                return fields, None, reader.line_num
            some = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
            reason = f"{some} where the header has {self._fields}"
        except csv.Error as error:
            reason = next((why for said, why in _CSV_REASONS.items() if said in str(error)), str(error))
            if reader.line_num > 1:
                reason = _CSV_REASONS["unexpected end of data"]
        if is_tsv:  # Many tsv files know no quoting at all.
            plain = first.removesuffix("\r").split("\t")
            if self._fields in (None, len(plain)):
                return plain, None, 1
        return None, reason, 1

    def _lines_from(self, index: int, first: str) -> Iterator[str]:
        """Yield a line and, while csv asks for more to close a quote, those after it, up to the bound."""
        yield first + "\n"
        size = len(first)
        for next_index in range(index + 1, index + MAX_QUOTED_LINES):
            if next_index >= len(self._raws) and not self._read_block():
                return
            raw = self._raws[next_index]
            size += len(raw)
            if size > MAX_QUOTED_BYTES or self._first + next_index in self._problems:
                return
            try:
                yield decode(raw, self._encoding) + "\n"
            except UnicodeDecodeError:
                return
