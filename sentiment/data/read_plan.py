"""The plan of a read: which files, in which format, with which text column, and the schema all of them share.

Made once on the driver from names, sizes and the first kilobytes of each file; small and picklable, so that every read
task carries what it needs. A file that can't even be opened stays in the plan with its problem and becomes one rejected
row: it doesn't stop the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from sentiment.data.byte_stream import InputFile
from sentiment.data.formats import FORMATS, detect
from sentiment.data.listing import list_inputs
from sentiment.data.schema_inference import (
    LABEL_NAMES,
    RAW_ID,
    RAW_LABEL,
    TEXT_COLUMN,
    TEXT_NAMES,
    InferredSchema,
    find_column,
    unify,
    width_of,
)
from sentiment.errors import DataError
from sentiment.schema import LINE, RAW, REASON, SOURCE_FILE, SOURCE_ROW
from sentiment.storage.filesystems import STORE_THREADS

ENCODINGS = ("auto", "utf-8", "latin-1")
# Of all files together: each table that is read has them all.
MAX_ALL_COLUMNS = 4000


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What will be read.

    Attributes:
        files: Sorted by path.
        columns: The columns passed through, under their new names, with one type each for all files.
        text_columns: Which of them hold the text: one, unless files call theirs differently.
        renamed: (name in the file, name in the output) of columns that would collide with ours.
        skipped: What was passed over, each as "path: why".
        with_labels: Whether tables have a `__label` column.
        need_label: Whether a row without a label is rejected.
        id_column: The column that rejected rows keep, under the name it has in the files.
    """

    files: tuple[InputFile, ...]
    columns: pa.Schema
    text_columns: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()
    with_labels: bool = False
    need_label: bool = False
    id_column: str | None = None

    @property
    def schema(self) -> pa.Schema:
        """Schema of every table read: what came in, then ours."""
        ours = [(SOURCE_FILE, pa.string()), (SOURCE_ROW, pa.int64()), (LINE, pa.int64())]
        ours += [(REASON, pa.string()), (RAW, pa.string())]
        ours += [(TEXT_COLUMN, pa.int8())] if len(self.text_columns) > 1 else []
        ours += [(RAW_LABEL, pa.int8())] if self.with_labels else []
        ours += [(RAW_ID, pa.string())] if self.id_column is not None else []
        return pa.schema([*self.columns, *(pa.field(name, type_) for name, type_ in ours)])

    @property
    def size_bytes(self) -> int:
        """Stored bytes of the files, as far as they are known."""
        return sum(max(0, file.size_bytes) for file in self.files)

    def with_files(self, files: Iterable[InputFile]) -> ReadPlan:
        """The plan of some of the files: what a task needs, for 50,000 files in each would be hundreds of MB."""
        return replace(self, files=tuple(files), skipped=())

    def with_problems(self, files: Iterable[InputFile]) -> ReadPlan:
        """The plan with other descriptions of some of its files."""
        by_path = {file.path: file for file in files}
        return replace(self, files=tuple(by_path.get(file.path, file) for file in self.files))


def texts_of(table: pa.Table, text_columns: Sequence[str]) -> pa.ChunkedArray:
    """The texts of rows that were read."""
    if len(text_columns) == 1:
        return table[text_columns[0]]
    return pc.choose(table[TEXT_COLUMN], *(table[name] for name in text_columns))


