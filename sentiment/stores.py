"""Where paths and URIs lead: file systems by `pyarrow.fs`, and a copy on this machine of what is needed as local files.

A scheme Arrow doesn't know is asked of fsspec.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from sentiment.errors import DataError, brief
from sentiment.uris import is_uri, split_query

_COPIED_BYTES = 8 << 20
# Requests to a store at a time: they wait on the network, not on the CPU. Arrow's client of S3 keeps 25 connections.
STORE_THREADS = 24
# Schemes that Arrow itself knows, and unquotes.
_ARROWS = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file", "local")


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
    if "#" in uri and uri.partition("://")[0] in _ARROWS:  # Arrow would drop what follows it: another place.
        raise DataError(f"{split_query(uri)[0]}: write %23 for # in a URI")
    try:
        return pafs.FileSystem.from_uri(_with_options(uri))
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
    return pafs.PyFileSystem(_Handler(fs)), str(inner)


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """What a driver's HTTP library raises (aiohttp, azure.core, …) says that the store can't be reached now."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__ == "builtins":
            raise
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


class _Handler(pafs.FSSpecHandler):
    """As Arrow's, but what it raises for a store's sake is an OSError.

    Before it opens a file Arrow's asks whether it is one, which drivers deny if the store doesn't answer.
    """

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        with _as_os_error():
            infos: list[pafs.FileInfo] = super().get_file_info(paths)
            return infos

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        with _as_os_error():
            infos: list[pafs.FileInfo] = super().get_file_info_selector(selector)
            return infos

    def open_input_stream(self, path: str) -> pa.NativeFile:
        with _as_os_error():
            return pa.PythonFile(_Reader(self.fs.open(path, mode="rb")), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        return self.open_input_stream(path)


class _Reader:
    """A file of an fsspec driver."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _as_os_error():
            content: bytes = self._file.read(size)
            return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _with_options(uri: str) -> str:
    """To S3, a file of a few megabytes goes in one request, not three; a refusal comes when it is closed."""
    if not uri.startswith("s3://") or "allow_delayed_open" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


def absolute(path: str) -> str:
    """Where something is, also for a process in another folder: a local path made absolute, a URI as given."""
    return path if is_uri(path) else str(Path(path).absolute())


def fetch(uri: str, manifest: str, names_in: Callable[[bytes], Iterable[str]]) -> Path:
    """Get a finished folder to the local disk, once for all processes of a machine.

    Copies are kept in `$XDG_CACHE_HOME/sentiment-at-scale` (else `~/.cache/…`) under the digest of the manifest, so
    another content is another copy.

    Args:
        uri: The folder.
        manifest: Its file that says what belongs to it.
        names_in: Gives the names of those files from the manifest's content.

    Returns:
        The copy; it isn't verified.

    Raises:
        DataError: The store can't be reached.
        OSError: A file isn't there or can't be read.
    """
    fs, base = resolve(uri.rstrip("/"))
    with fs.open_input_stream(posixpath.join(base, manifest)) as stream:
        content: bytes = stream.read()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sentiment-at-scale")
    copy = cache / hashlib.sha256(content).hexdigest()[:32]
    if copy.exists():
        return copy
    cache.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=cache, prefix=f".{copy.name}-"))
    try:
        for name in names_in(content):
            with fs.open_input_stream(posixpath.join(base, name)) as stream, (beside / name).open("xb") as file:
                shutil.copyfileobj(stream, file, _COPIED_BYTES)
        (beside / manifest).write_bytes(content)
        try:
            beside.rename(copy)
        except OSError:
            if not copy.exists():  # Otherwise another process was faster.
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return copy
