"""Where paths and URIs lead: file systems by `pyarrow.fs`, and a copy on this machine of what is needed as local files.

A scheme Arrow doesn't know is asked of fsspec.
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from sentiment.errors import DataError, brief
from sentiment.uris import is_uri

_COPIED_BYTES = 8 << 20


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
    if "#" in uri:  # Arrow would drop what follows it: another place.
        raise DataError(f"{uri}: write %23 for # in a URI")
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
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), str(inner)


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
