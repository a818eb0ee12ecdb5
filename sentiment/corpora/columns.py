"""Columns: which one holds the text, which the label, and the one Arrow schema that all files of a read share.

csv has no types, so its columns stay strings. JSON has; its types are taken from a sample of each file's head. Where
files disagree, integers and floats become float64 and anything else string: a string column holds any value, the ones
that aren't strings as JSON text, so no value is lost to a wrong guess.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sentiment.schema import LINE, RAW, REASON, SOURCE_FILE, SOURCE_ROW

# The row's text and label under one name, whatever they were called in their file.
RAW_TEXT = "__text"
RAW_LABEL = "__label"
# The value of the column that the user calls the id, as text; rejected rows have it too.
RAW_ID = "__id"
# Fields of a JSON object that no sample had shown, as JSON text.
EXTRA = "_extra"
OURS = (SOURCE_FILE, SOURCE_ROW, LINE, REASON, RAW, RAW_TEXT, RAW_LABEL, RAW_ID, EXTRA)

TEXT_NAMES = (
    *("text", "tweet", "review", "content", "sentence", "body", "message", "comment", "full_text", "tweet_text"),
    *("review_text", "reviewtext", "review_body", "comment_text", "post", "caption", "document"),
)
LABEL_NAMES = ("label", "sentiment", "polarity", "target", "class", "airline_sentiment")
# More columns than this and the rest goes to EXTRA: objects keyed by user ids would make a column for each user.
MAX_COLUMNS = 500
# Integers beyond this lose digits in a float64, so they don't merge with floats.
_EXACT_IN_FLOAT = 1 << 53
_BIGINT = "bigint"
_NULL = ("null", pa.null())
_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
_KINDS = {"bool": pa.bool_(), "int": pa.int64(), _BIGINT: pa.int64(), "float": pa.float64(), "string": pa.string()}


@dataclass(slots=True)
class Head:
    """What the first records of a file show.

    Attributes:
        columns: Column name → kind (bool, int, bigint, float, string, null) or Arrow type, in file order.
        strings: Columns in which a string was seen, so that they may hold the text.
        complete: Whether these are all columns there are.
    """

    columns: dict[str, str | pa.DataType] = field(default_factory=dict)
    strings: set[str] = field(default_factory=set)
    complete: bool = True


def kind_of(value: object) -> str:
    """Name the kind of a JSON value.

    Args:
        value: As json.loads gives it.

    Returns:
        bool, int, bigint, float, null, or string for everything else (lists and objects become JSON text).
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if abs(value) <= _EXACT_IN_FLOAT:
            return "int"
        return _BIGINT if -(1 << 63) <= value < 1 << 63 else "string"
    return "float" if isinstance(value, float) else "string"


def head_of_objects(objects: Iterable[Mapping[str, Any]], complete: bool) -> Head:
    """Infer columns from sampled JSON objects.

    Args:
        objects: The sample.
        complete: Whether it is the whole file.

    Returns:
        Columns with their kinds; names that aren't valid Unicode are left to EXTRA.
    """
    head = Head(complete=complete)
    for item in objects:
        for name, value in item.items():
            if name not in head.columns and (len(head.columns) >= MAX_COLUMNS or not encodable(name)):
                head.complete = False
                continue
            head.columns[name] = _merge(head.columns.get(name, "null"), kind_of(value))
            if isinstance(value, str):
                head.strings.add(name)
    return head


def _merge(one: str | pa.DataType, other: str | pa.DataType) -> str | pa.DataType:
    """Find the narrowest kind that holds both."""
    # Arrow takes a string for an alias of a type ("float" is its float32), so kinds and types aren't compared.
    if (isinstance(one, str) == isinstance(other, str) and one == other) or other in _NULL:
        return one
    if one in _NULL:
        return other
    kinds = {_as_kind(one), _as_kind(other)}
    if kinds == {"int", _BIGINT}:
        return _BIGINT
    if kinds == {"int", "float"}:
        return "float"
    return kinds.pop() if len(kinds) == 1 else "string"


