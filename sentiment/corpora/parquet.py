"""Parquet files to tables of the plan's schema, row group by row group.

Text may be a string, large string or dictionary column. Parquet doesn't promise that its strings are valid UTF-8, so
each batch is checked. Where a row group can't be read its rows are rejected, each of them; the other groups are read.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sentiment.corpora.columns import json_text
from sentiment.corpora.lines import undecodable
from sentiment.corpora.pieces import BYTES_PER_PIECE, Piece
from sentiment.corpora.planning import ReadPlan, SourceFile
from sentiment.corpora.streams import UnreadableError, open_random_access, refuse_unreachable
from sentiment.corpora.tables import Rows, column_array, finish, judge_rows, unreadable
from sentiment.errors import DataError, brief
from sentiment.schema import RAW_LIMIT

# Of a value in memory, by Parquet's physical types; a string is an offset and, if it isn't null, say a word or two.
_BYTES = {"BOOLEAN": 1 / 8, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}
_OFFSET_BYTES, _STRING_BYTES = 4, 12


def parquet_pieces(source: SourceFile, plan: ReadPlan, rows_per_piece: int) -> Iterator[Piece]:
    """Cut one Parquet file into pieces, which its metadata alone decides; a row group is read if one of them is built.

    Args:
        source: The file.
        plan: The plan it belongs to.
        rows_per_piece: Most rows a piece may have.

    Yields:
        Its pieces; for a file whose footer can't be read, one with a single rejected row.
    """
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_random_access(source.root, source.inner, source.compression))
            file = pq.ParquetFile(opened)
            counts = _rows_of_groups(file)
        except (OSError, pa.ArrowException, DataError, UnicodeDecodeError) as error:
            refuse_unreachable(error, source.path)
            yield Piece(1, 0, 0, functools.partial(unreadable, source, plan, brief(error)))
            return
        first_row, all_rows = 0, max(1, file.metadata.num_rows)
        for number, count in enumerate(counts):
            size = _size_in_memory(file.metadata.row_group(number))
            if not count:
                continue
            rows = max(1, min(rows_per_piece, BYTES_PER_PIECE * count // max(1, size)))
            group = _RowGroup(file, number, rows)
            for start in range(0, count, rows):
                here = min(rows, count - start)
                build = functools.partial(_build, group, start, here, source, plan, first_row + start)
                position = max(0, source.size_bytes) * (first_row + start + here) // all_rows
                yield Piece(here, size * here // count, position, build)
            first_row += count


def _rows_of_groups(file: pq.ParquetFile) -> list[int]:
    """Rows of each row group: what decides which row is which, so it has to be true."""
    counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if sum(counts) != file.metadata.num_rows or min(counts, default=0) < 0:
        raise DataError("its footer contradicts itself: the rows of its groups aren't those of the file")
    return counts


def _size_in_memory(group: pq.RowGroupMetaData) -> int:
    """Bytes of a row group, about; the file may hold a value that comes many times over only once."""
    plain = 0.0
    for column in map(group.column, range(group.num_columns)):
        known = column.statistics
        nulls = known.null_count if known is not None and known.has_null_count else 0
        fixed = _BYTES.get(column.physical_type)
        plain += column.num_values * (_OFFSET_BYTES if fixed is None else fixed)
        if fixed is None:
            plain += (column.num_values - nulls) * _STRING_BYTES
    return max(group.total_byte_size, math.ceil(plain))


class _RowGroup:
    """A row group as batches of one size, the last one smaller; those that nobody wants are read and dropped."""

    def __init__(self, file: pq.ParquetFile, number: int, rows: int) -> None:
        self._file, self._number, self._rows = file, number, rows
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._at = 0
        self._failure: str | None = None

    def batch(self, start: int, count: int) -> pa.RecordBatch:
        """Rows `start` and on.

        Raises:
            UnreadableError: They can't be read.
        """
        while self._failure is None:
            try:
                if self._batches is None:
                    self._batches = self._file.iter_batches(self._rows, row_groups=[self._number])
                batch = next(self._batches, None)
            except (OSError, pa.ArrowException) as error:
                refuse_unreachable(error, "a Parquet file")
                self._failure = brief(error)
                break
            at, self._at = self._at, self._at + self._rows
            if batch is None or (at == start and batch.num_rows != count):
                self._failure = "fewer rows than its footer says"
            elif at == start:
                return batch
        raise UnreadableError(self._failure)


def _build(group: _RowGroup, start: int, count: int, source: SourceFile, plan: ReadPlan, first_row: int) -> pa.Table:
    try:
        return _table(group.batch(start, count), source, plan, first_row)
    except UnreadableError as error:
        # The footer says how many they are: each is accounted for.
        return unreadable(source, plan, str(error), first_row, count)


def _table(batch: pa.RecordBatch, source: SourceFile, plan: ReadPlan, first_row: int) -> pa.Table:
    """Judge the rows of a batch and give it the plan's schema."""
    old_names = {new: old for old, new in plan.renamed}
    problems: dict[int, str] = {}
    arrays: dict[str, pa.Array] = {}
    for item in plan.columns:
        old = old_names.get(item.name, item.name)
        if old in source.columns and old in batch.schema.names:
            arrays[old] = _column(batch.column(old), item.type, old, problems)
    count = batch.num_rows
    reasons: list[str | None] = [problems.get(at) for at in range(count)]
    texts = _values(arrays, source.text_column, count)
    labels = _values(arrays, source.label_column, count) if plan.with_labels else None
    ids = None if plan.id_column is None else _values(arrays, plan.id_column, count)
    known = judge_rows(texts, labels, reasons, source, plan)
    raws = [_raw(batch, at) if reason else None for at, reason in enumerate(reasons)]
    if any(reasons):
        keep = pa.array([None if reason else at for at, reason in enumerate(reasons)], pa.int64())
        arrays = {name: array.take(keep) for name, array in arrays.items()}
    new_names = dict(plan.renamed)
    arrays = {new_names.get(name, name): array for name, array in arrays.items()}
    lines = range(first_row + 1, first_row + count + 1)
    return finish(arrays, Rows(texts, known, lines, reasons, raws, ids), source, plan, first_row)


