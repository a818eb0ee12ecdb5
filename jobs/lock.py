"""Keeps two runs from the same output, on a disk or in a bucket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pyarrow.fs as pafs

from jobs.background import Background
from sentiment.corpora.folder import RUN, Folder
from sentiment.errors import ConfigError
from sentiment.uris import is_uri

LOCK = f"{RUN}/lock.json"
_BEAT_S = 10.0
# A process on another machine is taken for dead when its lock hasn't changed for so long.
_SILENCE_S = 35.0
# After which a lock is read back to see whether it is still the own one: in a bucket a write takes its time.
_LOCAL_S, _REMOTE_S = 0.3, 1.0


class Lock:
    """Keeps a second run away from an output, for a `with` block.

    Whoever holds it writes a growing number every few seconds. A holder that was killed is known at once by its process
    id on the same machine, elsewhere by its silence. Were two to hold it nevertheless, both would write the same rows
    to the same files.

    Args:
        output: The output folder.
        beat_s: Seconds between two signs of life.
        silence_s: Seconds without any after which another machine's process counts as dead.
    """

    def __init__(self, output: Folder, beat_s: float = _BEAT_S, silence_s: float = _SILENCE_S) -> None:
        self._output, self._beat_s, self._silence_s = output, beat_s, silence_s
        self._mine: dict[str, Any] = {
            "run": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_namespace": _pid_namespace(),
            "process_started": psutil.Process().create_time(),
            "beat": 0,
        }
        self._beats = Background("lock", beat_s, self._beat)
        self._is_lost = False

    def __enter__(self) -> Lock:
        self._wait_for_silence()
        self._write()
        # Two that start at the same moment both get here; the later one's file stays.
        time.sleep(min(_REMOTE_S if is_uri(self._output.uri) else _LOCAL_S, self._beat_s / 10))
        self._refuse_another(self._read())
        self._beats.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._beats.__exit__(kind, error, traceback)
        with contextlib.suppress(OSError):
            if not self._is_lost and self._is_mine(self._read()):
                self._output.fs.delete_file(self._output.inner(LOCK))
                self._tidy()

    def _tidy(self) -> None:
        """Remove its folder too, unless a run keeps something in there."""
        fs, folder = self._output.fs, self._output.inner(RUN)
        if isinstance(fs, pafs.LocalFileSystem):
            Path(folder).rmdir()  # Fails if there is anything, such as a lock that somebody has just taken.
        elif not fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True)):
            fs.delete_dir(folder)

    def check(self) -> None:
        """See that nobody else has taken it.

        Raises:
            ConfigError: Somebody has.
        """
        if self._is_lost:
            self._refuse_another(self._read() or {})

    def check_now(self) -> None:
        """The same without waiting for the next beat.

        Raises:
            ConfigError: Somebody has taken it, or removed it.
        """
        there = self._read()
        if not self._is_mine(there):
            self._refuse_another(there or {})

    def renew(self) -> None:
        """Write it again, after the folder was emptied."""
        self._write()

    def _wait_for_silence(self) -> None:
        there = self._read()
        if there is None:
            return
        namespace = there.get("pid_namespace", self._mine["pid_namespace"])
        if (there.get("host"), namespace) == (self._mine["host"], self._mine["pid_namespace"]):
            if _is_alive(there):
                self._refuse_another(there)
            return
        print(f"is another run at {self._output.uri}? Looking for {self._silence_s:.0f} s", file=sys.stderr, flush=True)
        until = time.monotonic() + self._silence_s
        while time.monotonic() < until:
            time.sleep(self._beat_s / 5)
            now = self._read()
            if now is None:
                return
            if now != there:
                self._refuse_another(now)

    def _refuse_another(self, there: dict[str, Any] | None) -> None:
        if there is None or self._is_mine(there):
            return
        if not there:
            raise ConfigError(f"the lock of {self._output.uri} was taken away: another run may be at it; run again")
        raise ConfigError(
            f"another run is at {self._output.uri} (process {there.get('pid')} on {there.get('host')}): wait until it "
            "ends, or name another --output"
        )

    def _is_mine(self, there: dict[str, Any] | None) -> bool:
        return there is not None and there.get("run") == self._mine["run"]

    def _beat(self) -> None:
        if self._is_lost:
            return
        # A store that can't be reached now may be there the next time; a missed beat isn't silence yet. Whatever its
        # driver raises: without a beat others would think us dead.
        with contextlib.suppress(Exception):
            there = self._read()
            if there is not None and not self._is_mine(there):
                self._is_lost = True
                return
            self._mine["beat"] += 1
            self._write()

    def _read(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self._output.read(LOCK))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self) -> None:
        self._output.write_json(LOCK, self._mine)


def _pid_namespace() -> int | None:
    """Where process ids mean the same: containers may share a host's name."""
    namespace = Path("/proc/self/ns/pid")
    return namespace.stat().st_ino if namespace.exists() else None


def _is_alive(holder: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(int(holder["pid"]))
        # Another process may have got the number since; and a dead one keeps it until its parent asks.
        is_same = abs(process.create_time() - float(holder["process_started"])) < 1
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError, TypeError):
        return False
