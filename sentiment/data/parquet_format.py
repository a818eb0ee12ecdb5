"""Parquet files to tables of the plan's schema, row group by row group.

A file is parsed by another process (`parquet_process.py`), which may die of it; that process is kept for the files that
follow, one that has died is replaced. Text may be a string, large string or dictionary column. Parquet doesn't promise
that its strings are valid UTF-8, so each batch is checked. Where a row group can't be read its rows are rejected, each
of them; the other groups are read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from sentiment.data import parquet_process
from sentiment.data.byte_stream import (
    MAX_TAIL_BYTES,
    InputFile,
    UnreachableError,
    UnreadableError,
    inflated_tail,
    open_random_access,
    refuse_unreachable,
)
from sentiment.data.parquet_process import size_of
from sentiment.data.schema_inference import InferredSchema, check_names, json_text
from sentiment.data.validation import (
    BYTES_PER_BATCH,
    MAX_VALUE_BYTES,
    Batch,
    column_array,
    make_table,
    rejected_rows,
    undecodable,
    validate,
)
from sentiment.errors import DataError, brief
from sentiment.schema import RAW_LIMIT

if TYPE_CHECKING:
    from sentiment.data.read_plan import ReadPlan

# A nested value of a rejected row is shown up to so many bytes in memory: more than its characters that are kept.
_NESTED_RAW_BYTES = 1 << 20
# Longer than the CPU time that a parser has: by then it has been stopped.
_PARSER_TIMEOUT_S = 600
# What is read of a file's end before it is opened, as Arrow does, and of a footer that is larger.
_TAIL_BYTES, _MAX_FOOTER_BYTES = 1 << 16, 1 << 20
_MAX_IDLE_PARSERS = 2
_KEPT_VARIABLES = ("PATH", "HOME", "PYTHON", "LD_", "DYLD_", "LANG", "LC_", "CONDA", "VIRTUAL_ENV")
_idle_parsers: list[_Parser] = []
_detect_lock = threading.Lock()


class ParquetFormat:
    """A format of `sentiment.data.formats`."""

    extensions: tuple[str, ...] = ("parquet",)
    layout = None
    is_combined = False
    has_extra = False

    def detect(self, file: InputFile, encoding: str) -> tuple[InputFile, InferredSchema]:
        """Take the columns from the footer."""
        with contextlib.ExitStack() as stack:
            try:
                stored = None if file.compression else stack.enter_context(open_random_access(file))
                tail = inflated_tail(file) if stored is None else tail_of(stored)
                # What takes long is the store's answer; then one parser is enough for all threads.
                with _detect_lock, ParquetFile(stored, *tail, file.size_bytes) as parquet:
                    names = parquet.schema.names
                    schema = InferredSchema.of_arrow(parquet.schema)
            except (OSError, pa.ArrowException) as error:
                refuse_unreachable(error, file.path)
                raise
        if len(set(names)) < len(names):
            raise UnreadableError("two columns have the same name")
        check_names(names)
        return replace(file, columns=tuple(names)), schema

    def read(self, files: Sequence[InputFile], plan: ReadPlan, max_rows: int) -> Iterator[Batch]:
        """Read a file in batches, which its metadata alone decides; a row group is read if one of them is built."""
        (file,) = files
        with contextlib.ExitStack() as stack:
            try:
                stored = stack.enter_context(open_random_access(file))
                parquet = stack.enter_context(ParquetFile(stored, *tail_of(stored), file.size_bytes))
            except (OSError, pa.ArrowException, DataError, UnreadableError) as error:
                if not isinstance(error, UnreadableError):
                    refuse_unreachable(error, file.path)
                yield Batch(1, 0, 0, functools.partial(rejected_rows, file, plan, brief(error)))
                return
            first_row, all_rows = 0, max(1, sum(parquet.rows))
            for group, count in enumerate(parquet.rows):
                size = parquet.memory(group) if count else 0
                rows = max(1, min(max_rows, BYTES_PER_BATCH * count // max(1, size)))
                for start in range(0, count, rows):
                    build = functools.partial(_build, parquet, group, rows, start, file, plan, first_row)
                    num_rows = min(rows, count - start)
                    first_row += num_rows
                    position = max(0, file.size_bytes) * first_row // all_rows
                    yield Batch(num_rows, size * num_rows // count, position, build)


def _build(
    parquet: ParquetFile, group: int, rows: int, start: int, file: InputFile, plan: ReadPlan, first_row: int
) -> pa.Table:
    """Make the table of a batch; where it can't be read each of its rows is rejected: the footer says how many."""
    count = min(rows, parquet.rows[group] - start)
    try:
        batch = parquet.batch(group, rows, start)
        if batch is None or batch.num_rows != count:
            raise parquet.fail(group, "fewer rows than its footer says")
        return _table(batch, file, plan, first_row)
    except (UnreadableError, pa.ArrowException) as error:
        return rejected_rows(file, plan, brief(error), first_row, count)


