"""Parses a Parquet file for another process, which has to survive whatever the file holds.

Arrow aborts on some damaged footers, and a few hundred bytes may stand for gigabytes of values. So a file is opened in
this process, which has little memory and CPU time to spend, and no access to the store: it asks the process that
started it for bytes of the file, and gives back record batches as Arrow IPC streams.

It is run by its path, without the package around it, so that it starts as fast as pyarrow does:

    python -P parquet_process.py <file descriptor of a multiprocessing.Connection>
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Memory that one file may take in this process, beside what pyarrow takes itself.
MEMORY_BYTES = 1 << 30
# CPU time for one answer: a batch takes a second at most.
CPU_S = 20
# Of a record batch in memory. The reader asks for 32 MiB, going by what the footer says.
MAX_BATCH_BYTES = 256 << 20
# What Arrow may ask for at once: a page, which writers make 1 MiB.
MAX_READ_BYTES = 256 << 20
MAX_COLUMNS, MAX_ROW_GROUPS = 2000, 100_000
# Rows that a file may claim to have: so many, or so many for each byte it is stored in.
MAX_ROWS, MAX_ROWS_PER_BYTE = 1_000_000, 64
# What is read ahead, of each column and of all together.
_BUFFER_BYTES, _BUFFERS_BYTES = 4 << 20, 64 << 20
# Of a value in memory, by Parquet's physical types; a string is an offset and, if it isn't null, say a word or two.
_BYTES = {"BOOLEAN": 1 / 8, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}
_OFFSET_BYTES, _STRING_BYTES = 4, 12


def size_of(array: pa.Array) -> int:
    """Bytes of an array in memory and, so that a list of two billion nulls isn't nothing, 8 for each nested value."""
    return int(array.nbytes) + 8 * _nested_values(array)


def _nested_values(array: pa.Array) -> int:
    return sum(len(child) + _nested_values(child) for child in _children(array))


def _children(array: pa.Array) -> list[pa.Array]:
    """The arrays of which a nested one consists, as far as they belong to its rows."""
    types = pa.types
    if isinstance(array, pa.ExtensionArray):
        return _children(array.storage)
    if types.is_struct(array.type):
        return list(array.flatten())
    if types.is_map(array.type):
        start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return [array.keys[start:end], array.items[start:end]]
    return [array.flatten()] if types.is_nested(array.type) else []


