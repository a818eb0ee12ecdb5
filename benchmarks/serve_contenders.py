"""Services for `benchmarks/serve.py`: each started as a process of its own, asked whether it is up, and ended.

A contender is a session of its own (`setsid`), as a run of `score_job` is. Only processes of that session, and those
that descend from it, are ever ended.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
from score_job import members
from turns import ROOT

from jobs.background import Background

OURS = "ours-haproxy"
_HOST = "127.0.0.1"
_PRODUCTION = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
_EVERYWHERE = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
# What of a shell would make a contender another one than it is meant to be.
_FOREIGN = ("SENTIMENT_", "RAY_SERVE_", "RAY_ADDRESS", "RAY_AUTH", "RAYON_", "OMP_", "MKL_")
_RIVALS = {
    "serve-default": "serve-default",
    "serve-two-hops": "serve-two-hops",
    "uvicorn-bare": "uvicorn",
    "litserve": "litserve",
}
_READY_S, _POLL_S = 180.0, 0.2
# Serve lets replicas behind HAProxy drain for 30 s; afterwards the processes around them go within seconds.
_DRAIN_S, _GRACE_S = 60.0, 10.0
_SAMPLE_S = 0.5
_MB = 1e6
# Any text whose score tells one model from another.
_PROBE = "what a lovely day"


@dataclass(frozen=True)
class Service:
    """A contender that is up.

    Attributes:
        name: Which.
        port: Where it listens, on loopback.
        pid: Of the process that was started, and number of its session.
    """

    name: str
    port: int
    pid: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{_HOST}:{self.port}"


def contenders() -> tuple[str, ...]:
    """Names of those that can run here; LitServe may not be installed."""
    found = tuple(name for name in _RIVALS if name != "litserve" or importlib.util.find_spec("litserve"))
    return (OURS, "ours-python-proxy", *found)


@contextmanager
def served(name: str, model: Path, scratch: Path, settings: Mapping[str, str] | None = None) -> Iterator[Service]:
    """Run a contender for the length of a `with` block.

    Args:
        name: One of `contenders`.
        model: Bundle.
        scratch: Folder for what it says.
        settings: Further environment.
    """
    port = _free_port()
    said = scratch / f"{name}.log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    environment |= {**_EVERYWHERE, **(_PRODUCTION if name == OURS else {}), **(settings or {})}
    with said.open("wb") as log:
        process = subprocess.Popen(
            _command(name, model, port), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        try:
            _wait_until_up(process, port)
        except _NotUpError as error:
            raise SystemExit(f"{name} {error}:\n{said.read_text(errors='replace')[-2000:]}") from None
        yield Service(name, port, process.pid)
    finally:
        _end(process)


def probe(service: Service) -> float:
    """Ask for the probability that a certain text is positive, the same text of every contender.

    Args:
        service: The contender.
    """
    status, body = _ask(service.port, "POST", "/predict", {"inputs": _PROBE})
    if status != 200:
        raise SystemExit(f"{service.name} answered {status} to a text: {body[:500]!r}")
    best = json.loads(body)[0][0]
    p_positive = best["score"] if best["label"] == "POSITIVE" else 1 - best["score"]
    return round(float(p_positive), 4)


def _command(name: str, model: Path, port: int) -> list[str]:
    where = ["--model", str(model), "--port", str(port)]
    if name in _RIVALS:
        return [sys.executable, "benchmarks/serve_rivals.py", _RIVALS[name], *where]
    return [sys.executable, "-m", "serve_app", *where, "--max-replicas", "1"]


def _free_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind((_HOST, 0))
        return int(probe_socket.getsockname()[1])


class _NotUpError(Exception):
    """Why a contender can't be measured."""


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        if _has_ended(process):
            raise _NotUpError("ended before it was up")
        with contextlib.suppress(OSError, HTTPException):
            if _ask(port, "GET", "/health")[0] == 200:
                return
        time.sleep(_POLL_S)
    raise _NotUpError(f"wasn't up after {_READY_S:.0f} s")


def _ask(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = HTTPConnection(_HOST, port, timeout=30)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Without reaping it: while it is a zombie, nobody else can get its number, which is that of the session too."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the first process to stop, which ends the others in order; what is left of them then is killed."""
    # Known before the first is gone: later nothing would say whose they were.
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGTERM)
    until = time.monotonic() + _DRAIN_S
    while not _has_ended(process) and time.monotonic() < until:
        time.sleep(_POLL_S)
    _, alive = psutil.wait_procs({*family, *members(process.pid)}, timeout=_GRACE_S)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(alive, timeout=_GRACE_S)
    process.wait()


class ReplicaMemory(Background):
    """Samples the memory of a service's only replica for a `with` block."""

    def __init__(self, service: Service) -> None:
        self._replica = _replica_of(service)
        self._rss = [self._replica.memory_info().rss]
        super().__init__("memory", _SAMPLE_S, self._sample)

    def figures(self) -> dict[str, Any]:
        """RSS in MB when it began, at its highest and at the end."""
        if not self._replica.is_running():
            raise SystemExit("the replica died under the load")
        before, after = self._rss[0], self._replica.memory_info().rss
        peak = max(*self._rss, after)
        megabytes = {
            f"rss_{name}_mb": round(value / _MB, 1)
            for name, value in (("before", before), ("peak", peak), ("after", after))
        }
        return {**megabytes, "rss_ratio": round(peak / before, 3), "memory_samples": len(self._rss)}

    def _sample(self) -> None:
        # It may die; `figures` says so.
        with contextlib.suppress(psutil.NoSuchProcess):
            self._rss.append(self._replica.memory_info().rss)


def _replica_of(service: Service) -> psutil.Process:
    """The replica's process; Ray names it."""
    found = [one for one in members(service.pid) if (one.cmdline() or [""])[0].startswith("ray::ServeReplica:")]
    if len(found) != 1:
        raise SystemExit(f"{service.name} has {len(found)} replicas; one was expected")
    return found[0]