def _table(batch: pa.RecordBatch, file: InputFile, plan: ReadPlan, first_row: int) -> pa.Table:
    """Validate the rows of a batch and give it the plan's schema."""
    old_names = {new: old for old, new in plan.renamed}
    problems: dict[int, str] = {}
    given = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns: dict[str, pa.Array] = {}
    for item in plan.columns:
        name = old_names.get(item.name, item.name)
        if name in given and name in file.columns:
            columns[name] = _column(given[name], item.type, name, problems)
    count = batch.num_rows

    def values_of(name: str | None) -> list[Any]:
        return columns[name].to_pylist() if name in columns else [None] * count

    reasons = [problems.get(index) for index in range(count)]
    labels = values_of(file.label_column) if plan.with_labels else None
    known = validate(values_of(file.text_column), labels, reasons, plan)
    return make_table(
        columns,
        file,
        plan,
        first_row,
        lines=range(first_row + 1, first_row + count + 1),
        reasons=reasons,
        raw_of=lambda index: _raw(given, index),
        labels=known,
        ids=None if plan.id_column is None else values_of(plan.id_column),
    )


def _column(array: pa.Array, type_: pa.DataType, name: str, problems: dict[int, str]) -> pa.Array:
    """Give a column the plan's type; rows whose value can't have it, isn't UTF-8 or is too long get a reason."""
    shown = f"column {name[:40]!a}"
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    if pa.types.is_string(array.type):
        try:
            array.validate(full=True)
        except pa.ArrowException:
            texts: list[str | None] = []
            for index, value in enumerate(array.cast(pa.binary()).to_pylist()):
                try:
                    texts.append(None if value is None else value.decode())
                except UnicodeDecodeError as error:
                    problems.setdefault(index, f"{shown} is {undecodable(error)}")
                    texts.append(None)
            array = pa.array(texts, pa.string())
    is_text = pa.types.is_string(array.type) or pa.types.is_binary(array.type)
    if is_text and array.nbytes > MAX_VALUE_BYTES:
        overlong = pc.fill_null(pc.greater(pc.binary_length(array), MAX_VALUE_BYTES), False)
        for index in pc.indices_nonzero(overlong).to_pylist():
            problems.setdefault(index, f"{shown} is longer than {MAX_VALUE_BYTES >> 20} MiB")
        array = pc.if_else(overlong, None, array)
    if array.type == type_:
        return array
    if not pa.types.is_string(type_):
        with contextlib.suppress(pa.ArrowException):
            return array.cast(type_)
    values: list[Any] = []
    for index, value in enumerate(array):
        try:
            values.append(value.as_py())
        except (pa.ArrowException, ValueError, OverflowError):  # A day Python can't hold, or bad bytes in a list.
            problems.setdefault(index, f"{shown} is a {value.type} that can't be {type_}")
            values.append(None)
    return column_array(values, type_, name, problems)


def _raw(columns: Mapping[str, pa.Array], index: int) -> str:
    """Write a row as JSON text, cut to RAW_LIMIT characters."""
    row: dict[str, Any] = {}
    for name, array in columns.items():
        value = array[index]
        is_nested = pa.types.is_nested(value.type)
        try:
            # What is cut away needn't be made of a list of millions.
            is_small = not is_nested or size_of(array[index : index + 1]) <= _NESTED_RAW_BYTES
            row[name] = value.as_py() if is_small else str(value.type)
        except UnicodeDecodeError:
            content = str(value.type).encode() if is_nested else value.cast(pa.binary()).as_py()
            row[name] = content.decode("utf-8", "backslashreplace")
        except (pa.ArrowException, ValueError, OverflowError):
            row[name] = str(value.type)  # A timestamp Python can't hold, say.
    return json_text(row)[:RAW_LIMIT]


class _Parser:
    """A process that parses one file at a time."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        command = [sys.executable, "-P", parquet_process.__file__, str(theirs.fileno())]
        # Arrow's other memory pools reserve all of the memory that the process may have, glibc's arenas 64 MiB each.
        # Of ours it gets what Python needs to start, and no credentials.
        environment = {name: value for name, value in os.environ.items() if name.startswith(_KEPT_VARIABLES)}
        environment |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
        quiet = subprocess.DEVNULL
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603  (a module of ours)
                command, pass_fds=[theirs.fileno()], stdin=quiet, stdout=quiet, stderr=quiet, env=environment
            )

    def send(self, content: bytes) -> None:
        """Send a message; raises as `_died` does."""
        try:
            self.connection.send_bytes(content)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> bytes:
        """Wait for a message; raises as `_died` does."""
        try:
            if self.connection.poll(_PARSER_TIMEOUT_S):
                return self.connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._died() from error
        self.process.kill()
        raise self._died()

    def _died(self) -> UnreadableError | UnreachableError:
        """Why there is no answer: it has died of the file, or somebody else has ended or stopped it."""
        code = self.end()
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            return UnreachableError("the process that parses Parquet was killed or stopped; is there enough memory?")
        if code == -signal.SIGXCPU:
            return UnreadableError(f"it takes over {parquet_process.CPU_S} s of CPU time to parse")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return UnreadableError(f"its parser crashed ({how})")

    def end(self) -> int:
        """End the process, if it hasn't ended by itself; gives its exit code."""
        self.connection.close()
        try:
            return self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _free_parser() -> _Parser:
    while _idle_parsers:
        with contextlib.suppress(IndexError):  # Another thread has just taken the last.
            parser = _idle_parsers.pop()
            if parser.process.poll() is None:
                return parser
            parser.end()
    return _Parser()


