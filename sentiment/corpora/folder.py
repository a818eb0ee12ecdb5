"""A folder that jobs write to, on a local disk or behind any pyarrow or fsspec URI.

Files are written beside and renamed, so a reader never sees half of one; object stores show only whole ones anyway.
What a remote store refuses is asked of it again, for up to six seconds.
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
from sentiment.stores import absolute, resolve
from sentiment.uris import is_uri, join, split_query

# Arrow's names of stores in which a file appears once it is written whole.
_OBJECT_STORES = ("s3", "gcs", "abfs")
# Between attempts at what a remote store refused.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_WAITS_S = (0.2, 0.4, 0.8, 1.6, 3.2)
T = TypeVar("T")
# Folder of what a run under way notes down, in its output.
RUN = "_run"
# What jobs write into an output folder, at its top.
_OURS = re.compile(
    r"\..*\.tmp|_run|_SUCCESS|(manifest|evaluation|metrics|mlflow|run|tokenizer)\.json|metrics\.jsonl|curve\.png"
    r"|train|validation|test|features|scored|rejected|bundle|checkpoints|prepared|model|corpus\.csv|archive\.jsonl\.gz"
)


class Folder:
    """One output folder; picklable, so that workers write to it too.

    Args:
        uri: Path or URI.

    Attributes:
        uri: As the user would write it.
        absolute: The same for whoever stands in another folder.
        fs: Its file system.
        base: The path inside that.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.absolute = absolute(self.uri)
        if is_uri(uri):
            self.fs, self.base = resolve(self.uri)
        else:
            self.fs, self.base = pafs.LocalFileSystem(), str(Path(uri).absolute())

    def inner(self, name: str) -> str:
        """Path of a file inside the file system."""
        return posixpath.join(self.base, name)

    @property
    def real(self) -> str:
        """The path inside the file system, on a disk without links and `..`: one place has one."""
        return os.path.realpath(self.base) if isinstance(self.fs, pafs.LocalFileSystem) else self.base

    def address(self, name: str) -> str:
        """Absolute path or URI of something in it; for a URI, options behind the question mark stay there."""
        return join(self.absolute, name)

    def check_inputs(self, inputs: Iterable[str]) -> None:
        """Refuse inputs that overlap with the folder.

        Args:
            inputs: What the job reads: nothing of it may lie in the folder, nor the folder in one that is read.

        Raises:
            ConfigError: An input is in it, or it in an input.
        """
        for given in inputs:
            # A URI's options say where the store is.
            whole, query = split_query(given)
            path, wildcard = re.match(r"([^*?\[]*)(.*)", whole, re.DOTALL).groups()  # type: ignore[union-attr]
            read, mine = f"{Folder(path + query).real.rstrip('/')}/", f"{self.real.rstrip('/')}/"
            # A glob's folder may hold the output: what the glob takes is known before anything is written.
            if read.startswith(mine) or (not wildcard and mine.startswith(read)):
                raise ConfigError(f"--output {self.uri} and the input {given} overlap; name another --output")

    def check_files(self, paths: Iterable[str]) -> None:
        """Refuse files that lie in the folder: a glob may have found what an earlier run wrote.

        Args:
            paths: Of the files that are to be read.

        Raises:
            ConfigError: One of them is in it.
        """
        scheme = self.uri.partition("://")[0] if is_uri(self.uri) else ""
        for path in paths:
            its, _, inner = path.partition("://") if is_uri(path) else ("", "", os.path.realpath(path))
            if its == scheme and f"/{inner.lstrip('/')}".startswith(f"/{self.real.strip('/')}/"):
                raise ConfigError(f"the input {path} lies in --output {self.uri}; name another --output or --input")

    def check(self, *, overwrite: bool, inputs: Iterable[str] = ()) -> None:
        """Refuse a folder that holds something, unless the user has given that up. Changes nothing.

        Args:
            overwrite: It may hold what jobs write; anything else in it is never removed.
            inputs: What the job reads, for `check_inputs`.

        Raises:
            ConfigError: It holds something and `overwrite` is off, or something that no job wrote; or an input is
                in it.
            DataError: It can't be looked into.
        """
        self.check_inputs(inputs)
        try:
            there = self.fs.get_file_info(pafs.FileSelector(self.base, allow_not_found=True))
        except OSError as error:
            raise DataError(f"can't write to {self.uri}: {error}") from error
        # Of the caller's own lock, or of a run that was killed before it had written anything.
        found = [info for info in there if info.base_name != RUN]
        if found and not overwrite:
            raise ConfigError(f"{self.uri} isn't empty: replace what it holds with --overwrite, or name another")
        foreign = sorted(info.base_name for info in found if not _OURS.fullmatch(info.base_name))
        if foreign:
            raise ConfigError(f"{self.uri} holds {foreign[0]!r}, which no job wrote: it isn't replaced; name another")

    def claim(self, *, overwrite: bool) -> None:
        """Make the folder, empty it if it isn't: the last step before work begins, once nothing else can refuse it.

        Args:
            overwrite: It may hold something.

        Raises:
            ConfigError: It holds something and `overwrite` is off.
            DataError: It can't be made.
        """
        self.check(overwrite=overwrite)
        try:
            self.fs.create_dir(self.base, recursive=True)
            self.fs.delete_dir_contents(self.base)
        except OSError as error:
            raise DataError(f"can't write to {self.uri}: {error}") from error

    def has(self, name: str) -> bool:
        """Whether there is such a file.

        Raises:
            OSError: It can't be found out.
        """
        return bool(self.fs.get_file_info(self.inner(name)).is_file)

    def read(self, name: str) -> bytes:
        """Read a small file.

        Raises:
            OSError: It isn't there or can't be read.
        """
        return self.insist(lambda: self._read(name))

    def write_bytes(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file, whole or not at all; its folder is made if it must be.

        Raises:
            OSError: It can't be written; nothing is left of it.
        """
        self.insist(lambda: self._write(self.inner(name), content))

    def upload(self, name: str, source: Path, last: str) -> None:
        """Write a folder's files to a folder inside this one, one of them last: where it is, the others are too.

        Args:
            name: Of the folder inside this one; what it holds is replaced.
            source: Local folder, without folders in it.
            last: Name of that file.

        Raises:
            OSError: It can't be written.
        """
        self.insist(lambda: self.fs.create_dir(self.inner(name), recursive=True))
        self.insist(lambda: self.fs.delete_dir_contents(self.inner(name)))
        for file in sorted(source.iterdir(), key=lambda file: file.name == last):
            with pa.memory_map(str(file)) as content:
                self.write_bytes(f"{name}/{file.name}", content.read_buffer())

    def insist(self, act: Callable[[], T]) -> T:
        """Do something with the folder's store; what a remote one refuses is asked of it again, for up to six seconds.

        Args:
            act: What to do; doing it again must do no harm.

        Raises:
            OSError: It was refused once more, or for a reason that asking again doesn't mend.
        """
        for wait_s in _WAITS_S if is_uri(self.uri) else ():
            try:
                return act()
            except OSError as error:
                if isinstance(error, (FileNotFoundError, PermissionError)) or error.errno in _FULL:
                    raise
                time.sleep(wait_s * random.uniform(0.5, 1))
        return act()

    def _read(self, name: str) -> bytes:
        with self.fs.open_input_stream(self.inner(name)) as stream:
            content: bytes = stream.read()
        return content

    def _write(self, path: str, content: bytes | pa.Buffer) -> None:
        if self.fs.type_name in _OBJECT_STORES:
            with self.fs.open_output_stream(path) as stream:
                stream.write(content)
            return
        # A name of its own: a process that should be dead may be writing the same file.
        beside = posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)}.{uuid.uuid4().hex}.tmp")
        try:
            try:
                stream = self.fs.open_output_stream(beside)
            except FileNotFoundError:
                self.fs.create_dir(posixpath.dirname(path), recursive=True)
                stream = self.fs.open_output_stream(beside)
            with stream:
                stream.write(content)
            self.fs.move(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.fs.delete_file(beside)
            raise

    def write_text(self, name: str, text: str) -> None:
        """Write a small file, whole or not at all."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
