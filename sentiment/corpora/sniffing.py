"""What the first bytes of a file show: its form, header, encoding and column types.

The form decides how it is read: Sentiment140's csv has no header and mixes latin-1 with UTF-8; any other csv has a
header and is UTF-8 unless the user says otherwise; a `.json` file may be JSON lines or one array.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from sentiment.corpora import imdb, sentiment140
from sentiment.corpora.columns import Head, head_of_objects, head_of_schema, unique_names
from sentiment.corpora.delimited import CsvRecords
from sentiment.corpora.inputs import Found
from sentiment.corpora.json_records import is_array, json_array, json_lines
from sentiment.corpora.lines import MAX_LINE_BYTES, iter_lines, undecodable
from sentiment.corpora.streams import (
    ByteSource,
    UnreachableError,
    UnreadableError,
    open_random_access,
    refuse_unreachable,
)
from sentiment.errors import DataError, brief

_SAMPLE_BYTES = 1 << 18
_SAMPLE_RECORDS = 1000
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(slots=True)
class Sniffed:
    """What a file's head shows; the attributes are those of SourceFile."""

    format: str
    form: str = "tabular"
    encoding: str = "utf-8"
    has_header: bool = False
    head: Head = field(default_factory=Head)
    empty: bool = False
    problem: str | None = None


def sniff(item: Found, encoding: str) -> Sniffed:
    """Look at a file's head.

    Args:
        item: The file.
        encoding: auto, utf-8 or latin-1.

    Returns:
        What it shows; a file that can't be opened has a `problem`.

    Raises:
        DataError: The user must act: UTF-16, or a header that doesn't decode.
    """
    if item.format == "txt" and item.problem is None:
        return Sniffed("txt", "imdb", "utf-8" if encoding == "auto" else encoding, head=imdb.head())
    try:
        if item.problem is not None:
            raise UnreadableError(item.problem)
        if item.format == "parquet":
            return _sniff_parquet(item)
        sample, bom, complete = _sample(item)
    except UnreachableError as error:
        raise DataError(f"{error}; mend that, or leave the file out of --input") from error
    except (UnreadableError, OSError, pa.ArrowException, DataError, UnicodeDecodeError) as error:
        return Sniffed(item.format, problem=brief(error))
    if not sample.strip():
        return Sniffed(item.format, empty=complete, problem=None if complete else "only blank lines at its head")
    if sample.startswith(_UTF16):
        raise DataError(f"{item.path}: UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)")
    settled = "utf-8" if encoding == "auto" else encoding
    if item.format == "jsonl":
        return _sniff_json(sample, settled, complete)
    return _sniff_csv(item, sample, settled, "mixed" if encoding == "auto" and not bom else settled)


def _sniff_parquet(item: Found) -> Sniffed:
    """Take the columns from the footer."""
    try:
        with open_random_access(item.root, item.inner, item.compression) as file:
            schema = pq.ParquetFile(file).schema_arrow
    except (OSError, pa.ArrowException) as error:
        refuse_unreachable(error, item.path)
        raise
    problem = None if len(set(schema.names)) == len(schema.names) else "two columns have the same name"
    return Sniffed("parquet", head=Head() if problem else head_of_schema(schema), problem=problem)


def _sample(item: Found) -> tuple[bytes, bool, bool]:
    """Read the head of a file: at least one whole line, if it has one that short; (bytes, BOM?, whole file?)."""
    source = ByteSource(item.root, item.inner, item.compression)
    sample = bytearray()
    try:
        while len(sample) < _SAMPLE_BYTES or (b"\n" not in sample and len(sample) <= MAX_LINE_BYTES):
            piece = source.read()
            if not piece:
                return bytes(sample), source.bom, True
            sample += piece
    except UnreadableError:
        if not sample:
            raise
    finally:
        source.close()
    whole = sample.rfind(b"\n") + 1
    return bytes(sample[:whole] or sample), source.bom, False


def _sniff_json(sample: bytes, encoding: str, complete: bool) -> Sniffed:
    """Tell lines from an array and take the types of a sample."""
    if is_array(sample):
        batches = json_array(sample.decode("latin-1" if encoding == "latin-1" else "utf-8", "replace"))
        form = "json"
    else:
        batches = json_lines(iter_lines(io.BytesIO(sample).read), encoding)
        form = "jsonl"
    records = [value for batch in batches for value in batch.values]
    objects = [value for value in records[:_SAMPLE_RECORDS] if value is not None]
    head = head_of_objects(objects, complete and len(records) <= _SAMPLE_RECORDS)
    return Sniffed(form, encoding=encoding, head=head)


def _sniff_csv(item: Found, sample: bytes, encoding: str, mixed: str) -> Sniffed:
    """Recognise Sentiment140's form, else take the first record for the header."""
    delimiter = "\t" if item.format == "tsv" else ","

    def rows(how: str) -> CsvRecords:
        return CsvRecords(iter_lines(io.BytesIO(sample).read), None, delimiter, how)

    first = [value for batch in islice(filter(len, rows("mixed")), 1) for value in batch.values[:20]]
    form = sentiment140.recognise(first) if item.format == "csv" else None
    if form:
        names = sentiment140.COLUMNS
        return Sniffed("csv", "sentiment140", mixed, form == "header", _string_head(names))
    batch = next(filter(len, rows(encoding)))
    if batch.values[0] is None:
        try:
            batch.raws[0].decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{item.path}: its header is {undecodable(error)}; if it is latin-1, say --encoding latin-1"
            ) from error
        raise DataError(f"{item.path}: its header (line {batch.lines[0]}) can't be parsed: {batch.reasons[0]}")
    return Sniffed(item.format, "tabular", encoding, True, _string_head(unique_names(batch.values[0])))


def _string_head(names: tuple[str, ...]) -> Head:
    return Head(dict.fromkeys(names, "string"), set(names))
