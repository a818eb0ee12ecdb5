"""Records to Arrow tables of the plan's schema: the place where a row's text, label and values are judged.

A good row keeps all its columns; a rejected one keeps none, only its reason and the row as it stood. Whole columns go
to Arrow in one call; values are looked at one by one only where a column doesn't fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sentiment.corpora.columns import EXTRA, RAW_ID, RAW_LABEL, RAW_TEXT, encodable, json_text
from sentiment.corpora.json_records import a_kind
from sentiment.corpora.labels import NO_LABEL, read_label
from sentiment.corpora.lines import UNREADABLE, Records, raw_text
from sentiment.corpora.planning import ReadPlan, SourceFile
from sentiment.schema import LINE, RAW, REASON, SOURCE_FILE, SOURCE_ROW

NO_TEXT = "no text"
# Python types that Arrow takes over without a loss. It would cut 1.5 to 1 and turn True into 1.0.
_EXACT: dict[pa.DataType, frozenset[type]] = {
    pa.string(): frozenset({str, type(None)}),
    pa.bool_(): frozenset({bool, type(None)}),
    pa.int64(): frozenset({int, type(None)}),
    pa.float64(): frozenset({float, int, type(None)}),
}


@dataclass(slots=True)
class Rows:
    """What we know of consecutive rows beside their own columns, as parallel lists.

    Attributes:
        texts: The text; ignored where there is a reason.
        labels: The label; ignored where there is a reason.
        lines: Where the row begins.
        reasons: Why it can't be used, or None.
        raws: How it stood, for rejected ones.
        ids: What stands in the id column, as far as the row could be parsed; None if nobody wants it.
    """

    texts: Sequence[Any]
    labels: Sequence[int | None]
    lines: Sequence[int]
    reasons: Sequence[str | None]
    raws: Sequence[str | None]
    ids: Sequence[Any] | None = None


def build(records: Records, source: SourceFile, plan: ReadPlan, first_row: int) -> pa.Table:
    """Make a table of records.

    Args:
        records: Consecutive records of one file; their reasons are completed here.
        source: The file.
        plan: The plan it belongs to.
        first_row: `source_row` of the first record.

    Returns:
        A table of `plan.schema`.
    """
    ids = None if plan.id_column is None else _values_of(records, source, plan.id_column)
    texts, labels = _judge(records, source, plan)
    is_csv = source.format in ("csv", "tsv")
    arrays = _csv_arrays(records, source, plan) if is_csv else _object_arrays(records, plan)
    raws = [raw_text(raw) if reason else None for raw, reason in zip(records.raws, records.reasons, strict=True)]
    rows = Rows(texts, labels, records.lines, records.reasons, raws, ids)
    return finish(arrays, rows, source, plan, first_row)


def judge_rows(
    texts: Sequence[Any], labels: Sequence[Any] | None, reasons: list[str | None], source: SourceFile, plan: ReadPlan
) -> list[int | None]:
    """Find out which rows have no usable text or label.

    Args:
        texts: Per row what stands in its text column.
        labels: Per row what stands in its label column; None if the file has none.
        reasons: Completed in place.
        source: The file.
        plan: The plan.

    Returns:
        Per row its label.
    """
    for at, text in enumerate(texts):
        if text.__class__ is not str or not text or text.isspace():
            reasons[at] = reasons[at] or text_problem(text)
    known: list[int | None] = [None] * len(texts)
    if not plan.with_labels:
        return known
    has_neutral = source.form == "sentiment140"
    for at, value in enumerate(labels or known):
        if reasons[at] is None:
            known[at], reasons[at] = read_label(value, has_neutral=has_neutral)
            if plan.need_label and known[at] is None and reasons[at] is None:
                reasons[at] = NO_LABEL
    return known


def text_problem(text: object) -> str:
    """Reason for a text that is none."""
    if text is None or isinstance(text, str):
        return NO_TEXT
    return f"text is {a_kind(text)}, not a string"


def _judge(records: Records, source: SourceFile, plan: ReadPlan) -> tuple[list[Any], list[int | None]]:
    """Judge texts and labels; rows found wanting lose their values."""
    assert source.text_column is not None, "a file without text column has a problem and isn't read"
    texts = _values_of(records, source, source.text_column)
    label = source.label_column if plan.with_labels else None
    labels = None if label is None else _values_of(records, source, label)
    known = judge_rows(texts, labels, records.reasons, source, plan)
    _drop_rejected(records)
    return texts, known


def _values_of(records: Records, source: SourceFile, name: str) -> list[Any]:
    """Per record what stands in a column; None where there is nothing."""
    if source.format not in ("csv", "tsv"):
        return [None if value is None else value.get(name) for value in records.values]
    if name not in source.columns:
        return [None] * len(records)
    at = source.columns.index(name)
    return [None if value is None else value[at] for value in records.values]


def _drop_rejected(records: Records) -> None:
    for at, reason in enumerate(records.reasons):
        if reason is not None:
            records.values[at] = None


def _csv_arrays(records: Records, source: SourceFile, plan: ReadPlan) -> dict[str, pa.Array]:
    """Turn rows of strings into columns."""
    new_names, nulls = dict(plan.renamed), (None,) * len(source.columns)
    columns = zip(*(nulls if value is None else value for value in records.values), strict=True)
    return {
        new_names.get(name, name): pa.array(column, pa.string())
        for name, column in zip(source.columns, columns, strict=True)
    }


def _object_arrays(records: Records, plan: ReadPlan) -> dict[str, pa.Array]:
    """Turn objects into columns of the plan's types; a value that doesn't fit rejects its row."""
    old_names = {new: old for old, new in plan.renamed}
    known = {old_names.get(name, name): name for name in plan.columns.names if name != EXTRA}
    problems: dict[int, str] = {}
    arrays = {}
    for old, new in known.items():
        values = [None if value is None else value.get(old) for value in records.values]
        arrays[new] = column_array(values, plan.columns.field(new).type, old, problems)
    extras = [
        None if value is None or value.keys() <= known.keys() else _rest(value, known) for value in records.values
    ]
    if EXTRA in plan.columns.names:
        arrays[EXTRA] = pa.array(extras, pa.string())
    else:
        for at, extra in enumerate(extras):
            if extra is not None:
                problems.setdefault(at, "a field the file didn't have when the read was planned")
    if not problems:
        return arrays
    for at, problem in problems.items():
        records.reasons[at] = problem
    _drop_rejected(records)
    return _object_arrays(records, plan)


def _rest(value: dict[str, Any], known: dict[str, str]) -> str:
    return json_text({name: item for name, item in value.items() if name not in known})


def column_array(values: list[Any], type_: pa.DataType, name: str, problems: dict[int, str]) -> pa.Array:
    """Turn Python values into an Arrow array without changing any.

    Args:
        values: The values.
        type_: What they must become; anything can become a string, as JSON text.
        name: The column, for the reason.
        problems: Row → reason for values that don't fit; those become null.

    Returns:
        The array.
    """
    if set(map(type, values)) <= _EXACT.get(type_, frozenset()):
        try:
            return pa.array(values, type_)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            pass  # A number too large or half a surrogate pair: found below, one by one.
    fitted = []
    for at, value in enumerate(values):
        problem = _misfit(value, type_)
        if problem:
            problems.setdefault(at, f"column {name[:40]!a} {problem}")
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
    return None if fits else f"is {a_kind(value)} that can't be {type_}"


def finish(arrays: dict[str, pa.Array], rows: Rows, source: SourceFile, plan: ReadPlan, first_row: int) -> pa.Table:
    """Put the columns that came in and ours together in the plan's order; missing ones are null.

    Args:
        arrays: The columns that came in, under their new names.
        rows: What we know of each row.
        source: The file.
        plan: The plan.
        first_row: `source_row` of the first row.

    Returns:
        A table of `plan.schema`.
    """
    count, reasons = len(rows.lines), rows.reasons
    texts, labels, raws = rows.texts, rows.labels, rows.raws
    rejected = any(reasons)
    if rejected:
        texts = [None if reason else text for text, reason in zip(texts, reasons, strict=True)]
        labels = [None if reason else label for label, reason in zip(labels, reasons, strict=True)]
    ours: dict[str, pa.Array] = {
        SOURCE_FILE: pa.repeat(pa.scalar(source.path, pa.string()), count),
        SOURCE_ROW: pa.array(range(first_row, first_row + count), pa.int64()),
        LINE: pa.array(rows.lines, pa.int64()),
        REASON: pa.array(reasons, pa.string()) if rejected else pa.nulls(count, pa.string()),
        RAW: pa.array(raws, pa.string()) if rejected else pa.nulls(count, pa.string()),
        RAW_TEXT: pa.array(texts, pa.string()),
        RAW_LABEL: pa.array(labels, pa.int8()),
    }
    if rows.ids is not None:
        ours[RAW_ID] = column_array(list(rows.ids), pa.string(), "", {})
    columns = {**arrays, **ours}
    schema = plan.schema
    return pa.table(
        [columns[item.name] if item.name in columns else pa.nulls(count, item.type) for item in schema], schema=schema
    )


def unreadable(source: SourceFile, plan: ReadPlan, problem: str, first_row: int = 0, count: int = 1) -> pa.Table:
    """Rejected rows that stand for what can't be read.

    Args:
        source: The file.
        plan: The plan.
        problem: Why.
        first_row: `source_row` of the first.
        count: How many rows that is; one where nobody knows.

    Returns:
        A table of `plan.schema`.
    """
    lines = range(first_row + 1, first_row + count + 1)
    rows = Rows([None] * count, [None] * count, lines, [UNREADABLE + problem] * count, [""] * count)
    return finish({}, rows, source, plan, first_row)
