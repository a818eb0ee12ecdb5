"""A file system that fails one write in ten, `flaky:///path`; what it failed is noted in the file FLAKY_STORE_LOG.

Installed as fsspec plugins are, by an entry point: jobs and Ray's workers find it by themselves.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

SHARE = 0.1


class FlakyFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The local disk, on a bad day: half of the failures come before anything is written, half in the middle."""

    protocol = "flaky"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        stripped: str = super()._strip_protocol(str(path).removeprefix("flaky://"))
        return stripped

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        if "w" not in mode or random.random() >= SHARE:
            return super()._open(path, mode, **more)
        with Path(os.environ["FLAKY_STORE_LOG"]).open("a") as log:
            log.write(f"{path}\n")
        if random.random() < 0.5:
            raise OSError(errno.EIO, "the store is having a bad day")
        return _Breaking(super()._open(path, mode, **more))


class _Breaking:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, content: bytes) -> int:
        self._file.write(bytes(content)[: len(content) // 2])
        raise OSError(errno.EIO, "the store is having a bad day")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
