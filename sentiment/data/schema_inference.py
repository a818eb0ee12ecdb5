"""Columns: which one holds the text, which the label, and the one Arrow schema that all files of a read share.

csv has no types, so its columns stay strings. JSON has; its types are taken from a sample of each file's head. Where
files disagree, integers and floats become float64 and anything else string: a string column holds any value, the ones
that aren't strings as JSON text, so no value is lost to a wrong guess.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

from sentiment.data.byte_stream import UnreadableError
from sentiment.data.parquet_process import MAX_COLUMNS
from sentiment.schema import LINE, RAW, REASON, SOURCE_FILE, SOURCE_ROW

# Which of the plan's text columns has the row's text; there only if files call theirs differently.
TEXT_COLUMN = "__text_column"
# The row's label, 0 or 1, whatever its column was called in its file.
RAW_LABEL = "__label"
# The value of the column that the user calls the id, as text; rejected rows have it too.
RAW_ID = "__id"
# Fields of a JSON object that no sample had shown, as JSON text.
EXTRA = "_extra"
OURS = (SOURCE_FILE, SOURCE_ROW, LINE, REASON, RAW, TEXT_COLUMN, RAW_LABEL, RAW_ID, EXTRA)

TEXT_NAMES = (
    *("text", "tweet", "review", "content", "sentence", "body", "message", "comment", "full_text", "tweet_text"),
    *("review_text", "reviewtext", "review_body", "comment_text", "post", "caption", "document"),
)
LABEL_NAMES = ("label", "sentiment", "polarity", "target", "class", "airline_sentiment")
# More fields of objects than this and the rest goes to EXTRA: those keyed by user ids would make a column for each.
# So does a field whose name is longer.
MAX_FIELDS, MAX_NAME_LENGTH = 500, 1000
# Integers beyond this lose digits in a float64, so they don't merge with floats.
_MAX_EXACT_IN_FLOAT = 1 << 53
_BIGINT = "bigint"
# Bytes or elements of a fixed size that is kept as one.
_MAX_FIXED = 64
_NULL = ("null", pa.null())
_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
_KINDS = {"bool": pa.bool_(), "int": pa.int64(), _BIGINT: pa.int64(), "float": pa.float64(), "string": pa.string()}
Kind: TypeAlias = str | pa.DataType


@dataclass(slots=True)
class InferredSchema:
    """What the first records of a file show of its columns.

    Attributes:
        columns: Column name → kind (bool, int, bigint, float, string, null) or Arrow type, in file order.
        strings: Columns in which a string was seen, so that they may hold the text.
        is_complete: Whether these are all columns there are.
        has_rows: Whether there is anything behind a header.
    """

    columns: dict[str, Kind] = field(default_factory=dict)
    strings: set[str] = field(default_factory=set)
    is_complete: bool = True
    has_rows: bool = True

    @classmethod
    def of_strings(cls, names: Iterable[str]) -> InferredSchema:
        """Columns of strings, as csv has."""
        columns: dict[str, Kind] = dict.fromkeys(names, "string")
        return cls(columns, set(columns))

    @classmethod
    def of_objects(cls, objects: Iterable[Mapping[str, Any]], *, is_complete: bool) -> InferredSchema:
        """Infer columns from sampled JSON objects; names that aren't valid Unicode, or are very long, go to EXTRA.

        Args:
            objects: The sample.
            is_complete: Whether it is the whole file.
        """
        schema = cls(is_complete=is_complete)
        for item in objects:
            for name, value in item.items():
                is_column = len(name) <= MAX_NAME_LENGTH and len(schema.columns) < MAX_FIELDS and encodable(name)
                if name not in schema.columns and not is_column:
                    schema.is_complete = False
                    continue
                schema.columns[name] = _merge(schema.columns.get(name, "null"), _kind_of(value))
                if isinstance(value, str):
                    schema.strings.add(name)
        return schema

    @classmethod
    def of_arrow(cls, arrow: pa.Schema) -> InferredSchema:
        """Take a Parquet file's columns; text-like types all become string."""
        schema = cls()
        for item in arrow:
            kind: Kind = _lean(item.type.value_type if pa.types.is_dictionary(item.type) else item.type)
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                schema.strings.add(item.name)
                kind = "string"
            schema.columns[item.name] = kind
        return schema


