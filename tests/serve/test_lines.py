"""`POST /score`: a line for each line, in order, whatever stands in it, in constant memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from served import Notes, Served, serve_app
from starlette.requests import ClientDisconnect

from sentiment.predictor import FloatArray, Predictor
from sentiment.settings import ServeSettings
from serve_app.engine import Engine
from serve_app.json_lines import answer_lines


@pytest.fixture(scope="module")
def plain(bundle: Path) -> Iterator[Served]:
    yield from serve_app(bundle)


def post(served: Served, body: bytes) -> list[dict[str, object]]:
    answer = served.client.post("/score", content=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


def test_lines_are_answered_in_order(plain: Served, predictor: Predictor) -> None:
    texts = [f"what a lovely day number {number}" if number % 2 else f"late {number}" for number in range(2000)]
    body = "".join(json.dumps({"text": text, "id": f"t{number}"}) + "\n" for number, text in enumerate(texts))
    said = post(plain, body.encode())
    assert [line["line"] for line in said] == list(range(1, 2001))
    assert [line["id"] for line in said] == [f"t{number}" for number in range(2000)]
    assert {line["model_id"] for line in said} == {predictor.model_id}
    expected = predictor.predict(texts)
    assert [line["p_positive"] for line in said] == pytest.approx([one.p_positive for one in expected], abs=1e-5)


def test_bad_lines_cost_themselves_only(plain: Served) -> None:
    lines: list[tuple[bytes, str | None]] = [
        (b'{"text": "fine", "more": 1}', None),
        (b'"a plain string"', None),
        (b"{broken", "not JSON"),
        (b"", "not JSON"),
        (b'{"words": "x"}', "text: Field required"),
        (b'{"text": "a", "id": "\\ud800"}', "id.function-after"),
        (b'{"text": "half a pair \\ud800"}', None),
        (b'{"text": 3}', "text: Input should be a valid string"),
        (b"[1, 2]", "line: "),
        (b"\xff\xfe", "not JSON"),
        (b'{"text": "' + b"a" * 200_000 + b'"}', "text: at most 100000 characters, got 200000"),
        (b'"' + b"b" * 3_000_000 + b'"', "line too long"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "last, without an end"}', None),
    ]
    said = post(plain, b"\n".join(raw for raw, _ in lines))
    assert [line["line"] for line in said] == list(range(1, len(lines) + 1))
    for line, (raw, problem) in zip(said, lines, strict=True):
        if problem is None:
            assert line["label"], raw[:40]
        else:
            assert problem in str(line["error"]), raw[:40]
            assert line["error_type"] == "validation"


def test_nothing_in_nothing_out(plain: Served) -> None:
    assert post(plain, b"") == []
    assert len(post(plain, b'"a"\r\n"b"\r\n')) == 2


def test_a_full_queue_is_waited_for(bundle: Path) -> None:
    """A stream has its own way of being slow; only single requests are turned away."""
    for served in serve_app(bundle, max_queued_texts=600, max_texts=512, retry_after_s=0.01):
        said = post(served, b'"lovely"\n' * 5000)
        assert [line.get("error") for line in said] == [None] * 5000


def test_memory_stays_flat_though_nobody_reads(bundle: Path) -> None:
    """A client that sends a hundred megabytes before it reads an answer: they wait in a file."""
    megabyte = b'"what a lovely day it is, or so they say"\n' * 25_000

    async def body(times: int) -> AsyncIterator[bytes]:
        for _ in range(times):
            yield megabyte
            await asyncio.sleep(0)

    async def run() -> tuple[int, int, int]:
        engine = Engine(ServeSettings(model=str(bundle)), Notes())
        await engine.load(str(bundle))
        count = before = peak = 0

        async def send(lines: bytes, taken: int = 0) -> None:
            nonlocal count, before, peak
            before = before or psutil.Process().memory_info().rss
            count += lines.count(b"\n")
            peak = max(peak, psutil.Process().memory_info().rss)

        await answer_lines(engine, body(8), send)
        await engine.close()
        return count, before, peak

    count, before, peak = asyncio.run(run())
    assert count == 200_000
    assert peak - before < 60 << 20


def test_a_client_that_goes_is_no_failure(bundle: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'"lovely"\n' * 600
        raise ClientDisconnect

    async def send(lines: bytes, taken: int = 0) -> None:
        pass

    async def run() -> None:
        engine = Engine(ServeSettings(model=str(bundle)), Notes())
        await engine.load(str(bundle))
        await answer_lines(engine, body(), send)
        await engine.close()

    asyncio.run(run())


def test_a_slow_model_is_waited_for(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a part takes: the time limit is one for requests, of which each line isn't one."""
    forward = Predictor.logits

    def slow(self: Predictor, ids: Sequence[Sequence[int]]) -> FloatArray:
        time.sleep(0.02)
        return forward(self, ids)

    for served in serve_app(bundle, request_timeout_s=0.1, max_batch_tokens=64):
        monkeypatch.setattr(Predictor, "logits", slow)
        said = post(served, b'"what a lovely day"\n' * 300)
        assert [line.get("error") for line in said] == [None] * 300
