"""The formats that files may have, each behind the same few functions; to add one, write its module and a line here."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from sentiment.data.byte_stream import InputFile, UnreachableError, UnreadableError
from sentiment.data.csv_format import SENTIMENT140, CsvFormat
from sentiment.data.imdb_format import ImdbFormat
from sentiment.data.json_format import JsonArrayFormat, JsonLinesFormat
from sentiment.data.parquet_format import ParquetFormat
from sentiment.data.schema_inference import InferredSchema
from sentiment.data.validation import ROWS_PER_BATCH, Batch, rejected_rows
from sentiment.errors import DataError, brief

if TYPE_CHECKING:
    from sentiment.data.read_plan import ReadPlan


class Format(Protocol):
    """What reads files of one format."""

    @property
    def extensions(self) -> tuple[str, ...]:
        """Of its files' names, in lower case; none for a format that `detect` of another one finds out."""

    @property
    def layout(self) -> re.Pattern[str] | None:
        """Found in the paths of its files, if their names don't tell it."""

    @property
    def is_combined(self) -> bool:
        """Whether a file has one row, so that many are read as one batch."""

    @property
    def has_extra(self) -> bool:
        """Whether columns that the plan doesn't have are kept, as JSON text."""

    def detect(self, file: InputFile, encoding: str) -> tuple[InputFile, InferredSchema] | None:
        """Look at a file's head.

        Args:
            encoding: auto, utf-8 or latin-1.

        Returns:
            The file with what its head shows, and its columns; None for a file with nothing in it.

        Raises:
            UnreadableError: It can't be read, so that it becomes a rejected row.
            DataError: The user has to do something about it.
        """

    def read(self, files: Sequence[InputFile], plan: ReadPlan, max_rows: int) -> Iterator[Batch]:
        """Read files as batches: each record becomes one row, good or rejected; nothing in a file raises.

        Args:
            files: Consecutive files of the plan without a problem; one, unless they are combined.
            max_rows: Most rows of a batch.

        Yields:
            Batches, none empty.
        """


FORMATS: dict[str, Format] = {
    "csv": CsvFormat(("csv",)),
    "tsv": CsvFormat(("tsv",), delimiter="\t"),
    SENTIMENT140: CsvFormat((), has_neutral=True),
    "jsonl": JsonLinesFormat(),
    "json": JsonArrayFormat(),
    "parquet": ParquetFormat(),
    "imdb": ImdbFormat(),
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ACCEPTED = (
    f"{', '.join(name for format_ in FORMATS.values() for name in format_.extensions)} (each also .gz or .zst), or "
    "IMDB's aclImdb/{train,test}/{pos,neg}"
)


def format_of(inner: str) -> tuple[str, str | None] | None:
    """Read format and compression off a file's path; None for a name that isn't read."""
    stem, extension = posixpath.splitext(inner.lower())
    compression = _COMPRESSIONS.get(extension)
    if compression:
        extension = posixpath.splitext(stem)[1]
    for name, format_ in FORMATS.items():
        if extension[1:] in format_.extensions:
            return name, compression
        if format_.layout is not None and format_.layout.search(inner):
            return name, None
    return None


def detect(file: InputFile, encoding: str) -> tuple[InputFile, InferredSchema] | None:
    """Look at a file's head, as `Format.detect` does; a file that can't be read gets a `problem`.

    Raises:
        DataError: The user must act: UTF-16, a header that doesn't decode, or a store that doesn't answer.
    """
    try:
        if file.problem is not None:
            raise UnreadableError(file.problem)
        return FORMATS[file.format].detect(file, encoding)
    except UnreachableError as error:
        raise DataError(f"{error}; mend that, or leave the file out of --input") from error
    except (UnreadableError, OSError, pa.ArrowException, UnicodeDecodeError) as error:
        return dataclasses.replace(file, problem=brief(error)), InferredSchema()


def batches_of(plan: ReadPlan, max_rows: int = ROWS_PER_BATCH) -> Iterator[Batch]:
    """Read a plan's files, one after another.

    Args:
        max_rows: Most rows of a batch.

    Yields:
        Their batches, none empty; a file with a problem is one rejected row.
    """
    before = 0
    for is_combined, run in itertools.groupby(
        plan.files, lambda file: file.problem is None and FORMATS[file.format].is_combined
    ):
        for files in [list(run)] if is_combined else ([file] for file in run):
            if files[0].problem is not None:
                yield Batch(1, 0, before, functools.partial(rejected_rows, files[0], plan, files[0].problem))
            else:
                for batch in FORMATS[files[0].format].read(files, plan, max_rows):
                    yield dataclasses.replace(batch, position=before + batch.position)
            before += sum(max(0, file.size_bytes) for file in files)


def read_file(file: InputFile, plan: ReadPlan, max_rows: int = ROWS_PER_BATCH) -> Iterator[pa.Table]:
    """Read one file.

    Args:
        max_rows: Most rows of a table.

    Yields:
        Tables of `plan.schema`, none empty.
    """
    return (batch.build() for batch in batches_of(plan.with_files([file]), max_rows))
