"""Load on a service: wrk for requests, curl for archives, and a client of its own that doesn't wait for answers.

wrk and curl are programs in C that take little of a machine that they share with what they measure. wrk's connections
ask again only once they were answered, so a service that slows down is asked less: overload needs `flood`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import httptools
import numpy as np
import uvloop

from benchmarks.harness import Figures

HOST = "127.0.0.1"
# Each thread goes round the bodies from a place of its own, so that connections don't ask for the same text in step.
WRK_SCRIPT = """
local threads = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
function setup(thread)
   threads = threads + 1
   thread:set("number", threads)
end
function init(args)
   requests = {}
   for body in io.lines(args[1]) do requests[#requests + 1] = wrk.format(nil, nil, nil, body) end
   math.randomseed(os.time() + 7919 * number)
   index = math.random(#requests)
end
function request()
   index = index % #requests + 1
   return requests[index]
end
function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '{"answers": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "max_us": %d, ' ..
      '"errors": {"status of 400 or more": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}}\\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
      errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
"""
# Answers that take longer are errors of their own to wrk; the service gives up before that.
WRK_TIMEOUT_S = 40
# Requests of a flood that are due go out together this often.
TICK_S = 0.002


def wrk_version() -> str:
    """Version of wrk, once it is clear that both programs are there."""
    for program in ("wrk", "curl"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} isn't installed; it comes with the system: apt-get install {program}")
    # It prints its version and then its usage, with an exit status of 1.
    printed = subprocess.run(["wrk", "-v"], check=False, capture_output=True, text=True)
    return (printed.stdout + printed.stderr).split()[1]


def write_bodies(texts: Sequence[str], path: Path, per_request: int | None = None) -> Path:
    """Write bodies of requests to /predict, one on a line: a single text each, or lists of so many."""
    inputs: list[Any] = list(texts)
    if per_request:
        starts = range(0, len(texts) - per_request + 1, per_request)
        inputs = [inputs[start : start + per_request] for start in starts]
    path.write_text("".join(json.dumps({"inputs": one}) + "\n" for one in inputs))
    return path


def hit(url: str, bodies: Path, *, connections: int, seconds: int) -> Figures:
    """Ask for predictions over some connections, each of which waits for its answer before it asks again.

    Args:
        url: Of the service.
        bodies: File of `write_bodies`.
        connections: Kept open.
        seconds: How long.

    Returns:
        Answers without an error a second, latencies in ms, and what failed.
    """
    script = bodies.with_suffix(".lua")
    script.write_text(WRK_SCRIPT)
    load = [f"-t{min(2, connections)}", f"-c{connections}", f"-d{seconds}s", f"--timeout={WRK_TIMEOUT_S}s"]
    command = ["wrk", *load, f"--script={script}", f"{url}/predict", "--", str(bodies)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    answered = found["answers"] - found["errors"]["status of 400 or more"]
    if not answered:
        raise SystemExit(f"{url} answered nothing but errors: {found}")
    figures = {f"{name}_ms": round(found[f"{name}_us"] / 1e3, 2) for name in ("p50", "p99", "max")}
    figures["requests_per_s"] = round(answered / (found["duration_us"] / 1e6), 1)
    return {**figures, "errors": {kind: count for kind, count in found["errors"].items() if count}}


def upload(url: str, texts: Sequence[str], folder: Path) -> Figures:
    """Stream texts as JSON lines through /score; texts a second from the connection to the last answer."""
    lines, scored = folder / "archive.jsonl", folder / "archive.scored"
    lines.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts)))
    # -T reads the file piece by piece, and would make it a PUT; a shell's proxy is none for loopback.
    options = ["-sS", "--fail", "--noproxy", "*", "-X", "POST", "-H", "Content-Type: application/x-ndjson"]
    command = ["curl", *options, "-T", str(lines), "-o", str(scored), "-w", "%{time_total}", f"{url}/score"]
    elapsed_s = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    answers = [json.loads(line) for line in scored.read_text().splitlines()]
    if len(answers) != len(texts) or any("error" in answer for answer in answers):
        raise SystemExit(f"/score gave {len(answers)} answers to {len(texts)} lines, or errors among them: {scored}")
    return {"texts": len(texts), "elapsed_s": elapsed_s, "texts_per_s": round(len(texts) / elapsed_s, 1)}


def flood(port: int, bodies: Path, rate: float, seconds: float, connections: int, patience_s: float) -> Figures:
    """Send requests at a rate, whatever becomes of them.

    Args:
        port: Of the service, on this machine.
        bodies: File of `write_bodies`.
        rate: Requests due each second.
        seconds: How long.
        connections: At most; a request that is due while all wait for an answer is held back: it isn't sent.
        patience_s: How long answers are waited for after the last request.

    Returns:
        Requests sent, held back, lost (the connection failed) and unanswered; answers by status; latencies of the
        accepted ones from the moment they were due, so that lateness of this client counts against the service.
    """
    limit = allow_open_files()
    if limit < connections + 64:
        raise SystemExit(f"{connections} connections are too many: this user may open {limit} files (ulimit -n)")
    head = f"POST /predict HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies.read_bytes().splitlines()]
    client = _FloodClient(port, requests, connections)
    sending_s = uvloop.run(client.run(rate, seconds, patience_s))
    accepted_ms = 1e3 * np.array(client.accepted_s)
    percentiles = zip(("p50", "p99", "max"), (50, 99, 100), strict=True)
    return {
        "rate": round(rate, 1),
        "sent": client.sent,
        "held_back": client.held_back,
        "lost": client.lost,
        "unanswered": client.under_way,
        "statuses": {str(status): count for status, count in sorted(client.statuses.items())},
        "offered_per_s": round(client.sent / sending_s, 1),
        "accepted_per_s": round(len(accepted_ms) / sending_s, 1),
        **{
            f"accepted_{name}_ms": round(float(np.percentile(accepted_ms, share)), 1) if len(accepted_ms) else None
            for name, share in percentiles
        },
        "client_cpu_s": round(time.process_time(), 1),
    }


def allow_open_files() -> int:
    """Raise the number of files that this process may open to its limit, and return that."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return limit


class _FloodClient:
    """Connections to the service, opened as they are needed, and what came back over them."""

    def __init__(self, port: int, requests: Sequence[bytes], connections: int) -> None:
        self.idle: list[_FloodConnection] = []
        self.sent = self.held_back = self.lost = self.open = 0
        self.statuses: Counter[int] = Counter()
        self.accepted_s: list[float] = []
        self._port, self._requests, self._connections = port, itertools.cycle(requests), connections

    @property
    def under_way(self) -> int:
        return self.sent - self.lost - self.statuses.total()

    async def run(self, rate: float, seconds: float, patience_s: float) -> float:
        """Send all, wait for the last answers, and return the seconds that sending took."""
        loop, mistakes, due = asyncio.get_running_loop(), list[Any](), 0
        # A mistake of this client must not look like silence of the service.
        loop.set_exception_handler(lambda _, context: mistakes.append(context))
        async with asyncio.TaskGroup() as opening:
            began, total = loop.time(), int(rate * seconds)
            while due < total:
                until = min(total, int((loop.time() - began) * rate))
                for number in range(due, until):
                    self._send(began + number / rate, opening)
                due = until
                await asyncio.sleep(TICK_S)
            sending_s = loop.time() - began
        while self.under_way and loop.time() < began + sending_s + patience_s:
            await asyncio.sleep(TICK_S)
        if mistakes:
            raise SystemExit(f"{len(mistakes)} mistakes of the client, such as {mistakes[0]}")
        return sending_s

    def _send(self, due: float, opening: asyncio.TaskGroup) -> None:
        if not self.idle and self.open >= self._connections:
            self.held_back += 1
            return
        self.sent += 1
        if self.idle:
            self.idle.pop().send(next(self._requests), due)
        else:
            self.open += 1
            opening.create_task(self._connect_and_send(next(self._requests), due))

    async def _connect_and_send(self, request: bytes, due: float) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _FloodConnection(self), HOST, self._port
            )
        except OSError:
            self.open, self.lost = self.open - 1, self.lost + 1
        else:
            connection.send(request, due)


class _FloodConnection(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self, client: _FloodClient) -> None:
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
        latency_s, self._due = asyncio.get_running_loop().time() - self._due, None
        status = self._parser.get_status_code()
        self._client.statuses[status] += 1
        if 200 <= status < 300:
            self._client.accepted_s.append(latency_s)
        if self._parser.should_keep_alive():
            self._client.idle.append(self)
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.open -= 1
        self._client.lost += self._due is not None
        if self in self._client.idle:
            self._client.idle.remove(self)
