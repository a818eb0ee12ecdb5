"""The plan of a read: which files, in which form, with which text column, and the schema all of them share.

Made once on the driver from names, sizes and the first kilobytes of each file; small and picklable, so that every read
task carries what it needs. A file that can't even be opened stays in the plan with its problem and becomes one rejected
row: it doesn't stop the others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from sentiment.corpora import imdb
from sentiment.corpora.columns import LABEL_NAMES, RAW_ID, RAW_LABEL, RAW_TEXT, TEXT_NAMES, Head, find_column, unify
from sentiment.corpora.inputs import Found, list_inputs
from sentiment.corpora.sniffing import Sniffed, sniff
from sentiment.errors import DataError
from sentiment.schema import LINE, RAW, REASON, SOURCE_FILE, SOURCE_ROW
from sentiment.stores import STORE_THREADS

ENCODINGS = ("auto", "utf-8", "latin-1")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read.

    Attributes:
        path: The path or URI as the user would write it; every row's `source_file`.
        root: URI naming the file system; empty for the local disk.
        inner: Path inside that file system.
        format: csv, tsv, jsonl, json (a whole-file array), parquet or txt.
        compression: gzip, zstd or None.
        size_bytes: Size as stored; -1 where unknown.
        mtime_ns: Last change, where known.
        form: sentiment140, imdb or tabular.
        columns: Column names as in the file; those of the sample for JSON.
        has_header: Whether the first csv record is the header.
        encoding: utf-8, latin-1 or mixed (UTF-8 if the line can be, else latin-1).
        text_column: Where the text is; None only in a file with a problem.
        label_column: Where the label is, if labels are wanted and there is one.
        problem: Why the file couldn't be opened while planning.
    """

    path: str
    root: str
    inner: str
    format: str
    compression: str | None
    size_bytes: int
    mtime_ns: int | None
    form: str
    columns: tuple[str, ...]
    has_header: bool
    encoding: str
    text_column: str | None
    label_column: str | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What will be read.

    Attributes:
        files: Sorted by path.
        columns: The columns passed through, under their new names, with one type each for all files.
        renamed: (name in the file, name in the output) of columns that would collide with ours.
        skipped: What was passed over, each as "path: why".
        with_labels: Whether tables have a `__label` column.
        need_label: Whether a row without a label is rejected.
        id_column: The column that rejected rows keep, under the name it has in the files.
    """

    files: tuple[SourceFile, ...]
    columns: pa.Schema
    renamed: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()
    with_labels: bool = False
    need_label: bool = False
    id_column: str | None = None

    @property
    def schema(self) -> pa.Schema:
        """Schema of every table read: what came in, then ours."""
        ours = [
            pa.field(SOURCE_FILE, pa.string()),
            pa.field(SOURCE_ROW, pa.int64()),
            pa.field(LINE, pa.int64()),
            pa.field(REASON, pa.string()),
            pa.field(RAW, pa.string()),
            pa.field(RAW_TEXT, pa.string()),
        ]
        labels = [pa.field(RAW_LABEL, pa.int8())] if self.with_labels else []
        ids = [pa.field(RAW_ID, pa.string())] if self.id_column is not None else []
        return pa.schema([*self.columns, *ours, *labels, *ids])


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

    Returns:
        The plan.

    Raises:
        DataError: Nothing to read, an unknown extension, no text column, no label column, no id column, or a header
            that doesn't decode.
    """
    if encoding not in ENCODINGS:
        raise DataError(f"encoding {encoding!r} isn't known; accepted: {', '.join(ENCODINGS)}")
    found, skipped = list_inputs(inputs)
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        sniffed = list(pool.map(lambda item: sniff(item, encoding), found))
    files, heads = [], []
    for item, seen in zip(found, sniffed, strict=True):
        if seen.empty:
            skipped.append(f"{item.path}: empty")
            continue
        file = _source(item, seen, text_column, label_column, need_label)
        files.append(file)
        heads.append(seen.head)
        if file.text_column is not None:
            seen.head.columns[file.text_column] = "string"  # Even if the sample had numbers there: those are rejected.
    if not files:
        raise DataError(f"nothing to read: {'; '.join(skipped[:5])}")
    if all(file.problem for file in files):
        raise DataError(f"no file can be read; {files[0].path}: {files[0].problem}")
    if not any(file.columns for file in files):
        raise DataError(
            f"no record can be read at the head of {files[0].path} ({len(files)} file(s)); is it JSON lines?"
        )
    if id_column is not None and not any(id_column in file.columns for file in files):
        raise DataError(f"no column {id_column!r} in any file; {files[0].path} has {_listed(files[0].columns)}")
    if label_column is not None and not any(file.label_column for file in files):
        raise DataError(f"no column {label_column!r} in any file; {files[0].path} has {_listed(files[0].columns)}")
    columns, renamed = unify(heads, reserved)
    with_labels = need_label or label_column is not None
    return ReadPlan(tuple(files), columns, renamed, tuple(skipped), with_labels, need_label, id_column)


