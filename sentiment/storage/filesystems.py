"""File systems of paths and URIs by `pyarrow.fs`, and local copies of directories that are needed as local files.

A scheme that Arrow doesn't know is looked up in fsspec.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.fs as pafs

from sentiment.errors import DataError, brief
from sentiment.storage.uris import is_uri, split_query

# Requests to a store at a time: they wait on the network, not on the CPU. Arrow's client of S3 keeps 25 connections.
STORE_THREADS = 24
_COPY_BYTES = 8 << 20
_ARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file", "local")


@functools.lru_cache(maxsize=64)
def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """File system of a URI, Arrow's own or else fsspec's, and the path inside it.

    Raises:
        DataError: Neither knows the scheme, or the store can't be reached.
    """
    if "#" in uri and uri.partition("://")[0] in _ARROW_SCHEMES:  # Arrow would drop what follows: another place.
        raise DataError(f"{split_query(uri)[0]}: write %23 for # in a URI")
    arrow_uri = uri
    if uri.startswith("s3://") and "allow_delayed_open" not in uri:
        # A file of a few megabytes goes in one request, not three; a refusal comes when it is closed.
        arrow_uri += f"{'&' if '?' in uri else '?'}allow_delayed_open=true"
    try:
        fs, path = pafs.FileSystem.from_uri(arrow_uri)
        # Arrow opens hf:// by fsspec too.
        return (pafs.PyFileSystem(_FsspecHandler(fs.handler.fs)) if isinstance(fs, pafs.PyFileSystem) else fs), path
    except pa.ArrowInvalid:
        pass  # A scheme Arrow doesn't know, or characters it wants quoted: fsspec is more lenient.
    except OSError as error:
        raise unreachable(uri, error) from error
    try:
        with _as_os_error():
            fs, path = fsspec.core.url_to_fs(uri)
    except ConnectionError as error:
        raise unreachable(uri, error) from error
    except ImportError as error:
        raise DataError(f"can't open {uri}: {brief(error)} (pip install the fsspec driver of that scheme)") from error
    except (ValueError, OSError) as error:
        raise DataError(f"can't open {uri}: {brief(error)}; neither pyarrow nor fsspec reads it") from error
    return pafs.PyFileSystem(_FsspecHandler(fs)), str(path)


def unreachable(uri: str, error: OSError) -> DataError:
    """The error for a store that doesn't answer: names the host, the cause and what can be done."""
    scheme, _, rest = uri.partition("://")
    host = rest.partition("/")[0] if scheme in ("http", "https") else f"the store of {scheme}://"
    if scheme == "hf":
        host = huggingface_hub.constants.ENDPOINT
    return DataError(
        f"{split_query(uri)[0]}: can't reach {host} ({brief(error)}); check the address, the network and the proxy "
        "settings, or download the files and give their path"
    )


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn what a driver's HTTP library raises (aiohttp, azure.core, …) into an OSError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__ == "builtins":
            raise
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


class _FsspecHandler(pafs.FSSpecHandler):  # type: ignore[misc]
    """As Arrow's, but a store that doesn't answer raises an OSError.

    Before it opens a file Arrow's asks whether it is one, which drivers deny if the store doesn't answer.
    """

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        with _as_os_error():
            return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        try:
            return self._create_file_info(path, self.fs.info(path))
        except FileNotFoundError as error:
            cause = error.__cause__
            # fsspec's HTTP driver says of every failure that there is no such file.
            if cause and (isinstance(cause, OSError) or getattr(cause, "status", 404) not in (404, 410)):
                raise ConnectionError(brief(cause)) from cause
            return pafs.FileInfo(path, pafs.FileType.NotFound)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        with _as_os_error():
            return list(super().get_file_info_selector(selector))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        with _as_os_error():
            return pa.PythonFile(_FsspecFile(self.fs.open(path, mode="rb")), mode="r")

    open_input_file = open_input_stream


class _FsspecFile:
    """A file of an fsspec driver whose reads raise an OSError if the store doesn't answer."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _as_os_error():
            content: bytes = self._file.read(size)
            return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def absolute(path: str) -> str:
    """A local path made absolute, for processes with another working directory; a URI as given."""
    return path if is_uri(path) else str(Path(path).absolute())


def fetch(uri: str, manifest: str, max_bytes: int, sizes_in: Callable[[bytes], Mapping[str, int]]) -> Path:
    """Copy a finished directory to the local disk, once for all processes of a machine.

    Copies are kept in `$XDG_CACHE_HOME/sentiment-at-scale` (else `~/.cache/…`) under the digest of the manifest, so
    another content is another copy.

    Args:
        uri: The directory.
        manifest: Its file that lists the others.
        max_bytes: Maximum bytes of the manifest.
        sizes_in: Gives name and bytes of each other file, from the manifest's content.

    Returns:
        The copy; it isn't verified.

    Raises:
        DataError: The store can't be reached, or a file is no regular one or has more bytes than it should.
        OSError: A file isn't there or can't be read.
    """
    fs, base = resolve(uri.rstrip("/"))
    buffer = io.BytesIO()
    _copy(fs, posixpath.join(base, manifest), buffer, max_bytes)
    content = buffer.getvalue()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sentiment-at-scale")
    copy = cache / hashlib.sha256(content).hexdigest()[:32]
    if copy.exists():
        return copy
    cache.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=cache, prefix=f".{copy.name}-"))
    try:
        for name, size in sizes_in(content).items():
            with (temporary / name).open("xb") as file:
                _copy(fs, posixpath.join(base, name), file, size)
        (temporary / manifest).write_bytes(content)
        try:
            temporary.rename(copy)
        except OSError:
            if not copy.exists():  # Otherwise another process was faster.
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return copy


def _copy(fs: pafs.FileSystem, path: str, target: BinaryIO, max_bytes: int) -> None:
    """Copy a file of at most so many bytes: a store may never come to an end."""
    # Opening a pipe would wait for ever. Other stores have none, and asking them costs a request.
    if "local" in fs.type_name and Path(path).exists() and not Path(path).is_file():
        raise DataError(f"{path} is no regular file but a folder, a pipe or a device")
    left = max_bytes
    with fs.open_input_stream(path) as stream:
        while chunk := stream.read(min(_COPY_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise DataError(f"{path} has more than the {max_bytes:,} bytes that it should have")
            target.write(chunk)
