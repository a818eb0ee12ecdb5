"""An input file and its bytes, wherever it lies: local paths and URIs by one `pyarrow.fs` interface, decompressed."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs

from sentiment.errors import DataError, brief
from sentiment.storage.filesystems import resolve

# Bytes asked of a stream at once.
READ_BYTES = 1 << 17
_REMOTE_BUFFER_BYTES = 4 << 20
# Of a .parquet.gz or .parquet.zst, whose end has to be read first: on disk, and of its end in memory while planning.
# What is read from its start to its end may be of any size.
MAX_INFLATED_BYTES = 4 << 30
MAX_TAIL_BYTES = 16 << 20
_INFLATED_CHUNK_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"
NOT_REGULAR = "not a regular file"
# What S3, GCS, Azure and HTTP drivers say without an errno.
_STORE_ERRORS = re.compile(
    r"AWS Error|Azure Error|google::cloud::Status|curlCode|HTTP|SlowDown|[Tt]imed? ?out|[Cc]onnection|[Dd]isconnected"
    r"|temporarily|[Tt]hrottl|[Uu]navailable"
)


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to read: what its name says, and once it was looked into (`detect`) what its first bytes show.

    Attributes:
        path: The path or URI as the user would write it; every row's `source_file`.
        root: URI that names the file system; empty for this machine's disk.
        inner: Path inside that file system.
        format: A key of `sentiment.data.formats.FORMATS`.
        compression: gzip, zstd or None.
        size_bytes: Size as stored; -1 where the file system doesn't say.
        mtime_ns: Time of the last change, where the file system says.
        problem: Why it can't be read, as far as that is known; such a file becomes a rejected row.
        columns: Column names as in the file; those of a sample for JSON.
        has_header: Whether the first csv record is the header.
        encoding: utf-8, latin-1 or mixed (UTF-8 if the line can be, else latin-1).
        text_column: Where the text is; None only in a file with a problem.
        label_column: Where the label is, if labels are wanted and there is one.
    """

    path: str
    root: str
    inner: str
    format: str
    compression: str | None = None
    size_bytes: int = -1
    mtime_ns: int | None = None
    problem: str | None = None
    columns: tuple[str, ...] = ()
    has_header: bool = False
    encoding: str = "utf-8"
    text_column: str | None = None
    label_column: str | None = None


class UnreadableError(Exception):
    """The rest of a file can't be read; carries why, never any of its text."""


class UnreachableError(Exception):
    """A file can't be read now, whatever is in it: the store, the network, the disk or memory is at fault.

    Never turned into rejected rows: another attempt may succeed.
    """


def refuse_unreachable(error: BaseException, path: str) -> None:
    """Tell a file that can't be reached from one that is damaged.

    Raises:
        UnreachableError: It can't be reached.
    """
    # Some say nothing but their name, such as fsspec's FSTimeoutError.
    is_down = isinstance(error, (TimeoutError, ConnectionError, FileNotFoundError, MemoryError, pa.ArrowMemoryError))
    has_errno = isinstance(error, OSError) and error.errno is not None
    if is_down or has_errno or _STORE_ERRORS.search(f"{type(error).__name__}: {error}"):
        # Some say that a file isn't there whatever the store has answered.
        why = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        raise UnreachableError(f"{path} can't be read now: {brief(why)}") from error


def _open_stored(file: InputFile) -> pa.NativeFile:
    """Open a file as it is stored."""
    fs = resolve(file.root)[0] if file.root else pafs.LocalFileSystem()
    is_local = not file.root or file.root.startswith(("file:", "local:"))
    # To open a pipe waits until somebody writes to it. A remote store has none, and asking it would be a request.
    if is_local and fs.get_file_info(file.inner).type == pafs.FileType.Unknown:
        raise OSError(NOT_REGULAR)
    return fs.open_input_file(file.inner)


class _CompressedInput:
    """Stored bytes on their way to a decompressor, from `singly_from` on one at a time.

    A decompressor that meets damage drops whatever it made of the bytes that it was given in the same call.
    """

    closed = False

    def __init__(self, stored: pa.NativeFile, singly_from: int | None) -> None:
        self._stored, self._singly_from = stored, singly_from
        self.last_start = self.position = 0

    def read(self, size: int) -> bytes:
        if self._singly_from is not None:
            size = min(size, max(1, self._singly_from - self.position))
        chunk: bytes = self._stored.read(size)
        self.last_start, self.position = self.position, self.position + len(chunk)
        return chunk

    def close(self) -> None:
        self._stored.close()
        self.closed = True