def refuse_changed(plan: ReadPlan, inputs: Sequence[str]) -> None:
    """See that the files are still those that were planned: a reader that began anew has read the new content.

    Args:
        plan: What was read.
        inputs: As they were planned.

    Raises:
        DataError: A file has changed or gone since.
    """
    now = {(item.root, item.inner): (item.size_bytes, item.mtime_ns) for item in list_inputs(inputs)[0]}
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


def _source(item: Found, seen: Sniffed, text: str | None, label: str | None, need_label: bool) -> SourceFile:
    """Settle a file's text and label columns."""
    head, names = seen.head, list(seen.head.columns)
    text_found = label_found = None
    if seen.form == "imdb":
        text_found, label_found = imdb.TEXT, imdb.LABEL
    elif not seen.problem and not names:
        text_found = text or TEXT_NAMES[0]  # JSON lines whose head is broken: each row is judged when it is read.
    elif not seen.problem:
        text_found = _text_column(item.path, text, head)
        if need_label or label is not None:
            label_found = find_column(label, [name for name in names if name != text_found], LABEL_NAMES)
        if need_label and label_found is None:
            hint = f"no column {label!r}" if label else f"no label column (looked for {', '.join(LABEL_NAMES)})"
            raise DataError(f"{item.path}: {hint}; it has {_listed(names)}. Name it with --label-column")
    return SourceFile(
        *(item.path, item.root, item.inner, seen.format, item.compression, item.size_bytes, item.mtime_ns),
        *(seen.form, tuple(names), seen.has_header, seen.encoding, text_found, label_found, seen.problem),
    )


def _text_column(path: str, wanted: str | None, head: Head) -> str:
    """Find the text column: one that holds strings first, then any of the right name."""
    names = list(head.columns)
    strings = [name for name in names if name in head.strings]
    found = find_column(wanted, strings, TEXT_NAMES) or find_column(wanted, names, TEXT_NAMES)
    if found is None:
        hint = f"no column {wanted!r}" if wanted else f"no text column (looked for {', '.join(TEXT_NAMES)})"
        raise DataError(f"{path}: {hint}; it has {_listed(names)}. Name it with --text-column")
    kind = head.columns[found]
    # A column of nulls alone has no type: its rows have no text, which doesn't concern the other files.
    if isinstance(kind, pa.DataType) and not pa.types.is_null(kind):
        raise DataError(f"{path}: column {found!r} holds {kind}, not text; name the text column with --text-column")
    return found


def _listed(names: Sequence[str]) -> str:
    """The columns a file has, unless they look like a row of data: a user's text has no place in a message."""
    if any(len(name) > 40 or len(name.split()) > 3 or name.strip().isdigit() for name in names):
        return f"{len(names)} columns whose names look like a row of data (no header row?)"
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    return (shown or "none that could be read") + (f" and {len(names) - 20} more" if len(names) > 20 else "")