def tail_of(stored: pa.NativeFile) -> tuple[bytes, int]:
    """Read the end of a file: its footer, unless that is very large.

    Returns:
        Its last bytes, and how many there are in all.
    """
    size = stored.size()
    tail = _read(stored, max(0, size - _TAIL_BYTES), _TAIL_BYTES)
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    return (_read(stored, size - footer, footer) if len(tail) < footer < min(size, _MAX_FOOTER_BYTES) else tail), size


def _read(stored: pa.NativeFile, start: int, size: int) -> bytes:
    stored.seek(start)
    content: bytes = stored.read(size)
    return content


class ParquetFile:
    """A file that is open in a parser, for a `with` block.

    Args:
        stored: The file, at any place of which can be read; None if its tail is all that is needed.
        tail: Its last bytes.
        size_bytes: Its size.
        stored_bytes: Its size as it is stored, compressed perhaps.

    Attributes:
        rows: Of each row group.
        schema: Of all of them, without metadata.
    """

    def __init__(self, stored: pa.NativeFile | None, tail: bytes, size_bytes: int, stored_bytes: int) -> None:
        """Open the file.

        Raises:
            UnreadableError: It isn't Parquet, or beyond a bound.
            UnreachableError: Its parser was ended, but not by the file.
            OSError: It can't be read.
        """
        self._stored = stored
        self._failure: str | None = None
        self._failed_groups: dict[int, str] = {}
        self.parser = _free_parser()
        try:
            facts, schema = self._ask({"open": size_bytes, "stored": stored_bytes}, tail)
            self.rows: list[int] = facts["rows"]
            self.schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(schema))
        except BaseException:
            self.__exit__()
            raise

    def memory(self, group: int) -> int:
        """What a row group takes in memory, in bytes, about; 0 if it can't be read."""
        try:
            size: int = self._ask({"size": group})[0]["size"]
        except UnreadableError as error:
            self.fail(group, str(error))
            return 0
        return size

    def batch(self, group: int, rows: int, start: int) -> pa.RecordBatch | None:
        """Read rows of a row group, which is read from its beginning in batches; those that nobody wants are dropped.

        Args:
            rows: Rows of each batch, the last one aside; the same for all of a group.
            start: Number of the first row in the group, above that of the batch before.

        Raises:
            UnreadableError: They can't be read.
            UnreachableError: They can't be read now.
        """
        if group in self._failed_groups:
            raise UnreadableError(self._failed_groups[group])
        try:
            content = self._ask({"batch": group, "rows": rows, "start": start})[1]
            return pa.ipc.open_stream(content).read_next_batch() if content else None
        except (OSError, pa.ArrowException, UnreadableError) as error:
            if not isinstance(error, UnreadableError):
                refuse_unreachable(error, "a Parquet file")
            raise self.fail(group, brief(error)) from error

    def fail(self, group: int, why: str) -> UnreadableError:
        """Give up a row group."""
        self._failed_groups[group] = why
        return UnreadableError(why)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the parser to others."""
        if self._failure is None:
            self._failure = "it was closed"
            if len(_idle_parsers) < _MAX_IDLE_PARSERS:
                _idle_parsers.append(self.parser)
            else:
                self.parser.end()

    def _ask(self, request: dict[str, Any], tail: bytes | None = None) -> tuple[dict[str, Any], bytes]:
        """Ask the parser, and give it what it reads for its answer.

        Raises:
            UnreadableError: It says why it can't answer, or it has died; then nothing more of the file can be read.
            UnreachableError: It was ended, but not by the file.
            OSError: The file can't be read.
        """
        if self._failure is not None:
            raise UnreadableError(self._failure)
        try:
            self.parser.send(json.dumps(request).encode())
            if tail is not None:
                self.parser.send(tail)
            while "read" in (answer := json.loads(self.parser.receive())):
                if self._stored is None:
                    raise UnreadableError(f"its footer takes over {MAX_TAIL_BYTES >> 20} MiB")
                self.parser.send(_read(self._stored, *answer["read"]))
            content = self.parser.receive()
        except BaseException as error:
            # Another question would get the answer to this one.
            self._failure = brief(error)
            self.parser.end()
            raise
        if "error" in answer:
            raise UnreadableError(brief(Exception(answer["error"])))
        return answer, content
