"""Where Ray Train keeps its own files: the output folder, as a file system that Ray Train may be given."""

from __future__ import annotations

import io
import posixpath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from sentiment.corpora.folder import Folder


def train_storage(folder: Folder) -> pafs.FileSystem:
    """A folder's file system with the manners of `Folder`: files whole or not at all, a store asked again.

    Ray Train's controller overwrites its list of checkpoints in place and takes the first refusal for a lost run.

    Args:
        folder: What Ray Train writes to lies in it.

    Returns:
        The file system; its paths are those of `folder.fs`.
    """
    return pafs.PyFileSystem(_Storage(folder))


class _Storage(pafs.FileSystemHandler):
    def __init__(self, folder: Folder) -> None:
        self._folder, self._fs = folder, folder.fs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Storage) and (self._fs, self._folder.base) == (other._fs, other._folder.base)

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        return f"train+{self._fs.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self._fs.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return list(self._folder.insist(lambda: self._fs.get_file_info(paths)))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return list(self._folder.insist(lambda: self._fs.get_file_info(selector)))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._folder.insist(lambda: self._fs.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._folder.insist(lambda: self._fs.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._folder.insist(lambda: self._fs.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("the whole store isn't ours")

    def delete_file(self, path: str) -> None:
        self._folder.insist(lambda: self._fs.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        self._fs.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._folder.insist(lambda: self._fs.copy_file(src, dest))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self._folder.insist(lambda: self._fs.open_input_stream(path))

    def open_input_file(self, path: str) -> pa.NativeFile:
        return self._folder.insist(lambda: self._fs.open_input_file(path))

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_WrittenAtClose(self._folder, posixpath.relpath(path, self._folder.base)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("files are written whole")


class _WrittenAtClose(io.BytesIO):
    """A small file: Ray Train's marker and its list of checkpoints; the checkpoints go through `Folder.upload`."""

    def __init__(self, folder: Folder, name: str) -> None:
        super().__init__()
        self._folder, self._name = folder, name

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._folder.write_bytes(self._name, content)
