"""A file's bytes, wherever it lies: local paths and URIs through one `pyarrow.fs` interface, decompressed as read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs as pafs

from sentiment.errors import DataError, brief
from sentiment.stores import resolve

# Bytes asked of a stream at once.
PIECE_BYTES = 1 << 17
_REMOTE_BUFFER_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"
NOT_REGULAR = "not a regular file"


class UnreadableError(Exception):
    """The rest of a file can't be read; carries why, never any of its text."""


class UnreachableError(Exception):
    """A file can't be read now, whatever is in it: the store, the network, the disk or memory is at fault.

    Never turned into rejected rows: what is asked again later may be answered.
    """


# What S3, GCS, Azure and HTTP drivers say without an errno.
_STORE = re.compile(
    r"AWS Error|Azure Error|google::cloud::Status|curlCode|HTTP|SlowDown|[Tt]imed? ?out|[Cc]onnection|[Dd]isconnected"
    r"|temporarily|[Tt]hrottl|[Uu]navailable"
)


def refuse_unreachable(error: BaseException, path: str) -> None:
    """Tell a file that can't be reached from one that is damaged.

    Args:
        error: What reading it raised.
        path: The file.

    Raises:
        UnreachableError: It can't be reached.
    """
    # Some say nothing but their name, such as fsspec's FSTimeoutError.
    is_down = isinstance(error, (TimeoutError, ConnectionError, FileNotFoundError, MemoryError, pa.ArrowMemoryError))
    has_errno = isinstance(error, OSError) and error.errno is not None
    if is_down or has_errno or _STORE.search(f"{type(error).__name__}: {error}"):
        # Some say that a file isn't there whatever the store has answered.
        why = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        raise UnreachableError(f"{path} can't be read now: {brief(why)}") from error


def _filesystem(root: str) -> pafs.FileSystem:
    return resolve(root)[0] if root else pafs.LocalFileSystem()


def _open_stored(root: str, inner: str) -> pa.NativeFile:
    """Open a file as it is stored."""
    fs = _filesystem(root)
    is_local = not root or root.startswith(("file:", "local:"))
    # To open a pipe waits until somebody writes to it. A remote store has none, and asking it would be a request.
    if is_local and fs.get_file_info(inner).type == pafs.FileType.Unknown:
        raise OSError(NOT_REGULAR)
    return fs.open_input_file(inner)


class _Feed:
    """Stored bytes on their way to a decompressor, from `singly_from` on one at a time.

    A decompressor that comes upon damage keeps for itself whatever it made of the bytes it was given in the same go.
    """

    def __init__(self, stored: pa.NativeFile, singly_from: int | None) -> None:
        self._stored, self._singly_from = stored, singly_from
        self.closed = False
        self.latest_at = self.position = 0

    def read(self, size: int) -> bytes:
        if self._singly_from is not None:
            size = min(size, max(1, self._singly_from - self.position))
        piece: bytes = self._stored.read(size)
        self.latest_at, self.position = self.position, self.position + len(piece)
        return piece

    def close(self) -> None:
        self._stored.close()
        self.closed = True


class ByteSource:
    """The decompressed bytes of one file, from its start, BOM taken off.

    A compressed stream that fails takes all that it made of its last piece of input down with it, which is all of a
    small file; so the file is opened once more and that piece handed over byte by byte, up to the very one that can't
    be read. A checksum that doesn't match is found behind the bytes that it is about: they are read, and then it fails.
    """

    def __init__(self, root: str, inner: str, compression: str | None) -> None:
        self._root, self._inner, self._compression = root, inner, compression
        self._feed: _Feed | None = None
        self._stream: pa.NativeFile | None = None
        self._offset = 0
        self._failure: str | None = None
        self._good_bytes: Iterator[bytes] = iter(())
        self.bom = False

    def _open(self, singly_from: int | None = None) -> pa.NativeFile:
        stored = _open_stored(self._root, self._inner)
        if self._root:  # A remote store answers each read with a request.
            stored = pa.BufferedInputStream(stored, _REMOTE_BUFFER_BYTES)
        if self._compression is None:
            return stored
        self._feed = _Feed(stored, singly_from)
        return pa.CompressedInputStream(pa.PythonFile(self._feed, mode="r"), self._compression)

    @property
    def position(self) -> int:
        """Stored bytes read so far, about: streams read ahead."""
        return self._feed.position if self._feed is not None else self._offset

    def read(self, size: int = PIECE_BYTES) -> bytes:
        """Read the next bytes; empty at the end.

        Args:
            size: Most bytes to return.

        Returns:
            Up to `size` bytes; fewer only at the end or before a BOM or a damaged place.

        Raises:
            UnreadableError: The file can't be opened or its rest can't be read.
            UnreachableError: It can't be reached.
        """
        if self._failure is None:
            try:
                if self._stream is None:
                    self._stream = self._open()
                piece: bytes = self._stream.read(size)
            except (OSError, pa.ArrowException, DataError) as error:
                refuse_unreachable(error, self._inner)
                self._failure = brief(error)
                if self._feed is not None:
                    self._good_bytes = self._up_to_damage(self._feed.latest_at, self._offset)
        if self._failure is not None:
            piece = b"".join(itertools.islice(self._good_bytes, size))
            if not piece:
                raise UnreadableError(self._failure)
        at_start, self._offset = self._offset == 0, self._offset + len(piece)
        if at_start and piece.startswith(_BOM):
            self.bom = True
            return piece[len(_BOM) :] or self.read(size)
        return piece

    def _up_to_damage(self, singly_from: int, skip: int) -> Iterator[bytes]:
        """Decompress again, each byte by itself: a stream that fails keeps what it has gathered for the same call."""
        try:
            self.close()
            self._stream = self._open(singly_from)
            while skip and (skipped := self._stream.read(min(skip, PIECE_BYTES))):
                skip -= len(skipped)
            while byte := self._stream.read(1):
                yield byte
        except (OSError, pa.ArrowException) as error:
            refuse_unreachable(error, self._inner)  # Otherwise expected: here the file breaks off.

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
    stored = _open_stored(root, inner)
    if compression is None:
        return stored
    with pa.CompressedInputStream(stored, compression) as stream:
        return pa.BufferReader(stream.read())