def plan(
    inputs: Sequence[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    need_label: bool = False,
    encoding: str = "auto",
    reserved: Collection[str] = (),
) -> ReadPlan:
    """Plan a read.

    Args:
        inputs: Files, folders, globs, or URIs of any of them.
        text_column: The column that holds the text; found by its usual names if None.
        label_column: The column that holds the label; found by its usual names if None and `need_label`.
        id_column: The column whose value rejected rows keep too, if any.
        need_label: Every file must have a label column, and a row without a label is rejected.
        encoding: auto, utf-8 or latin-1, for text formats.
        reserved: Names the caller will add; columns that come in under them are renamed `input_<name>`.

    Raises:
        DataError: Nothing to read (with labels: no row in any csv), an unknown extension, no text column, no label
            column, no id column, or a header that doesn't decode.
    """
    if encoding not in ENCODINGS:
        raise DataError(f"encoding {encoding!r} isn't known; accepted: {', '.join(ENCODINGS)}")
    listed, skipped = list_inputs(inputs)
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        detected = list(pool.map(lambda file: detect(file, encoding), listed))
    skipped += [f"{file.path}: empty" for file, found in zip(listed, detected, strict=True) if found is None]
    files: list[InputFile] = []
    schemas: list[InferredSchema] = []
    widths: dict[str, int] = {}
    for found in filter(None, detected):
        file, schema = _settle(*found, widths, text_column, label_column, need_label)
        files.append(file)
        schemas.append(schema)
    if not files:
        raise DataError(f"nothing to read: {'; '.join(skipped[:5])}")
    # An archive may be empty for a night; there is nothing to train on or to measure with.
    if need_label and not any(schema.has_rows for schema in schemas):
        raise DataError(f"{files[0].path} ({len(files)} file(s)): 0 rows, there is nothing behind the header")
    _refuse_unusable(files, label_column, id_column)
    columns, renamed = unify(schemas, reserved)
    new_names = dict(renamed)
    texts = dict.fromkeys(new_names.get(file.text_column, file.text_column) for file in files if file.text_column)
    with_labels = need_label or label_column is not None
    return ReadPlan(tuple(files), columns, tuple(texts), renamed, tuple(skipped), with_labels, need_label, id_column)


def _settle(
    file: InputFile,
    schema: InferredSchema,
    widths: dict[str, int],
    text: str | None,
    label: str | None,
    need_label: bool,
) -> tuple[InputFile, InferredSchema]:
    """Settle a file's text and label columns, and which columns it adds to those of other files (`widths`)."""
    more = {name: width_of(kind) for name, kind in schema.columns.items()}
    more = {name: width for name, width in more.items() if width > widths.get(name, 0)}
    is_too_wide = bool(more) and sum((widths | more).values()) > MAX_ALL_COLUMNS
    if is_too_wide and not FORMATS[file.format].has_extra:
        said = f"with its columns there are over {MAX_ALL_COLUMNS:,} in all files; read them in several runs"
        return replace(file, problem=said, columns=(), text_column=None), InferredSchema()
    if file.problem is None and file.text_column is None:
        file = _find_columns(file, schema, text, label, need_label)
    if is_too_wide:
        kept = {name: kind for name, kind in schema.columns.items() if name in widths}
        schema = InferredSchema(kept, is_complete=False)
    else:
        widths.update(more)
    if file.text_column is not None:
        schema.columns[file.text_column] = "string"  # Even if the sample had numbers there: those are rejected.
    return file, schema


def _find_columns(
    file: InputFile, schema: InferredSchema, text: str | None, label: str | None, need_label: bool
) -> InputFile:
    """Find a file's text and label columns."""
    names = list(schema.columns)
    if not names:  # JSON lines whose head is broken: each row is validated when it is read.
        return replace(file, text_column=text or TEXT_NAMES[0])
    # One that holds strings first, then any of the right name.
    strings = [name for name in names if name in schema.strings]
    found = find_column(text, strings, TEXT_NAMES) or find_column(text, names, TEXT_NAMES)
    if found is None:
        hint = f"no column {text!r}" if text else f"no text column (looked for {', '.join(TEXT_NAMES)})"
        raise DataError(f"{file.path}: {hint}; it has {_listed(names)}. Name it with --text-column")
    kind = schema.columns[found]
    # A column of nulls alone has no type: its rows have no text, which doesn't concern the other files.
    if isinstance(kind, pa.DataType) and not pa.types.is_null(kind):
        said = f"column {found!r} holds {kind}, not text; name the text column with --text-column"
        raise DataError(f"{file.path}: {said}")
    label_found = None
    if need_label or label is not None:
        label_found = find_column(label, [name for name in names if name != found], LABEL_NAMES)
    if need_label and label_found is None:
        hint = f"no column {label!r}" if label else f"no label column (looked for {', '.join(LABEL_NAMES)})"
        raise DataError(f"{file.path}: {hint}; it has {_listed(names)}. Name it with --label-column")
    return replace(file, text_column=found, label_column=label_found)


def _refuse_unusable(files: Sequence[InputFile], label_column: str | None, id_column: str | None) -> None:
    """Refuse files none of which has what is needed."""
    first = files[0]
    if all(file.problem for file in files):
        raise DataError(f"no file can be read; {first.path}: {first.problem}")
    if not any(file.columns for file in files):
        raise DataError(f"no record can be read at the head of {first.path} ({len(files)} file(s)); is it JSON lines?")
    for wanted, has_it in (
        (id_column, any(id_column in file.columns for file in files)),
        (label_column, any(file.label_column for file in files)),
    ):
        if wanted is not None and not has_it:
            raise DataError(f"no column {wanted!r} in any file; {first.path} has {_listed(first.columns)}")


def refuse_changed(plan: ReadPlan, inputs: Sequence[str]) -> None:
    """See that the files are still those that were planned: a reader that began anew has read the new content.

    Args:
        inputs: As they were planned.

    Raises:
        DataError: A file has changed or gone since.
    """
    now = {(file.root, file.inner): (file.size_bytes, file.mtime_ns) for file in list_inputs(inputs)[0]}
    changed = [
        file.path
        for file in plan.files
        if not file.problem and now.get((file.root, file.inner)) != (file.size_bytes, file.mtime_ns)
    ]
    if changed:
        more = f" (and {len(changed) - 1:,} more)" if len(changed) > 1 else ""
        raise DataError(
            f"{min(changed)}{more} changed while it was read: rows may be missing or there twice; start anew with "
            "--overwrite once nobody writes to it"
        )


def _listed(names: Sequence[str]) -> str:
    """The columns a file has, unless they look like a row of data: a user's text has no place in a message."""
    if any(len(name) > 40 or len(name.split()) > 3 or name.strip().isdigit() for name in names):
        return f"{len(names)} columns whose names look like a row of data (no header row?)"
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    return (shown or "none that could be read") + (f" and {len(names) - 20} more" if len(names) > 20 else "")
