"""One file of a plan, read as a stream of tables. Knows nothing of Ray, so any process can use and test it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from sentiment.corpora import imdb
from sentiment.corpora.delimited import CsvRecords
from sentiment.corpora.json_records import json_array, json_lines
from sentiment.corpora.lines import UNREADABLE, Records, iter_lines
from sentiment.corpora.parquet import read_parquet
from sentiment.corpora.planning import ReadPlan, SourceFile
from sentiment.corpora.streams import ByteSource, UnreadableError
from sentiment.corpora.tables import Rows, build, finish

ROWS_PER_TABLE = 8192
# A table is cut before its rows when its text grows beyond this: 8,192 lines of 16 MiB would be 128 GiB.
_BYTES_PER_TABLE = 32 << 20
_ARRAY_LIMIT_BYTES = 256 << 20


def read_file(source: SourceFile, plan: ReadPlan, rows_per_table: int = ROWS_PER_TABLE) -> Iterator[pa.Table]:
    """Read one file.

    Every record of it becomes one row: good, or rejected with its reason. Nothing in the file raises.

    Args:
        source: A file of the plan.
        plan: The plan; only its schema and label rules are used.
        rows_per_table: Most rows a table may have.

    Yields:
        Tables of `plan.schema`, none empty.
    """
    if source.problem is not None:
        yield _unreadable(source, plan, source.problem)
    elif source.format == "parquet":
        yield from read_parquet(source, plan, rows_per_table)
    elif source.form == "imdb":
        yield from read_reviews([source], plan, rows_per_table)
    else:
        opened = ByteSource(source.root, source.inner, source.compression)
        try:
            first_row = 0
            for records in _in_tables(_records(source, opened), rows_per_table):
                yield build(records, source, plan, first_row)
                first_row += len(records)
        finally:
            opened.close()


def read_reviews(
    sources: Sequence[SourceFile], plan: ReadPlan, rows_per_table: int = ROWS_PER_TABLE
) -> Iterator[pa.Table]:
    """Read many files of IMDB's layout into few tables: a table for each review would be all overhead.

    Args:
        sources: Files whose form is imdb.
        plan: The plan.
        rows_per_table: Most rows a table may have.

    Yields:
        Tables of `plan.schema`.
    """
    tables: list[pa.Table] = []
    size = 0
    for source in sources:
        records = Records()
        value, reason, raw = imdb.record(source.root, source.inner, source.encoding)
        records.add(1, value, reason, raw)
        tables.append(build(records, source, plan, 0))
        size += len(raw)
        if len(tables) >= rows_per_table or size >= _BYTES_PER_TABLE:
            yield pa.concat_tables(tables).combine_chunks()
            tables, size = [], 0
    if tables:
        yield pa.concat_tables(tables).combine_chunks()


def _records(source: SourceFile, opened: ByteSource) -> Iterator[Records]:
    """Cut a text file into records."""
    if source.format == "json":
        yield from _array(source, opened)
        return
    lines = iter_lines(opened.read)
    if source.format == "jsonl":
        yield from json_lines(lines, source.encoding)
        return
    delimiter = "\t" if source.format == "tsv" else ","
    header = source.has_header
    for records in CsvRecords(lines, len(source.columns), delimiter, source.encoding):
        if header and len(records):
            records.take(1)
            header = False
        yield records


def _array(source: SourceFile, opened: ByteSource) -> Iterator[Records]:
    """Read a whole-file JSON array; it has to fit in memory, so its size is bounded."""
    content, failure = bytearray(), None
    try:
        while len(content) <= _ARRAY_LIMIT_BYTES and (piece := opened.read()):
            content += piece
    except UnreadableError as error:
        failure = str(error)
    if len(content) > _ARRAY_LIMIT_BYTES:
        failure = f"a JSON array over {_ARRAY_LIMIT_BYTES >> 20} MiB; write it as JSON lines"
        content = content[:0]
    if content:
        try:
            text = content.decode("latin-1" if source.encoding == "latin-1" else "utf-8")
        except UnicodeDecodeError:
            # Lone bad bytes become half surrogate pairs, which reject the rows they are in and no others.
            text = content.decode("utf-8", "surrogateescape")
        yield from json_array(text)
    else:
        records = Records()
        records.add(1, None, UNREADABLE + (failure or "empty"), b"")
        yield records


def _in_tables(batches: Iterable[Records], rows_per_table: int) -> Iterator[Records]:
    """Regroup records into tables' worth."""
    held, size = Records(), 0
    for records in batches:
        size += sum(map(len, records.raws))
        held.extend(records)
        while len(held) >= rows_per_table:
            yield held.take(rows_per_table)
            size = sum(map(len, held.raws))
        if size >= _BYTES_PER_TABLE and len(held):
            yield held.take(len(held))
            size = 0
    if len(held):
        yield held.take(len(held))


def _unreadable(source: SourceFile, plan: ReadPlan, problem: str) -> pa.Table:
    """One rejected row that stands for a whole file."""
    return finish({}, Rows.failure(1, UNREADABLE + problem), source, plan, 0)