def _values(arrays: dict[str, pa.Array], name: str | None, count: int) -> list[Any]:
    values: list[Any] = arrays[name].to_pylist() if name in arrays else [None] * count
    return values


def _column(array: pa.Array, type_: pa.DataType, name: str, problems: dict[int, str]) -> pa.Array:
    """Give a column the plan's type; rows whose value can't have it get a reason."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    if pa.types.is_string(array.type):
        array = _checked(array, name, problems)
    if array.type == type_:
        return array
    if not pa.types.is_string(type_):
        with contextlib.suppress(pa.ArrowException):
            return array.cast(type_)
    values: list[Any] = []
    for at, value in enumerate(array):
        try:
            values.append(value.as_py())
        except (pa.ArrowException, ValueError, OverflowError):  # A day Python can't hold, or bad bytes in a list.
            problems.setdefault(at, f"column {name[:40]!a} is a {value.type} that can't be {type_}")
            values.append(None)
    return column_array(values, type_, name, problems)


def _checked(array: pa.Array, name: str, problems: dict[int, str]) -> pa.Array:
    """Null the strings that aren't valid UTF-8 and give their rows a reason."""
    try:
        array.validate(full=True)
    except pa.ArrowException:
        texts: list[str | None] = []
        for at, value in enumerate(array.cast(pa.binary()).to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError as error:
                problems.setdefault(at, f"column {name[:40]!a} is {undecodable(error)}")
                texts.append(None)
        return pa.array(texts, pa.string())
    return array


def _raw(batch: pa.RecordBatch, at: int) -> str:
    """Write a row as JSON text, cut to RAW_LIMIT characters."""
    row: dict[str, Any] = {}
    for name in batch.schema.names:
        value = batch.column(name)[at]
        try:
            row[name] = value.as_py()
        except UnicodeDecodeError:
            is_text = not pa.types.is_nested(value.type)
            bytes_ = value.cast(pa.binary()).as_py() if is_text else str(value.type).encode()
            row[name] = bytes_.decode("utf-8", "backslashreplace")
        except (pa.ArrowException, ValueError, OverflowError):
            row[name] = str(value.type)  # A timestamp Python can't hold, say.
    return json_text(row)[:RAW_LIMIT]
