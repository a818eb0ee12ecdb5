"""A lock that keeps a second run away from an output directory, on a disk or in a bucket."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any, Self

import psutil
import pyarrow.fs as pafs

from sentiment.background import Background
from sentiment.errors import ConfigError
from sentiment.storage.output_directory import RUN, OutputDirectory
from sentiment.storage.uris import is_uri

_log = logging.getLogger(__name__)

LOCK = f"{RUN}/lock.json"
# Seconds after which a new lock is read back to see whether it was overwritten: in a bucket a write takes its time.
_LOCAL_SETTLE_S, _REMOTE_SETTLE_S = 0.3, 1.0


class Lock:
    """Keeps a second run away from an output directory, for a `with` block.

    The holder writes a growing number every few seconds. One that was killed is known at once by its process id on the
    same machine, elsewhere by its silence. Were two to hold the lock nevertheless, both would write the same rows to
    the same files.

    Args:
        output: The output directory.
        beat_s: Seconds between two heartbeats.
        silence_s: Seconds without a heartbeat after which a process on another machine counts as dead.
    """

    def __init__(self, output: OutputDirectory, beat_s: float = 10.0, silence_s: float = 35.0) -> None:
        self._output, self._beat_s, self._silence_s = output, beat_s, silence_s
        # Process ids mean the same in one namespace: containers may share a host's name.
        namespace = Path("/proc/self/ns/pid")
        self._content: dict[str, Any] = {
            "run": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_namespace": namespace.stat().st_ino if namespace.exists() else None,
            "process_started": psutil.Process().create_time(),
            "beat": 0,
        }
        self._heartbeat = Background("lock", beat_s, self._beat)
        self._is_lost = False

    def __enter__(self) -> Self:
        self._wait_for_holder()
        self.renew()
        # Two that start at the same moment both get this far; the later one's file stays.
        time.sleep(min(_REMOTE_SETTLE_S if is_uri(self._output.uri) else _LOCAL_SETTLE_S, self._beat_s / 10))
        self._refuse(self._read())
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._heartbeat.__exit__(*error)
        fs, directory = self._output.fs, self._output.inner(RUN)
        with contextlib.suppress(OSError):
            if self._is_lost or not self._is_mine(self._read()):
                return
            fs.delete_file(self._output.inner(LOCK))
            # Its directory too, unless it holds anything else, such as the lock that somebody has just taken.
            if isinstance(fs, pafs.LocalFileSystem):
                Path(directory).rmdir()
            elif not fs.get_file_info(pafs.FileSelector(directory, allow_not_found=True)):
                fs.delete_dir(directory)

    def check(self) -> None:
        """See that at the last heartbeat nobody else had taken the lock.

        Raises:
            ConfigError: Somebody had.
        """
        if self._is_lost:
            self.check_now()

    def check_now(self) -> None:
        """See that nobody else has taken the lock, without waiting for the next heartbeat.

        Raises:
            ConfigError: Somebody has taken or removed it.
        """
        self._refuse(self._read() or {})

    def renew(self) -> None:
        """Write the lock, after the directory was emptied too."""
        self._output.write_json(LOCK, self._content)

    def _wait_for_holder(self) -> None:
        """Return once no other process holds the lock; raises ConfigError if one does."""
        holder = self._read()
        if holder is None:
            return
        mine = self._content
        is_same_namespace = holder.get("pid_namespace", mine["pid_namespace"]) == mine["pid_namespace"]
        if holder.get("host") == mine["host"] and is_same_namespace:
            if _is_alive(holder):
                self._refuse(holder)
            return
        _log.info(f"is another run at {self._output.uri}? Looking for {self._silence_s:.0f} s")
        deadline = time.monotonic() + self._silence_s
        while time.monotonic() < deadline:
            time.sleep(self._beat_s / 5)
            current = self._read()
            if current is None:
                return
            if current != holder:
                self._refuse(current)

    def _refuse(self, holder: dict[str, Any] | None) -> None:
        """Raise ConfigError if the lock is another's; an empty holder is a lock that was removed."""
        if holder is None or self._is_mine(holder):
            return
        if not holder:
            raise ConfigError(f"the lock of {self._output.uri} was taken away: another run may be at it; run again")
        raise ConfigError(
            f"another run is at {self._output.uri} (process {holder.get('pid')} on {holder.get('host')}): wait until "
            "it ends, or name another --output"
        )

    def _is_mine(self, holder: dict[str, Any] | None) -> bool:
        return holder is not None and holder.get("run") == self._content["run"]

    def _beat(self) -> None:
        if self._is_lost:
            return
        # A store that can't be reached now may answer the next time, and one missed beat isn't silence yet. Whatever
        # its driver raises: without a heartbeat others would think us dead.
        with contextlib.suppress(Exception):
            holder = self._read()
            if holder is not None and not self._is_mine(holder):
                self._is_lost = True
                return
            self._content["beat"] += 1
            self.renew()

    def _read(self) -> dict[str, Any] | None:
        """What the lock's file says; None without a file, empty if it is damaged."""
        try:
            content = json.loads(self._output.read(LOCK))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(int(holder["pid"]))
        # Another process may have got the number since; and a dead one keeps it until its parent asks.
        is_same = abs(process.create_time() - float(holder["process_started"])) < 1
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError, TypeError):
        return False
