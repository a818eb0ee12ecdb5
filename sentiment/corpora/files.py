"""Files of a plan, read as a stream of pieces or tables. Knows nothing of Ray, so any process can use and test it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from sentiment.corpora import imdb
from sentiment.corpora.delimited import CsvRecords
from sentiment.corpora.json_records import json_array, json_lines
from sentiment.corpora.lines import UNREADABLE, Records, iter_lines
from sentiment.corpora.parquet import parquet_pieces
from sentiment.corpora.pieces import BYTES_PER_PIECE, ROWS_PER_PIECE, Piece
from sentiment.corpora.planning import ReadPlan, SourceFile
from sentiment.corpora.streams import ByteSource, UnreadableError
from sentiment.corpora.tables import build, unreadable

_ARRAY_LIMIT_BYTES = 256 << 20


def read_file(source: SourceFile, plan: ReadPlan, rows_per_table: int = ROWS_PER_PIECE) -> Iterator[pa.Table]:
    """Read one file.

    Every record of it becomes one row: good, or rejected with its reason. Nothing in the file raises.

    Args:
        source: A file of the plan.
        plan: The plan; only its schema and label rules are used.
        rows_per_table: Most rows a table may have.

    Yields:
        Tables of `plan.schema`, none empty.
    """
    return (piece.build() for piece in pieces_of([source], plan, rows_per_table))


def pieces_of(sources: Sequence[SourceFile], plan: ReadPlan, rows_per_piece: int = ROWS_PER_PIECE) -> Iterator[Piece]:
    """Cut files into pieces, one file after another.

    IMDB's one-review files share pieces: a table for each review would be all overhead.

    Args:
        sources: Files of the plan.
        plan: The plan; only its schema and label rules are used.
        rows_per_piece: Most rows a piece may have.

    Yields:
        Their pieces, none empty.
    """
    before = 0
    for are_reviews, run in itertools.groupby(sources, lambda source: source.form == "imdb" and not source.problem):
        for batch in [list(run)] if are_reviews else ([source] for source in run):
            pieces = _reviews(batch, plan, rows_per_piece) if are_reviews else _pieces(batch[0], plan, rows_per_piece)
            for piece in pieces:
                yield dataclasses.replace(piece, position=before + piece.position)
            before += sum(max(0, source.size_bytes) for source in batch)


def _pieces(source: SourceFile, plan: ReadPlan, rows_per_piece: int) -> Iterator[Piece]:
    if source.problem is not None:
        yield Piece(1, 0, 0, functools.partial(unreadable, source, plan, source.problem))
    elif source.format == "parquet":
        yield from parquet_pieces(source, plan, rows_per_piece)
    else:
        opened = ByteSource(source.root, source.inner, source.compression)
        try:
            first_row = 0
            for records in _regrouped(_records(source, opened), rows_per_piece):
                size = sum(map(len, records.raws))
                make = functools.partial(build, records, source, plan, first_row)
                yield Piece(len(records), size, opened.position, make)
                first_row += len(records)
        finally:
            opened.close()


def _reviews(sources: Sequence[SourceFile], plan: ReadPlan, rows_per_piece: int) -> Iterator[Piece]:
    """One-review files, read when they are built."""
    held: list[SourceFile] = []
    size = position = 0
    for source in sources:
        held.append(source)
        size, position = size + max(0, source.size_bytes), position + max(0, source.size_bytes)
        if len(held) >= rows_per_piece or size >= BYTES_PER_PIECE:
            yield Piece(len(held), size, position, functools.partial(_read_reviews, held, plan))
            held, size = [], 0
    if held:
        yield Piece(len(held), size, position, functools.partial(_read_reviews, held, plan))


def _read_reviews(sources: Sequence[SourceFile], plan: ReadPlan) -> pa.Table:
    tables = []
    for source in sources:
        records = Records()
        records.add(1, *imdb.record(source.root, source.inner, source.encoding))
        tables.append(build(records, source, plan, 0))
    return pa.concat_tables(tables).combine_chunks()


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
        yield from json_array(text, failure)
    else:
        records = Records()
        records.add(1, None, UNREADABLE + (failure or "empty"), b"")
        yield records


def _regrouped(batches: Iterable[Records], rows_per_piece: int) -> Iterator[Records]:
    """Regroup records into pieces' worth."""
    held, size = Records(), 0
    for records in batches:
        size += sum(map(len, records.raws))
        held.extend(records)
        while len(held) >= rows_per_piece:
            yield held.take(rows_per_piece)
            size = sum(map(len, held.raws))
        if size >= BYTES_PER_PIECE and len(held):
            yield held.take(len(held))
            size = 0
    if len(held):
        yield held.take(len(held))
