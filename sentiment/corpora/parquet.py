"""Parquet files to tables of the plan's schema, row group by row group.

Text may be a string, large string or dictionary column. Parquet doesn't promise that its strings are valid UTF-8, so
each batch is checked. A row group that can't be read ends the file with one rejected row; the rows before it are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sentiment.corpora.columns import json_text
from sentiment.corpora.lines import UNREADABLE, undecodable
from sentiment.corpora.planning import ReadPlan, SourceFile
from sentiment.corpora.streams import brief, open_random_access
from sentiment.corpora.tables import Rows, column_array, finish, judge_rows
from sentiment.errors import DataError
from sentiment.schema import RAW_LIMIT


def read_parquet(source: SourceFile, plan: ReadPlan, rows_per_table: int) -> Iterator[pa.Table]:
    """Read one Parquet file.

    Args:
        source: The file.
        plan: The plan it belongs to.
        rows_per_table: Most rows a table may have.

    Yields:
        Tables of `plan.schema`; where reading fails, a last one with a single rejected row.
    """
    row = 0
    failure = None
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_random_access(source.root, source.inner, source.compression))
            file = pq.ParquetFile(opened)
            groups = range(file.num_row_groups)
        except (OSError, pa.ArrowException, DataError) as error:
            groups, failure = range(0), brief(error)
        for group in groups:
            # One group at a time: a batch that reached into a damaged group would lose rows of the good one before.
            batches = file.iter_batches(rows_per_table, row_groups=[group])
            while True:
                try:
                    batch = next(batches, None)
                except (OSError, pa.ArrowException) as error:
                    failure = brief(error)
                    break
                if batch is None:
                    break
                yield _table(batch, source, plan, row)
                row += batch.num_rows
            if failure:
                break
    if failure:
        yield finish({}, Rows.failure(row + 1, UNREADABLE + failure), source, plan, row)


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
    known = judge_rows(texts, labels, reasons, source, plan)
    raws = [_raw(batch, at) if reason else None for at, reason in enumerate(reasons)]
    if any(reasons):
        keep = pa.array([None if reason else at for at, reason in enumerate(reasons)], pa.int64())
        arrays = {name: array.take(keep) for name, array in arrays.items()}
    new_names = dict(plan.renamed)
    arrays = {new_names.get(name, name): array for name, array in arrays.items()}
    lines = range(first_row + 1, first_row + count + 1)
    return finish(arrays, Rows(texts, known, lines, reasons, raws), source, plan, first_row)


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
    return column_array(array.to_pylist(), type_, name, problems)


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
            row[name] = value.cast(pa.binary()).as_py().decode("utf-8", "backslashreplace")
        except (pa.ArrowException, ValueError, OverflowError):
            row[name] = str(value.type)  # A timestamp Python can't hold, say.
    return json_text(row)[:RAW_LIMIT]
