"""Rows to Arrow tables of the plan's schema: the place where a row's text, label and values are validated.

A good row keeps all its columns; a rejected one keeps none, only its reason and the row as it stands in the file. Whole
columns go to Arrow in one call; values are looked at one by one only where a column doesn't fit.

Rows are read in batches whose table is only made if somebody wants it. Where batches begin and end follows from the
file alone, never from what is built of it, so a reader that passes over what was done before comes to the same rows
under the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sentiment.data.schema_inference import EXTRA, RAW_ID, RAW_LABEL, TEXT_COLUMN, encodable, json_text
from sentiment.labels import NO_LABEL, read_label
from sentiment.schema import LINE, RAW, RAW_LIMIT, REASON, SOURCE_FILE, SOURCE_ROW
from sentiment.text import NO_TEXT

if TYPE_CHECKING:
    from sentiment.data.byte_stream import InputFile
    from sentiment.data.read_plan import ReadPlan

# Rows of a batch at most: sorted by length they fill 32 batches of 256, and Arrow's cost for each call is spread.
ROWS_PER_BATCH = 8192
# Cut before that where texts are long: 8,192 lines of 16 MiB would be 128 GiB.
BYTES_PER_BATCH = 32 << 20
MAX_VALUE_BYTES = 16 << 20
KEEP_BYTES = 4 * RAW_LIMIT  # Bytes of a rejected line worth keeping: enough for RAW_LIMIT characters.
UNREADABLE = "file can't be read on: "
# Python types that Arrow takes over without a loss. It would cut 1.5 to 1 and turn True into 1.0.
_EXACT: dict[pa.DataType, frozenset[type]] = {
    pa.string(): frozenset({str, type(None)}),
    pa.bool_(): frozenset({bool, type(None)}),
    pa.int64(): frozenset({int, type(None)}),
    pa.float64(): frozenset({float, int, type(None)}),
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows of one file, or of several one-row files.

    Attributes:
        num_rows: How many.
        size_bytes: What they take in memory, about.
        position: Stored bytes of the files up to the end of these rows, about.
        build: Makes their table, in the plan's schema; called once at most, before the next batch is asked for.
    """

    num_rows: int
    size_bytes: int
    position: int
    build: Callable[[], pa.Table]


def validate(
    texts: Sequence[Any],
    labels: Sequence[Any] | None,
    reasons: list[str | None],
    plan: ReadPlan,
    *,
    has_neutral: bool = False,
) -> list[int | None]:
    """Find the rows without a usable text or label.

    Args:
        texts: Per row what stands in its text column.
        labels: Per row what stands in its label column; None if the file has none.
        reasons: Per row why it is rejected; completed in place.
        has_neutral: Whether the file's format knows a neutral label.

    Returns:
        Per row its label.
    """
    for index, text in enumerate(texts):
        if (text.__class__ is not str or not text or text.isspace()) and reasons[index] is None:
            is_missing = text is None or isinstance(text, str)
            reasons[index] = NO_TEXT if is_missing else f"text is {describe_value(text)}, not a string"
    known: list[int | None] = [None] * len(texts)
    if plan.with_labels:
        for index, value in enumerate(labels or known):
            if reasons[index] is None:
                known[index], reasons[index] = read_label(value, has_neutral=has_neutral)
                if plan.need_label and known[index] is None and reasons[index] is None:
                    reasons[index] = NO_LABEL
    return known


def column_array(values: list[Any], type_: pa.DataType, name: str, problems: dict[int, str]) -> pa.Array:
    """Turn Python values into an Arrow array without changing any.

    Args:
        type_: What they must become; anything can become a string, as JSON text.
        name: The column, for the reason.
        problems: Row → reason for values that don't fit; those become null.
    """
    if set(map(type, values)) <= _EXACT.get(type_, frozenset()):
        try:
            return pa.array(values, type_)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            pass  # A number too large or half a surrogate pair: found below, one by one.
    fitted = []
    for index, value in enumerate(values):
        problem = _misfit(value, type_)
        if problem:
            problems.setdefault(index, f"column {name[:40]!a} {problem}")
        as_text = pa.types.is_string(type_) and value is not None and not isinstance(value, str)
        fitted.append(None if problem else json_text(value) if as_text else value)
    return pa.array(fitted, type_)


