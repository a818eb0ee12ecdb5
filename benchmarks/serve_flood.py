"""A client that doesn't wait, for `benchmarks/serve.py overload`: requests go out at a set rate, answered or not.

  python benchmarks/serve_flood.py JSON      # prints JSON; the arguments are those of `flood`

wrk can't do this: its connections ask again only when they were answered, so that a service which slows down is asked
less, and it puts the times of refusals, which are short, together with those of answers.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httptools
import numpy as np
import uvloop

_HOST = "127.0.0.1"
# Requests that are due go out together this often.
_TICK_S = 0.002
# Files that a process may open, beside its connections.
_SPARE_FILES = 64


def flood(port: int, bodies: str, rate: float, seconds: float, connections: int, patience_s: float) -> dict[str, Any]:
    """Send requests at a rate, whatever becomes of them.

    Args:
        port: Of the service, on this machine.
        bodies: File of `serve_load.write_bodies`.
        rate: Requests due each second.
        seconds: How long.
        connections: At most; a request that is due while all wait for an answer is held back: it isn't sent.
        patience_s: How long answers are waited for after the last request.

    Returns:
        Requests due, sent, held back, lost (the connection failed) and unanswered; answers by status; latencies of the
        accepted ones from the moment they were due, so that lateness of this client counts against the service.
    """
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    if most_files != resource.RLIM_INFINITY and most_files < connections + _SPARE_FILES:
        raise SystemExit(f"{connections} connections are too many: this user may open {most_files} files (ulimit -n)")
    requests = [_request(port, body) for body in Path(bodies).read_bytes().splitlines()]
    found = uvloop.run(_flood(port, requests, rate, seconds, connections, patience_s))
    return {**found, "client_cpu_s": round(time.process_time(), 1)}


def _request(port: int, body: bytes) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: {_HOST}:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _flood(
    port: int, requests: list[bytes], rate: float, seconds: float, connections: int, patience_s: float
) -> dict[str, Any]:
    clients = _Clients(port, itertools.cycle(requests), connections)
    loop = asyncio.get_running_loop()
    # A mistake of this client must not look like silence of the service.
    mistakes: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: mistakes.append(context))
    began, due, total = loop.time(), 0, int(rate * seconds)
    while due < total:
        until = min(total, int((loop.time() - began) * rate))
        for number in range(due, until):
            clients.send(began + number / rate)
        due = until
        await asyncio.sleep(_TICK_S)
    sending_s = loop.time() - began
    while clients.under_way and loop.time() < began + sending_s + patience_s:
        await asyncio.sleep(_TICK_S)
    if mistakes:
        raise SystemExit(f"{len(mistakes)} mistakes of the client, such as {mistakes[0]}")
    return {"rate": round(rate, 1), "due": due, "sending_s": round(sending_s, 2), **clients.figures(sending_s)}


class _Clients:
    """Connections to the service, opened as they are needed, and what came back over them."""

    def __init__(self, port: int, requests: Iterator[bytes], most: int) -> None:
        self._port, self._requests, self._most = port, requests, most
        self._open = 0
        self._idle: list[_Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._sent = self._held_back = self._lost = 0
        self._statuses: Counter[int] = Counter()
        self._accepted_s: list[float] = []

    @property
    def under_way(self) -> int:
        """Requests that were sent and have no answer yet."""
        return self._sent - self._lost - self._statuses.total()

    def send(self, due: float) -> None:
        """Send a request that was due at this time of the loop's clock, if there is a connection for it."""
        if self._idle:
            self._sent += 1
            self._idle.pop().send(next(self._requests), due)
        elif self._open < self._most:
            self._sent += 1
            self._open += 1
            task = asyncio.create_task(self._connect_and_send(next(self._requests), due))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            self._held_back += 1

    async def _connect_and_send(self, request: bytes, due: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), _HOST, self._port)
        except OSError:
            self._open -= 1
            self._lost += 1
            return
        connection.send(request, due)

    def answered(self, connection: _Connection, status: int, latency_s: float, keep: bool) -> None:
        """Take note of an answer, and use its connection again if it stays open."""
        self._statuses[status] += 1
        if 200 <= status < 300:
            self._accepted_s.append(latency_s)
        if keep:
            self._idle.append(connection)

    def closed(self, connection: _Connection, is_waiting: bool) -> None:
        """Take note of the end of a connection, which may leave a request without an answer."""
        self._open -= 1
        self._lost += is_waiting
        if connection in self._idle:
            self._idle.remove(connection)

    def figures(self, sending_s: float) -> dict[str, Any]:
        """What there was until now."""
        accepted = len(self._accepted_s)
        p50_s, p99_s, max_s = np.percentile(self._accepted_s, (50, 99, 100)) if accepted else (None,) * 3
        return {
            "sent": self._sent,
            "held_back": self._held_back,
            "lost": self._lost,
            "unanswered": self.under_way,
            "statuses": {str(status): count for status, count in sorted(self._statuses.items())},
            "offered_per_s": round(self._sent / sending_s, 1),
            "accepted_per_s": round(accepted / sending_s, 1),
            **{
                f"accepted_{name}_ms": None if value is None else round(float(value) * 1e3, 1)
                for name, value in (("p50", p50_s), ("p99", p99_s), ("max", max_s))
            },
        }


class _Connection(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self, clients: _Clients) -> None:
        self._clients = clients
        self._parser = httptools.HttpResponseParser(self)
        self._due: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own kind, which only behaves like one.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        assert self._due is not None
        latency_s, self._due = asyncio.get_running_loop().time() - self._due, None
        keep = self._parser.should_keep_alive()
        self._clients.answered(self, self._parser.get_status_code(), latency_s, keep)
        if not keep:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.closed(self, self._due is not None)


if __name__ == "__main__":
    print(json.dumps(flood(**json.loads(sys.argv[1]))))
