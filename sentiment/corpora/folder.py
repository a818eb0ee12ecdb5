"""A folder that jobs write to, on a local disk or behind any pyarrow or fsspec URI.

Small files are written beside and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import json
import posixpath
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from sentiment.corpora.streams import is_uri, resolve
from sentiment.errors import ConfigError, DataError


class Folder:
    """One output folder; picklable, so that workers write to it too.

    Args:
        uri: Path or URI.

    Attributes:
        uri: As the user would write it.
        fs: Its file system.
        base: The path inside that.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        if is_uri(uri):
            self.fs, self.base = resolve(self.uri)
        else:
            self.fs, self.base = pafs.LocalFileSystem(), str(Path(uri).absolute())

    def inner(self, name: str) -> str:
        """Path of a file inside the file system."""
        return posixpath.join(self.base, name)

    def check(self, *, overwrite: bool) -> None:
        """Refuse a folder that holds something, unless the user has given that up. Changes nothing.

        Args:
            overwrite: It may hold something.

        Raises:
            ConfigError: It holds something and `overwrite` is off.
            DataError: It can't be looked into.
        """
        try:
            found = self.fs.get_file_info(pafs.FileSelector(self.base, allow_not_found=True))
        except OSError as error:
            raise DataError(f"can't write to {self.uri}: {error}") from error
        if found and not overwrite:
            raise ConfigError(f"{self.uri} isn't empty: replace what it holds with --overwrite, or name another")

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

    def read(self, name: str) -> bytes:
        """Read a small file.

        Raises:
            OSError: It isn't there or can't be read.
        """
        with self.fs.open_input_stream(self.inner(name)) as stream:
            content: bytes = stream.read()
        return content

    def write_text(self, name: str, text: str) -> None:
        """Write a small file, whole or not at all."""
        beside = self.inner(f".{name}.tmp")
        with self.fs.open_output_stream(beside) as stream:
            stream.write(text.encode())
        self.fs.move(beside, self.inner(name))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
