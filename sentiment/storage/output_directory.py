"""A directory that jobs write to, on a local disk or behind any pyarrow or fsspec URI.

Files are written under another name and renamed, so a reader never sees half of one; object stores show only whole ones
anyway. What a remote store refuses is tried again, for up to six seconds: pyarrow's retry strategy is for S3 alone, and
URIs can't set it (tests/unit/test_stores.py has a store that pyarrow doesn't try again).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import posixpath
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from sentiment.errors import ConfigError, DataError
from sentiment.storage.filesystems import absolute, resolve
from sentiment.storage.uris import is_uri, join, split_query

# Directory of a run's own records, in its output.
RUN = "_run"
# What jobs write into an output directory, at its top.
_JOB_FILES = re.compile(
    r"\..*\.tmp|_run|_SUCCESS|(manifest|evaluation|metrics|mlflow|run|tokenizer)\.json|metrics\.jsonl|curve\.png"
    r"|train|validation|test|features|scored|rejected|bundle|checkpoints|prepared|model|corpus\.csv|archive\.jsonl\.gz"
)
# Arrow's names of stores in which a file appears once it is written whole.
_OBJECT_STORES = ("s3", "gcs", "abfs")
# Seconds between attempts at what a remote store refused.
_RETRY_WAITS_S = (0.2, 0.4, 0.8, 1.6, 3.2)
T = TypeVar("T")


class OutputDirectory:
    """One output directory; picklable, so that workers write to it too.

    Args:
        uri: Path or URI.

    Attributes:
        uri: As the user wrote it, without a slash at the end.
        absolute: The same, for processes with another working directory.
        fs: Its file system.
        base: Its path inside `fs`.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.absolute = absolute(self.uri)
        self.fs, self.base = resolve(self.uri) if is_uri(uri) else (pafs.LocalFileSystem(), absolute(uri))

    def inner(self, name: str) -> str:
        """Path of a file inside the file system."""
        return posixpath.join(self.base, name)

    def address(self, name: str) -> str:
        """Absolute path or URI of a file; a URI's options stay at the end."""
        return join(self.absolute, name)

    @property
    def _real_base(self) -> str:
        """Path inside the file system, on a disk without links and `..`, so that two can be compared."""
        return os.path.realpath(self.base) if isinstance(self.fs, pafs.LocalFileSystem) else self.base

    def check_inputs(self, inputs: Iterable[str]) -> None:
        """Refuse inputs (paths, URIs, globs) that overlap with the directory.

        Raises:
            ConfigError: An input is in the directory, or the directory in an input.
        """
        mine = f"{self._real_base.rstrip('/')}/"
        for given in inputs:
            path, query = split_query(given)
            path, wildcard = re.match(r"([^*?\[]*)(.*)", path, re.DOTALL).groups()  # type: ignore[union-attr]
            read = f"{OutputDirectory(path + query)._real_base.rstrip('/')}/"
            # A glob's directory may hold the output: what the glob finds is known before anything is written.
            if read.startswith(mine) or (not wildcard and mine.startswith(read)):
                raise ConfigError(f"--output {self.uri} and the input {given} overlap; name another --output")

    def check_files(self, paths: Iterable[str]) -> None:
        """Raise ConfigError for files that lie in the directory: a glob may have found what an earlier run wrote."""
        scheme = self.uri.partition("://")[0] if is_uri(self.uri) else ""
        for path in paths:
            its, _, inner = path.partition("://") if is_uri(path) else ("", "", os.path.realpath(path))
            if its == scheme and f"/{inner.lstrip('/')}".startswith(f"/{self._real_base.strip('/')}/"):
                raise ConfigError(f"the input {path} lies in --output {self.uri}; name another --output or --input")

    def check(self, *, overwrite: bool, inputs: Iterable[str] = ()) -> None:
        """Refuse a directory that isn't empty, unless the user allows to replace its content. Changes nothing.

        Args:
            overwrite: It may hold what jobs write; anything else in it is never removed.
            inputs: What the job reads, for `check_inputs`.

        Raises:
            ConfigError: It isn't empty and `overwrite` is off, or it holds something that no job wrote; or an input
                is in it.
            DataError: It can't be listed.
        """
        self.check_inputs(inputs)
        try:
            found = self.fs.get_file_info(pafs.FileSelector(self.base, allow_not_found=True))
        except OSError as error:
            raise DataError(f"can't write to {self.uri}: {error}") from error
        # `RUN` alone is the caller's own lock, or of a run that was killed before it had written anything.
        names = sorted(info.base_name for info in found if info.base_name != RUN)
        if names and not overwrite:
            raise ConfigError(f"{self.uri} isn't empty: replace what it holds with --overwrite, or name another")
        if foreign := [name for name in names if not _JOB_FILES.fullmatch(name)]:
            raise ConfigError(f"{self.uri} holds {foreign[0]!r}, which no job wrote: it isn't replaced; name another")

    def claim(self, *, overwrite: bool) -> None:
        """Make the directory, or empty it: the last step before work begins, once nothing else can refuse it.

        Args and errors are those of `check`.
        """
        self.check(overwrite=overwrite)
        try:
            self.fs.create_dir(self.base, recursive=True)
            self.fs.delete_dir_contents(self.base)
        except OSError as error:
            raise DataError(f"can't write to {self.uri}: {error}") from error

    def has(self, name: str) -> bool:
        """Whether there is such a file; raises OSError if that can't be known."""
        return bool(self.fs.get_file_info(self.inner(name)).is_file)

    def read(self, name: str) -> bytes:
        """Read a small file; raises OSError if it isn't there or can't be read."""

        def read() -> bytes:
            with self.fs.open_input_stream(self.inner(name)) as stream:
                return bytes(stream.read())

        return self.retry(read)

    def write_bytes(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file, whole or not at all (OSError); its directory is made if need be."""
        self.retry(lambda: self._write(self.inner(name), content))

    def write_text(self, name: str, text: str) -> None:
        """Write a small file, whole or not at all."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def upload(self, name: str, source: Path, last: str) -> None:
        """Write a local directory's files to a directory inside this one, in place of what it holds.

        Args:
            name: Of the directory inside this one.
            source: Local directory of files.
            last: Name of the file that is written last: where it is, the others are too.
        """
        self.retry(lambda: self.fs.create_dir(self.inner(name), recursive=True))
        self.retry(lambda: self.fs.delete_dir_contents(self.inner(name)))
        for file in sorted(source.iterdir(), key=lambda file: file.name == last):
            with pa.memory_map(str(file)) as content:
                self.write_bytes(f"{name}/{file.name}", content.read_buffer())

    def retry(self, action: Callable[[], T]) -> T:
        """Do something with the file system; what a remote one refuses is tried again, for up to six seconds.

        Args:
            action: What to do; doing it again must do no harm.

        Raises:
            OSError: It was refused once more, or for a reason that trying again doesn't change.
        """
        for wait_s in _RETRY_WAITS_S if is_uri(self.uri) else ():
            try:
                return action()
            except OSError as error:
                is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                if is_full or isinstance(error, (FileNotFoundError, PermissionError)):
                    raise
                time.sleep(wait_s * random.uniform(0.5, 1))
        return action()

    def _write(self, path: str, content: bytes | pa.Buffer) -> None:
        if self.fs.type_name in _OBJECT_STORES:
            with self.fs.open_output_stream(path) as stream:
                stream.write(content)
            return
        directory, name = posixpath.split(path)
        # A name of its own: a process that should be dead may be writing the same file.
        temporary = posixpath.join(directory, f".{name}.{uuid.uuid4().hex}.tmp")
        try:
            try:
                stream = self.fs.open_output_stream(temporary)
            except FileNotFoundError:
                self.fs.create_dir(directory, recursive=True)
                stream = self.fs.open_output_stream(temporary)
            with stream:
                stream.write(content)
            self.fs.move(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.fs.delete_file(temporary)
            raise