def _as_kind(kind: str | pa.DataType) -> str:
    """Name the kind of an Arrow type, as far as it has one; 64 bit may hold more digits than a float keeps."""
    if isinstance(kind, str):
        return kind
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return _BIGINT if kind.bit_width == 64 else "int"
    return "float" if pa.types.is_floating(kind) else "string"


def head_of_schema(schema: pa.Schema) -> Head:
    """Describe a Parquet file's columns; text-like types all become string."""
    head = Head()
    for item in schema:
        type_ = _without_views(item.type.value_type if pa.types.is_dictionary(item.type) else item.type)
        if pa.types.is_large_string(type_):
            type_ = pa.string()
        if pa.types.is_string(type_):
            head.strings.add(item.name)
            type_ = "string"
        head.columns[item.name] = type_
    return head


def _without_views(type_: pa.DataType) -> pa.DataType:
    """The same values in Arrow's older layouts: much of Arrow, `take` for one, doesn't know those of views yet."""
    types = pa.types
    if type_ in _VIEWS:
        return _VIEWS[type_]
    if types.is_struct(type_):
        return pa.struct([item.with_type(_without_views(item.type)) for item in type_])
    if types.is_map(type_):
        return pa.map_(_without_views(type_.key_type), _without_views(type_.item_type))
    is_large = types.is_large_list(type_) or types.is_large_list_view(type_)
    if is_large or types.is_list(type_) or types.is_list_view(type_) or types.is_fixed_size_list(type_):
        item = type_.value_field.with_type(_without_views(type_.value_type))
        size = type_.list_size if types.is_fixed_size_list(type_) else -1
        return pa.large_list(item) if is_large else pa.list_(item, size)
    return type_


def unify(heads: Iterable[Head], reserved: Collection[str]) -> tuple[pa.Schema, tuple[tuple[str, str], ...]]:
    """Make one schema of all files' columns and rename what collides with names of ours.

    Args:
        heads: One per file.
        reserved: Names that may not come in, beside OURS.

    Returns:
        The pass-through schema under the new names, and the renames as (from, to).
    """
    merged: dict[str, str | pa.DataType] = {}
    extra = False
    for head in heads:
        extra |= not head.complete
        for name, kind in head.columns.items():
            merged[name] = _merge(merged.get(name, "null"), kind)
    taken = {*OURS, *reserved}
    renamed = []
    for name in [name for name in merged if name in taken]:
        new = f"input_{name}"
        while new in merged or new in taken:
            new = f"input_{new}"
        renamed.append((name, new))
        taken.add(new)
    new_names = dict(renamed)
    fields = [pa.field(new_names.get(name, name), _arrow_type(kind)) for name, kind in merged.items()]
    return pa.schema([*fields, pa.field(EXTRA, pa.string())] if extra else fields), tuple(renamed)


def _arrow_type(kind: str | pa.DataType) -> pa.DataType:
    if isinstance(kind, str):
        return _KINDS.get(kind, pa.string())
    return pa.string() if pa.types.is_null(kind) else kind


def find_column(wanted: str | None, names: Sequence[str], candidates: Sequence[str]) -> str | None:
    """Find a column by the user's word or among the usual names, in any case of letters.

    Args:
        wanted: The user's word; None to look for the usual names.
        names: The columns there are.
        candidates: The usual names, likeliest first.

    Returns:
        The column's name as the file has it, or None.
    """
    if wanted in names:
        return wanted
    folded: dict[str, str] = {}
    for name in names:
        folded.setdefault(name.strip().lower(), name)
    for candidate in [wanted] if wanted else candidates:
        if candidate.strip().lower() in folded:
            return folded[candidate.strip().lower()]
    return None


def unique_names(header: Sequence[str]) -> tuple[str, ...]:
    """Give a csv header's blank and repeated names one of their own: `column_3`, `id_2`."""
    names: list[str] = []
    for number, name in enumerate(header, 1):
        base = new = name if name.strip() else f"column_{number}"
        again = 2
        while new in names or (new != name and new in header):
            new, again = f"{base}_{again}", again + 1
        names.append(new)
    return tuple(names)


def encodable(text: str) -> bool:
    """Tell whether a string is valid Unicode; JSON's escapes can write half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_text(value: object) -> str:
    """Write any value as JSON text that UTF-8 can hold."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if encodable(text) else json.dumps(value, default=str)