def _check(array: pa.Array) -> None:
    """Refuse places beyond a dictionary, which Arrow reads without a look."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        ends = pc.min_max(array.indices).as_py()
        if ends["max"] is not None and not 0 <= ends["min"] <= ends["max"] < len(array.dictionary):
            raise ValueError("a value beyond its dictionary")
    for child in _children(array):
        _check(child)


class _StoredFile:
    """A file whose bytes are asked of the other process."""

    closed = False

    def __init__(self, connection: Connection, size: int, tail: bytes) -> None:
        self._connection, self._size, self._tail = connection, size, tail
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        size = max(0, min(self._size - self._position, self._size if size < 0 else size))
        if size > MAX_READ_BYTES:
            raise OSError(f"{size >> 20:,} MiB in one piece, over {MAX_READ_BYTES >> 20} MiB")
        in_tail = self._position - (self._size - len(self._tail))
        if in_tail >= 0:
            content = self._tail[in_tail : in_tail + size]
        else:
            self._connection.send_bytes(json.dumps({"read": [self._position, size]}).encode())
            content = self._connection.recv_bytes()
        self._position += len(content)
        return content

    def close(self) -> None:
        self.closed = True


class _OpenFile:
    """A Parquet file and the place in it."""

    def __init__(self, stored: _StoredFile, stored_bytes: int) -> None:
        metadata = pq.read_metadata(pa.PythonFile(stored, mode="r"))
        if metadata.num_columns > MAX_COLUMNS:
            raise ValueError(f"{metadata.num_columns:,} columns, at most {MAX_COLUMNS:,} are read")
        if metadata.num_row_groups > MAX_ROW_GROUPS:
            raise ValueError(f"{metadata.num_row_groups:,} row groups, at most {MAX_ROW_GROUPS:,} are read")
        if metadata.num_rows > max(MAX_ROWS, MAX_ROWS_PER_BYTE * stored_bytes):
            raise ValueError(f"its footer claims {metadata.num_rows:,} rows in {stored_bytes:,} bytes")
        buffer = max(1 << 16, min(_BUFFER_BYTES, _BUFFERS_BYTES // max(1, metadata.num_columns)))
        opened = pa.PythonFile(stored, mode="r")
        # A row group that is read ahead as a whole may be larger than memory; a buffer for each column isn't.
        self._file = pq.ParquetFile(opened, metadata=metadata, pre_buffer=False, buffer_size=buffer)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._group, self._next_row = -1, 0

    def facts(self) -> tuple[dict[str, Any], pa.Buffer]:
        """Rows of each row group, and the schema."""
        metadata, schema = self._file.metadata, self._file.schema_arrow.remove_metadata()
        rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        # They decide which row is which, so they have to be true.
        if sum(rows) != metadata.num_rows or min(rows, default=0) < 0:
            raise ValueError("its footer contradicts itself: the rows of its groups aren't those of the file")
        _ = [name.encode() for name in schema.names]
        return {"rows": rows}, schema.serialize()

    def size(self, number: int) -> dict[str, Any]:
        """Bytes of a row group in memory, about; the file may hold a value that comes many times over only once."""
        plain, group = 0.0, self._file.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            known = column.statistics
            nulls = known.null_count if known is not None and known.has_null_count else 0
            fixed = _BYTES.get(column.physical_type)
            plain += column.num_values * (_OFFSET_BYTES if fixed is None else fixed)
            if fixed is None:
                plain += (column.num_values - nulls) * _STRING_BYTES
        return {"size": max(group.total_byte_size, int(-(-plain // 1)))}

    def batch(self, group: int, rows: int, start: int) -> tuple[dict[str, Any], pa.Buffer]:
        """The batch of a row group that begins at a row, where each has so many rows; nothing at its end."""
        if group != self._group:
            self._group, self._next_row = group, 0
            self._batches = self._file.iter_batches(rows, row_groups=[group], use_threads=False)
        batch = next(self._batches, None)
        while batch is not None and self._next_row < start:
            self._next_row += rows
            _limit_cpu()
            batch = next(self._batches, None)
        self._next_row += rows
        if batch is None:
            return {}, pa.py_buffer(b"")
        for column in batch.columns:
            _check(column)
        if sum(map(size_of, batch.columns)) > MAX_BATCH_BYTES:
            raise ValueError(
                f"{batch.num_rows:,} rows take over {MAX_BATCH_BYTES >> 20} MiB; write it as JSON lines, or without "
                "dictionaries"
            )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return {}, sink.getvalue()


def _limit_memory() -> None:
    """Let what is allocated from now on fail beyond MEMORY_BYTES, where the system knows such a limit."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_cpu() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_S, most))


def _answer(connection: Connection, opened: _OpenFile | None, request: dict[str, Any]) -> _OpenFile | None:
    """Do what is asked and send the answer; gives the file that is open now."""
    answer: dict[str, Any] = {}
    content = pa.py_buffer(b"")
    try:
        if "open" in request:
            opened = None  # The one before makes room.
            opened = _OpenFile(_StoredFile(connection, request["open"], connection.recv_bytes()), request["stored"])
            answer, content = opened.facts()
        assert opened is not None, "nothing is asked of a file that isn't open"
        if "size" in request:
            answer = opened.size(request["size"])
        elif "batch" in request:
            answer, content = opened.batch(request["batch"], request["rows"], request["start"])
    except (MemoryError, pa.ArrowMemoryError):
        answer = {"error": f"it takes over {MEMORY_BYTES >> 20:,} MiB of memory to read"}
    except Exception as error:
        answer = {"error": str(error)[:1000] or type(error).__name__}
    connection.send_bytes(json.dumps(answer).encode())
    connection.send_bytes(content)
    return opened


def main() -> None:
    """Answer until the other process has no more to ask, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other one, which then closes the connection.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # It would hold users' texts.
    _limit_memory()
    connection, opened = Connection(int(sys.argv[1])), None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = json.loads(connection.recv_bytes())
            _limit_cpu()
            opened = _answer(connection, opened, request)


if __name__ == "__main__":
    main()