def _misfit(value: Any, type_: pa.DataType) -> str | None:
    """Say why a value can't be held by a type; None if it can."""
    if value is None:
        return None
    if pa.types.is_string(type_):
        return "has half a surrogate pair" if isinstance(value, str) and not encodable(value) else None
    try:
        back = pa.array([value], type_)[0].as_py()
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
        back = None
    same = back == value or (isinstance(value, float) and math.isnan(value) and back is not None)
    fits = same and isinstance(back, bool) == isinstance(value, bool)
    return None if fits else f"is {describe_value(value)} that can't be {type_}"


def make_table(
    columns: Mapping[str, pa.Array],
    file: InputFile,
    plan: ReadPlan,
    first_row: int,
    *,
    lines: Sequence[int],
    reasons: Sequence[str | None],
    raw_of: Callable[[int], str],
    labels: Sequence[int | None] | None = None,
    ids: Sequence[Any] | None = None,
    extra: pa.Array | None = None,
) -> pa.Table:
    """Put the columns that came in and ours together in the plan's order; missing ones are null.

    Args:
        columns: The columns that came in, under the names in the file.
        first_row: `source_row` of the first row.
        lines: Where each row begins.
        reasons: Why each can't be used, or None.
        raw_of: Gives a rejected row as it stands in the file, by its index.
        labels: The label of each, if known.
        ids: What stands in the id column, as far as a row could be parsed; None if nobody wants it.
        extra: Fields that no sample had shown, as JSON text.
    """
    count, new_names = len(reasons), dict(plan.renamed)
    table = {new_names.get(name, name): array for name, array in columns.items()}
    if extra is not None:
        table[EXTRA] = extra
    if any(reasons):
        keep = pa.array([None if reason else index for index, reason in enumerate(reasons)], pa.int64())
        table = {name: array.take(keep) for name, array in table.items()}
        labels = labels and [None if reason else label for label, reason in zip(labels, reasons, strict=True)]
        table[REASON] = pa.array(reasons, pa.string())
        table[RAW] = pa.array([raw_of(index) if reason else None for index, reason in enumerate(reasons)], pa.string())
    table[SOURCE_FILE] = pa.repeat(pa.scalar(file.path, pa.string()), count)
    table[SOURCE_ROW] = pa.array(np.arange(first_row, first_row + count))
    table[LINE] = pa.array(lines, pa.int64())
    text_column = new_names.get(file.text_column or "", file.text_column)
    which = plan.text_columns.index(text_column) if text_column in plan.text_columns else 0
    table[TEXT_COLUMN] = pa.repeat(pa.scalar(which, pa.int8()), count)
    if labels is not None:
        table[RAW_LABEL] = pa.array(labels, pa.int8())
    if ids is not None:
        table[RAW_ID] = column_array(list(ids), pa.string(), "", {})
    schema = plan.schema
    arrays = [table[item.name] if item.name in table else pa.nulls(count, item.type) for item in schema]
    return pa.table(arrays, schema=schema)


def rejected_rows(file: InputFile, plan: ReadPlan, problem: str, first_row: int = 0, count: int = 1) -> pa.Table:
    """Rejected rows that stand for what can't be read.

    Args:
        problem: Why.
        first_row: `source_row` of the first.
        count: How many rows that is; one where nobody knows.
    """
    reasons, lines = [UNREADABLE + problem] * count, range(first_row + 1, first_row + count + 1)
    return make_table({}, file, plan, first_row, lines=lines, reasons=reasons, raw_of=lambda _: "")


def undecodable(error: UnicodeDecodeError) -> str:
    """Reason for a line that isn't UTF-8: which byte, where."""
    return f"not valid UTF-8 (byte 0x{error.object[error.start]:02x} at column {error.start + 1})"


def raw_text(raw: bytes) -> str:
    """Show a rejected record: what doesn't decode backslash-escaped, cut to RAW_LIMIT characters."""
    return raw[:KEEP_BYTES].decode("utf-8", "backslashreplace")[:RAW_LIMIT]


def describe_value(value: object) -> str:
    """Name a JSON value's type in people's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    kinds = ((int, "a number"), (float, "a number"), (str, "a string"), (dict, "an object"), (list, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a value")
