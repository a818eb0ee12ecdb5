"""A file's bytes, wherever it lies: local paths and URIs through one `pyarrow.fs` interface, decompressed as they come.

A scheme Arrow doesn't know is asked of fsspec.
"""

from __future__ import annotations

import functools
import re

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from sentiment.errors import DataError

# Bytes asked of a stream at once: what a damaged archive's last piece is read again for, byte by byte.
PIECE_BYTES = 1 << 17
_REMOTE_BUFFER_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"


class UnreadableError(Exception):
    """The rest of a file can't be read; carries why, never any of its text."""


class UnreachableError(Exception):
    """A file can't be read now, whatever is in it: the store, the network, the disk or memory is at fault.

    Never turned into rejected rows: what is asked again later may be answered.
    """


# What S3, GCS, Azure and HTTP drivers say without an errno.
_STORE = re.compile(r"AWS Error|curlCode|HTTP|SlowDown|[Tt]imed? ?out|[Cc]onnection|temporarily|[Tt]hrottl")


def refuse_unreachable(error: BaseException, path: str) -> None:
    """Tell a file that can't be reached from one that is damaged.

    Args:
        error: What reading it raised.
        path: The file.

    Raises:
        UnreachableError: It can't be reached.
    """
    has_errno = isinstance(error, OSError) and error.errno is not None
    if has_errno or isinstance(error, (MemoryError, pa.ArrowMemoryError)) or _STORE.search(str(error)):
        raise UnreachableError(f"{path} can't be read now: {brief(error)}") from error


def is_uri(path: str) -> bool:
    """Tell a URI (`s3://…`, `memory://…`) from a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


@functools.lru_cache(maxsize=64)
def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Find the file system of a URI: Arrow's own first, then fsspec's.

    Args:
        uri: The URI as given.

    Returns:
        The file system and the path inside it.

    Raises:
        DataError: Neither knows the scheme, or the store can't be reached.
    """
    try:
        return pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        pass  # A scheme Arrow doesn't know, or characters it wants quoted: fsspec is more lenient.
    except OSError as error:
        raise DataError(f"can't reach {uri}: {brief(error)}") from error
    try:
        fs, inner = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise DataError(f"can't open {uri}: {brief(error)} (pip install the fsspec driver of that scheme)") from error
    except (ValueError, OSError) as error:
        raise DataError(f"can't open {uri}: {brief(error)}; neither pyarrow nor fsspec reads it") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), str(inner)


def _filesystem(root: str) -> pafs.FileSystem:
    return resolve(root)[0] if root else pafs.LocalFileSystem()


def brief(error: BaseException) -> str:
    """First line of an error, short enough for a message."""
    return (str(error) or type(error).__name__).splitlines()[0][:160]


class ByteSource:
    """The decompressed bytes of one file, from its start, BOM taken off.

    A compressed stream that fails takes up to one piece of good bytes down with it; so the file is opened once more and
    its last piece read byte by byte, up to the very place that can't be read.
    """

    def __init__(self, root: str, inner: str, compression: str | None) -> None:
        self._root, self._inner, self._compression = root, inner, compression
        self._raw: pa.NativeFile | None = None
        self._stream: pa.NativeFile | None = None
        self._offset = self._position = 0
        self._failure: str | None = None
        self.bom = False

    def _open(self) -> pa.NativeFile:
        self._raw = _filesystem(self._root).open_input_file(self._inner)
        # A remote store answers each read with a request.
        stream = pa.BufferedInputStream(self._raw, _REMOTE_BUFFER_BYTES) if self._root else self._raw
        return pa.CompressedInputStream(stream, self._compression) if self._compression else stream

    @property
    def position(self) -> int:
        """Stored bytes read so far, about: streams read ahead."""
        if self._compression is None:
            return self._offset
        if self._raw is not None and not self._raw.closed:
            self._position = max(self._position, int(self._raw.tell()))
        return self._position

    def read(self, size: int = PIECE_BYTES) -> bytes:
        """Read the next bytes; empty at the end.

        Args:
            size: Most bytes to return.

        Returns:
            Up to `size` bytes; fewer only at the end or before a BOM or a damaged place.

        Raises:
            UnreadableError: The file can't be opened or its rest can't be read.
        """
        if self._failure is not None:
            raise UnreadableError(self._failure)
        try:
            if self._stream is None:
                self._stream = self._open()
            piece: bytes = self._stream.read(size)
        except (OSError, pa.ArrowException, DataError) as error:
            refuse_unreachable(error, self._inner)
            self._failure = brief(error)
            piece = self._salvage() if self._compression else b""
            if not piece:
                raise UnreadableError(self._failure) from error
        at_start, self._offset = self._offset == 0, self._offset + len(piece)
        if at_start and piece.startswith(_BOM):
            self.bom = True
            return piece[len(_BOM) :] or self.read(size)
        return piece

    def _salvage(self) -> bytes:
        """Read again up to the last good byte after `_offset`."""
        rest = bytearray()
        try:
            stream, left = self._open(), self._offset
            while left and (skipped := stream.read(min(left, PIECE_BYTES))):
                left -= len(skipped)
            while len(rest) < PIECE_BYTES and (byte := stream.read(1)):
                rest += byte
        except (OSError, pa.ArrowException) as error:
            refuse_unreachable(error, self._inner)  # Otherwise expected: here the file breaks off.
        return bytes(rest)

    def close(self) -> None:
        """Close the file; reading on isn't possible."""
        if self._stream is not None:
            self._stream.close()


def open_random_access(root: str, inner: str, compression: str | None) -> pa.NativeFile:
    """Open a file for reading at any place (Parquet); a compressed one is decompressed to memory.

    Args:
        root: URI of the file system, empty for the local disk.
        inner: Path inside it.
        compression: gzip, zstd or None.

    Returns:
        A seekable file.

    Raises:
        OSError: It can't be opened or decompressed.
    """
    fs = _filesystem(root)
    if compression is None:
        return fs.open_input_file(inner)
    with fs.open_input_stream(inner, compression=compression) as stream:
        return pa.BufferReader(stream.read())