def _kind_of(value: object) -> str:
    """Name the kind of a JSON value; lists and objects become JSON text."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if abs(value) <= _MAX_EXACT_IN_FLOAT:
            return "int"
        return _BIGINT if -(1 << 63) <= value < 1 << 63 else "string"
    return "null" if value is None else "float" if isinstance(value, float) else "string"


def _merge(one: Kind, other: Kind) -> Kind:
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


def _as_kind(kind: Kind) -> str:
    """Name the kind of an Arrow type, as far as it has one; 64 bit may hold more digits than a float keeps."""
    if isinstance(kind, str):
        return kind
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return _BIGINT if kind.bit_width == 64 else "int"
    return "float" if pa.types.is_floating(kind) else "string"


def _lean(type_: pa.DataType) -> pa.DataType:
    """The same values in Arrow's older layouts, and in those in which a null takes little.

    Much of Arrow, `take` for one, doesn't know views yet; and a null of a fixed size takes that size, in each row of
    each file that lacks the column.
    """
    types, lean = pa.types, type_
    is_large = types.is_large_list(type_) or types.is_large_list_view(type_)
    if type_ in _VIEWS:
        lean = _VIEWS[type_]
    elif isinstance(type_, pa.BaseExtensionType):
        storage = _lean(type_.storage_type)
        lean = type_ if storage == type_.storage_type else storage
    elif types.is_fixed_size_binary(type_) and type_.byte_width > _MAX_FIXED:
        lean = pa.binary()
    elif types.is_struct(type_):
        lean = pa.struct([item.with_type(_lean(item.type)) for item in type_])
    elif types.is_map(type_):
        lean = pa.map_(_lean(type_.key_type), _lean(type_.item_type))
    elif is_large or types.is_list(type_) or types.is_list_view(type_) or types.is_fixed_size_list(type_):
        item = type_.value_field.with_type(_lean(type_.value_type))
        is_fixed = types.is_fixed_size_list(type_) and type_.list_size <= _MAX_FIXED
        lean = pa.large_list(item) if is_large else pa.list_(item, type_.list_size if is_fixed else -1)
    return lean


def width_of(kind: Kind) -> int:
    """How many columns of 8 bytes a null of a kind takes, about; a struct takes those of its fields."""
    if isinstance(kind, str):
        return 1
    if isinstance(kind, pa.BaseExtensionType):
        return width_of(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        return max(1, int(kind.list_size) * width_of(kind.value_type))
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_decimal(kind):
        return max(1, int(kind.byte_width) // 8)
    return sum(width_of(item.type) for item in kind) if pa.types.is_struct(kind) else 1


def unify(
    schemas: Iterable[InferredSchema], reserved: Collection[str]
) -> tuple[pa.Schema, tuple[tuple[str, str], ...]]:
    """Make one schema of all files' columns and rename what collides with names of ours.

    Args:
        schemas: One per file.
        reserved: Names that may not come in, beside OURS.

    Returns:
        The pass-through schema under the new names, and the renames as (from, to).
    """
    merged: dict[str, Kind] = {}
    has_extra = False
    for schema in schemas:
        has_extra |= not schema.is_complete
        for name, kind in schema.columns.items():
            merged[name] = _merge(merged.get(name, "null"), kind)
    taken = {*OURS, *reserved}
    new_names: dict[str, str] = {}
    for name in [name for name in merged if name in taken]:
        new = f"input_{name}"
        while new in merged or new in taken:
            new = f"input_{new}"
        new_names[name] = new
        taken.add(new)
    fields = []
    for name, kind in merged.items():
        arrow = _KINDS.get(kind, pa.string()) if isinstance(kind, str) else kind
        fields.append(pa.field(new_names.get(name, name), pa.string() if pa.types.is_null(arrow) else arrow))
    return pa.schema([*fields, pa.field(EXTRA, pa.string())] if has_extra else fields), tuple(new_names.items())


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
    keys = [name.strip().lower() for name in ([wanted] if wanted else candidates)]
    return next((folded[key] for key in keys if key in folded), None)


def unique_names(header: Sequence[str]) -> tuple[str, ...]:
    """Give a csv header's blank and repeated names one of their own: `column_3`, `id_2`."""
    names: dict[str, None] = {}
    given = set(header)
    repeats: Counter[str] = Counter()
    for number, name in enumerate(header, 1):
        base = new = name if name.strip() else f"column_{number}"
        while new in names or (new != name and new in given):
            repeats[base] += 1
            new = f"{base}_{repeats[base] + 1}"
        names[new] = None
    return tuple(names)


def check_names(names: Sequence[str]) -> None:
    """Refuse a table with too many columns or too long a name.

    Raises:
        UnreadableError: It isn't read for that.
    """
    longest = max(map(len, names), default=0)
    if longest > MAX_NAME_LENGTH:
        raise UnreadableError(f"a column's name has {longest:,} characters, at most {MAX_NAME_LENGTH:,} are accepted")
    if len(names) > MAX_COLUMNS:
        raise UnreadableError(f"{len(names):,} columns, at most {MAX_COLUMNS:,} are read")


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