class ByteStream:
    """The decompressed bytes of one file, from its start, byte order mark taken off.

    A compressed stream that fails drops all that it made of its last chunk of input, which is all of a small file; so
    the file is opened once more and that chunk handed over byte by byte, up to the very one that can't be read. (zlib
    alone could go back without opening the file again, but there is zstd too.) A checksum that doesn't match stands
    behind the bytes that it is about: they are read, and then it fails.
    """

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._input: _CompressedInput | None = None
        self._stream: pa.NativeFile | None = None
        self._offset = 0
        self._failure: str | None = None
        self._good_bytes: Iterator[bytes] = iter(())
        self.has_bom = False

    def _open(self, singly_from: int | None = None) -> pa.NativeFile:
        stored = _open_stored(self._file)
        if self._file.root:  # A remote store answers each read with a request.
            stored = pa.BufferedInputStream(stored, _REMOTE_BUFFER_BYTES)
        if self._file.compression is None:
            return stored
        self._input = _CompressedInput(stored, singly_from)
        return pa.CompressedInputStream(pa.PythonFile(self._input, mode="r"), self._file.compression)

    @property
    def position(self) -> int:
        """Stored bytes read so far, about: streams read ahead."""
        return self._input.position if self._input is not None else self._offset

    def read(self, size: int = READ_BYTES) -> bytes:
        """Read the next bytes; empty at the end.

        Args:
            size: Most bytes to return.

        Returns:
            Up to `size` bytes; fewer only at the end, or before a byte order mark or a damaged place.

        Raises:
            UnreadableError: The file can't be opened or its rest can't be read.
            UnreachableError: It can't be reached.
        """
        if self._failure is None:
            try:
                if self._stream is None:
                    self._stream = self._open()
                chunk: bytes = self._stream.read(size)
            except (OSError, pa.ArrowException, DataError) as error:
                refuse_unreachable(error, self._file.path)
                self._failure = brief(error)
                if self._input is not None:
                    self._good_bytes = self._up_to_damage(self._input.last_start, self._offset)
        if self._failure is not None:
            chunk = b"".join(itertools.islice(self._good_bytes, size))
            if not chunk:
                raise UnreadableError(self._failure)
        is_start, self._offset = self._offset == 0, self._offset + len(chunk)
        if is_start and chunk.startswith(_BOM):
            self.has_bom = True
            return chunk[len(_BOM) :] or self.read(size)
        return chunk

    def _up_to_damage(self, singly_from: int, skip: int) -> Iterator[bytes]:
        try:
            self.close()
            self._stream = self._open(singly_from)
            while skip and (skipped := self._stream.read(min(skip, READ_BYTES))):
                skip -= len(skipped)
            while byte := self._stream.read(1):
                yield byte
        except (OSError, pa.ArrowException) as error:
            refuse_unreachable(error, self._file.path)  # Otherwise expected: this is where the file breaks off.

    def close(self) -> None:
        """Close the file; reading on isn't possible."""
        if self._stream is not None:
            self._stream.close()


def open_random_access(file: InputFile) -> pa.NativeFile:
    """Open a file for reading at any place; a compressed one is decompressed to a temporary file.

    Raises:
        UnreadableError: It takes over MAX_INFLATED_BYTES.
        OSError: It can't be opened or decompressed.
    """
    if file.compression is None:
        return _open_stored(file)
    # Without a name: it is gone once it is closed, however this process ends.
    inflated = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        for chunk in _inflate(file):
            inflated.write(chunk)
        return pa.PythonFile(inflated, mode="r")
    except BaseException:
        inflated.close()
        raise


def inflated_tail(file: InputFile) -> tuple[bytes, int]:
    """Decompress a file for its end, without memory or disk for the rest.

    Returns:
        Its last bytes, MAX_TAIL_BYTES or all of them, and how many there are in all.

    Raises:
        UnreadableError: It takes over MAX_INFLATED_BYTES.
        OSError: It can't be opened or decompressed.
    """
    tail: deque[bytes] = deque(maxlen=MAX_TAIL_BYTES // _INFLATED_CHUNK_BYTES + 1)
    size = 0
    for chunk in _inflate(file):
        tail.append(chunk)
        size += len(chunk)
    return b"".join(tail), size


def _inflate(file: InputFile) -> Iterator[bytes]:
    size = 0
    with pa.CompressedInputStream(_open_stored(file), file.compression) as stream:
        while chunk := stream.read(_INFLATED_CHUNK_BYTES):
            size += len(chunk)
            if size > MAX_INFLATED_BYTES:
                raise UnreadableError(
                    f"it takes over {MAX_INFLATED_BYTES >> 20:,} MiB decompressed, as Parquet has to be to be read; "
                    "decompress it first"
                )
            yield chunk
