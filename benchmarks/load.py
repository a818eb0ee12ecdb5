"""Load on a service: requests as fast as they are answered, or at a set rate whatever becomes of them; archives.

The client shares the machine with the service that it measures. Its event loop and HTTP parser are in C (uvloop and
httptools, as uvicorn has them): a thousand requests a second take about 5 % of a core.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import httptools
import numpy as np
import uvloop

from benchmarks.harness import Figures, rate_of

HOST = "127.0.0.1"
# Requests of a set rate that are due go out together this often.
TICK_S = 0.002


def write_bodies(texts: Sequence[str], path: Path, per_request: int | None = None) -> Path:
    """Write bodies of requests to /predict, one on a line: a single text each, or lists of so many."""
    inputs: list[Any] = list(texts)
    if per_request:
        starts = range(0, len(texts) - per_request + 1, per_request)
        inputs = [inputs[start : start + per_request] for start in starts]
    path.write_text("".join(json.dumps({"inputs": one}) + "\n" for one in inputs))
    return path


def ask(
    port: int, bodies: Path, *, connections: int, seconds: float, rate: float | None = None, patience_s: float = 0
) -> Figures:
    """Ask a service on this machine for predictions.

    Args:
        port: Where it listens.
        bodies: File of `write_bodies`.
        connections: With a rate at most: a request that is due while all wait for an answer is held back, not sent.
        seconds: How long.
        rate: Requests due each second, whatever becomes of earlier ones; None: each connection asks again when it has
            its answer.
        patience_s: How long answers are waited for after the last request.

    Returns:
        Requests sent, held back, lost (the connection failed) and unanswered; answers by status; of the accepted ones
        (2xx) how many a second, and latencies from the moment they were due, so that lateness of this client counts
        against the service.
    """
    limit = allow_open_files()
    if limit < connections + 64:
        raise SystemExit(f"{connections} connections are too many: this user may open {limit} files (ulimit -n)")
    head = f"POST /predict HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies.read_bytes().splitlines()]
    client = _Client(port, requests, connections)
    cpu_s = time.process_time()
    sending_s = uvloop.run(client.run(rate, seconds, patience_s))
    cpu_s = time.process_time() - cpu_s
    if not client.accepted_s:
        raise SystemExit(f"port {port} accepted nothing: {client.lost} connections failed, {dict(client.statuses)}")
    percentiles = 1e3 * np.percentile(client.accepted_s, (50, 99, 100))
    return {
        "sent": client.sent,
        "held_back": client.held_back,
        "lost": client.lost,
        "unanswered": client.under_way,
        "statuses": {str(status): count for status, count in sorted(client.statuses.items())},
        "offered_per_s": round(client.sent / sending_s, 1),
        "requests_per_s": round(len(client.accepted_s) / sending_s, 1),
        **{f"{name}_ms": round(ms, 2) for name, ms in zip(("p50", "p99", "max"), percentiles.tolist(), strict=True)},
        "client_cpu_s": round(cpu_s, 2),
    }


def upload(port: int, texts: Sequence[str], folder: Path) -> Figures:
    """Stream texts as JSON lines through /score; texts a second from the connection to the last answer."""
    lines, scored = folder / "archive.jsonl", folder / "archive.scored"
    lines.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts)))
    # -T reads the file piece by piece, and would make it a PUT and wait to be told to go on, which earlier versions of
    # the service behind HAProxy don't survive; a shell's proxy is none for loopback.
    options = [
        "-sS",
        "--fail",
        "--noproxy",
        "*",
        "-X",
        "POST",
        "-H",
        "Content-Type: application/x-ndjson",
        "-H",
        "Expect:",
    ]
    command = ["curl", *options, "-T", str(lines), "-o", str(scored), "-w", "%{time_total}", f"{HOST}:{port}/score"]
    elapsed_s = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    answers = [json.loads(line) for line in scored.read_text().splitlines()]
    if len(answers) != len(texts) or any("error" in answer for answer in answers):
        raise SystemExit(f"/score gave {len(answers)} answers to {len(texts)} lines, or errors among them: {scored}")
    return rate_of(len(texts), elapsed_s, "texts")


def allow_open_files() -> int:
    """Raise the number of files that this process may open to its limit, and return that."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return limit


class _Client:
    """Connections to the service, opened as they are needed, and what came back over them."""

    def __init__(self, port: int, requests: Sequence[bytes], connections: int) -> None:
        self.idle: list[_Connection] = []
        self.sent = self.held_back = self.lost = self.open = 0
        self.statuses: Counter[int] = Counter()
        self.accepted_s: list[float] = []
        self._asks_again = False
        self._opening = asyncio.TaskGroup()
        self._port, self._requests, self._connections = port, itertools.cycle(requests), connections

    @property
    def under_way(self) -> int:
        return self.sent - self.lost - self.statuses.total()

    async def run(self, rate: float | None, seconds: float, patience_s: float) -> float:
        """Send all, wait for the last answers, and return the seconds that sending took."""
        mistakes, sent, now = list[Any](), 0, time.perf_counter  # The loop's own clock has whole milliseconds.
        # A mistake of this client must not look like silence of the service.
        asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
        began = now()
        async with self._opening:
            if rate is None:
                self._asks_again = True
                for _ in range(self._connections):
                    self._send(began)
                await asyncio.sleep(seconds)
                self._asks_again = False
            while rate is not None and sent < int(rate * seconds):
                due = min(int(rate * seconds), int((now() - began) * rate))
                for number in range(sent, due):
                    self._send(began + number / rate)
                sent = due
                await asyncio.sleep(TICK_S)
            sending_s = now() - began
        while self.under_way and now() < began + sending_s + patience_s:
            await asyncio.sleep(TICK_S)
        if mistakes:
            raise SystemExit(f"{len(mistakes)} mistakes of the client, such as {mistakes[0]}")
        return sending_s

    def _send(self, due: float) -> None:
        if self.idle:
            self.sent += 1
            self.idle.pop().send(next(self._requests), due)
        elif self.open < self._connections:
            self.sent, self.open = self.sent + 1, self.open + 1
            self._opening.create_task(self._connect_and_send(next(self._requests), due))
        else:
            self.held_back += 1

    def note(self, status: int, latency_s: float) -> None:
        self.statuses[status] += 1
        if 200 <= status < 300:
            self.accepted_s.append(latency_s)

    def is_free(self, connection: _Connection | None) -> None:
        """A connection has its answer, or (None) is closed and may be replaced."""
        if connection is None:
            self.open -= 1
        else:
            self.idle.append(connection)
        if self._asks_again:
            self._send(time.perf_counter())

    async def _connect_and_send(self, request: bytes, due: float) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), HOST, self._port
            )
        except OSError:
            self.open, self.lost = self.open - 1, self.lost + 1
        else:
            connection.send(request, due)


class _Connection(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self, client: _Client) -> None:
        self._client, self._parser = client, httptools.HttpResponseParser(self)
        self._due: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own kind, which only behaves like one.

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        assert self._due is not None
        latency_s, self._due = time.perf_counter() - self._due, None
        self._client.note(self._parser.get_status_code(), latency_s)
        if self._parser.should_keep_alive():
            self._client.is_free(self)
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.lost += self._due is not None
        if self in self._client.idle:
            self._client.idle.remove(self)
        self._client.is_free(None)
