"""Heads of Ray clusters, started as people start them: by `ray start`, in processes of their own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def started_head(*flags: str, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A head for a `with` block: its process and its log."""
    # The paths of Ray's sockets must be shorter than 108 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    with (folder / "head.log").open("w+") as log:
        process = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}"),
                *(f"--object-store-memory={400 << 20}", "--num-gpus=0", *flags),
            ],
            cwd=folder,
            env={name: value for name, value in env.items() if name != "PYTHONPATH"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process, folder / "head.log"
        finally:
            _end(process)
            shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a head and all that it started; `ray stop` would end every Ray of the machine."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
    process.wait()
