"""The benchmarks' load generator, against a server whose answers and times are known."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.load import HOST, ask, write_bodies

SLOW_S = 0.05


@contextmanager
def answering(statuses: dict[str, int], *, head: str = "", wait_s: float = 0.0) -> Iterator[int]:
    """Serve on a port until the block ends: each text has its status, 200 unless it is named."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                length = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"content-length: ")[1].split(b"\r\n")[0]
                body = (await reader.readexactly(int(length))).decode()
                status = next((status for text, status in statuses.items() if text in body), 200)
                await asyncio.sleep(wait_s)
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{head}\r\n".encode())
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            writer.close()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(answer, HOST, 0), loop).result()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


@pytest.fixture
def bodies(tmp_path: Path) -> Path:
    return write_bodies(["good", "bad"], tmp_path / "bodies.jsonl")


def test_a_connection_asks_again_once_it_has_its_answer(bodies: Path) -> None:
    with answering({}, wait_s=SLOW_S) as port:
        found = ask(port, bodies, connections=4, seconds=0.5)
    # Each of the four answers takes that long; a machine under load may be slower, never faster.
    assert SLOW_S * 1e3 <= found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert 4 <= found["sent"] <= 4 * (0.5 / SLOW_S + 1)
    assert found["statuses"] == {"200": found["sent"] - found["unanswered"]}
    assert found["unanswered"] <= 4
    assert (found["held_back"], found["lost"]) == (0, 0)


def test_a_set_rate_waits_for_nobody_and_counts_what_it_could_not_send(bodies: Path) -> None:
    with answering({}, wait_s=10 * SLOW_S) as port:
        found = ask(port, bodies, connections=3, seconds=0.4, rate=50, patience_s=20)
    assert found["sent"] + found["held_back"] == 20
    assert found["statuses"] == {"200": found["sent"]}
    assert found["sent"] == 3


def test_only_accepted_answers_make_the_rate(bodies: Path) -> None:
    with answering({"bad": 429}) as port:
        found = ask(port, bodies, connections=8, seconds=1, rate=40, patience_s=20)
    assert found["statuses"] == {"200": 20, "429": 20}
    assert found["requests_per_s"] == pytest.approx(found["offered_per_s"] / 2, abs=0.2)


def test_connections_that_the_service_closes_are_opened_again(bodies: Path) -> None:
    with answering({}, head="Connection: close\r\n") as port:
        found = ask(port, bodies, connections=2, seconds=0.3)
    assert found["statuses"]["200"] > 4
    assert found["lost"] == 0


def test_a_service_that_accepts_nothing_is_an_error(bodies: Path) -> None:
    with answering({"good": 503, "bad": 503}) as port, pytest.raises(SystemExit, match="accepted nothing"):
        ask(port, bodies, connections=2, seconds=0.1)
