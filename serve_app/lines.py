"""`POST /score`: JSON lines in, JSON lines out, in order and streamed, for archives that come over HTTP.

Memory here stays constant whatever comes in: lines are scored some hundreds at a time, and two such parts are under way
at most. (Ray itself reads a request ahead of its application, unless a header keeps it from that: docs/serving.md.)
Many clients send all before they read anything; what they haven't read yet waits in a temporary file, for were it not
taken off the model's hands, the service would stop reading and both sides would wait for each other.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from sentiment.predictor import labels_and_scores
from serve_app.engine import Engine
from serve_app.errors import ApiError, ErrorResponse, explain, internal
from serve_app.schemas import ScoredLine, ScoreLine

MEDIA_TYPE = "application/x-ndjson"
# Lines scored together: enough for full batches. Parts under way: one that is scored, one that is read.
_PART_LINES, _PARTS = 512, 2
# Answers in memory before they go to a file, bytes; and what is read from there at once.
_IN_MEMORY, _CHUNK = 4 << 20, 64 << 10


@dataclass
class _Line:
    number: int
    raw: bytes | None  # None: too long


def router(engine: Engine) -> APIRouter:
    """The endpoint.

    Args:
        engine: Answers.
    """
    routes = APIRouter(tags=["Archives"])
    body = {"required": True, "content": {MEDIA_TYPE: {"schema": ScoreLine.model_json_schema()}}}
    answer = {MEDIA_TYPE: {"schema": ScoredLine.model_json_schema()}}

    @routes.post(
        "/score",
        response_class=StreamingResponse,
        openapi_extra={"requestBody": body},
        responses={200: {"content": answer, "description": "A line for each line, in order"}},
    )
    async def score(request: Request) -> StreamingResponse:
        """Score JSON lines: objects with `text` and perhaps `id`, or plain strings; a bad line gets an error line."""
        _ = engine.predictor  # A 503 now rather than on each line.
        return _Both(answers(engine, request.stream()), media_type=MEDIA_TYPE)

    return routes


class _Both(StreamingResponse):
    """An answer that is sent while the request still comes in."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send; Starlette's own would receive beside it, to see the client go, and swallow parts of the body."""
        await self.stream_response(send)


async def answers(engine: Engine, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Answer lines.

    Args:
        engine: Scores them.
        chunks: The body as it comes in.

    Yields:
        Whole lines.
    """
    # A line holds a text and little else; JSON may write each character as \\uXXXX\\uXXXX.
    longest = engine.settings.max_text_chars * 12 + 4096
    with _Outbox() as outbox:
        work = asyncio.create_task(_answer_all(engine, _lines(chunks, longest), outbox))
        try:
            async for piece in outbox.pieces():
                yield piece
            try:
                await work
            except* ClientDisconnect:
                pass  # Nobody is left to be answered.
        finally:
            if not work.done():
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work


async def _answer_all(engine: Engine, lines: AsyncIterator[_Line], outbox: _Outbox) -> None:
    """Read lines, score those that have come together, put the answers out in order."""
    most = min(_PART_LINES, engine.settings.max_texts)
    come: asyncio.Queue[_Line | None] = asyncio.Queue(_PARTS * most)
    under_way: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_PARTS - 1)

    async def take_in() -> None:
        async for line in lines:
            await come.put(line)
        await come.put(None)

    async def put_out() -> None:
        while (task := await under_way.get()) is not None:
            outbox.put(await task)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(take_in())
            group.create_task(put_out())
            while part := await _part(come, most):
                await under_way.put(group.create_task(_answer(engine, part)))
            await under_way.put(None)
    finally:
        outbox.close()


async def _part(come: asyncio.Queue[_Line | None], most: int) -> list[_Line]:
    """The lines that have come, one at least; none at the end. A client may wait for answers before it sends more."""
    line, part = await come.get(), []
    while line is not None:
        part.append(line)
        if len(part) == most or come.empty():
            return part
        line = come.get_nowait()
    if part:
        come.put_nowait(None)  # The end, for the next call.
    return part


async def _answer(engine: Engine, part: list[_Line]) -> bytes:
    read = [_read(line, engine.settings.max_text_chars) for line in part]
    texts = [line.text for line in read if isinstance(line, ScoreLine)]
    try:
        labels, likely, p_positive = await _score(engine, texts)
    except ApiError as error:
        # The status is long sent: each line says it.
        read = [line if isinstance(line, ErrorResponse) else error.body for line in read]
    answers, at = [], 0
    for line, what in zip(part, read, strict=True):
        if isinstance(what, ErrorResponse):
            answers.append(to_json({"line": line.number, **what.model_dump()}))
            continue
        facts = {"line": line.number, "label": labels[at], "score": likely[at], "p_positive": p_positive[at]}
        answers.append(to_json(facts if what.id is None else {"id": what.id, **facts}))
        at += 1
    return b"\n".join([*answers, b""])


async def _score(engine: Engine, texts: list[str]) -> tuple[list[str], list[float], list[float]]:
    """Labels, their probabilities, those of the positive one; a busy service is waited for, and the client with it."""
    while texts:
        try:
            scores = await engine.score(texts, field="text", is_patient=True)
        except ApiError as error:
            if error.kind != "overloaded":
                raise
            await asyncio.sleep(error.retry_after_s or 1.0)
            continue
        except Exception as error:
            raise internal(error) from None
        p_positive = scores.p_positive.astype(np.float32)
        labels, likely = labels_and_scores(p_positive)
        return labels, likely.tolist(), p_positive.tolist()
    return [], [], []


def _read(line: _Line, max_chars: int) -> ScoreLine | ErrorResponse:
    """A line's text, or what is wrong with it."""
    problem: str
    if line.raw is None:
        problem = f"line too long; a text has at most {max_chars} characters"
    else:
        try:
            value = json.loads(line.raw)
            read = ScoreLine.model_validate({"text": value} if isinstance(value, str) else value)
            if len(read.text) <= max_chars:
                return read
            problem = f"text: at most {max_chars} characters, got {len(read.text)}"
        except ValidationError as error:
            problem = explain(error.errors(include_url=False, include_input=False), whole="line").message
        except (ValueError, RecursionError):
            problem = "not JSON"
    return ErrorResponse(error=problem, error_type="validation")


async def _lines(chunks: AsyncIterable[bytes], longest: int) -> AsyncIterator[_Line]:
    """Cut a body into lines; of one that is too long no more is kept than that it was there."""
    number, kept, is_too_long = 1, b"", False
    async for chunk in chunks:
        *whole, rest = (kept + chunk).split(b"\n")
        for raw in whole:
            yield _Line(number, None if is_too_long or len(raw) > longest else raw)
            number, is_too_long = number + 1, False
        is_too_long = is_too_long or len(rest) > longest
        kept = b"" if is_too_long else rest
    if is_too_long or kept.strip():
        yield _Line(number, None if is_too_long else kept)


class _Outbox:
    """Answers that the client hasn't read yet: some in memory, more in a temporary file."""

    def __init__(self) -> None:
        # Its file is deleted with it.
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._read = self._written = 0
        self._changed = asyncio.Event()
        self._is_closed = False

    def __enter__(self) -> _Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, piece: bytes) -> None:
        """Add answers."""
        if self._read == self._written:  # All read: begin anew, so that a client that keeps up needs no disk.
            self._file.seek(0)
            self._file.truncate()
            self._read = self._written = 0
        self._file.seek(self._written)
        self._written += self._file.write(piece)
        self._changed.set()

    def close(self) -> None:
        """Say that nothing more comes."""
        self._is_closed = True
        self._changed.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Give what there is, until it is closed and empty."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._read < self._written:
                self._file.seek(self._read)
                piece = self._file.read(_CHUNK)
                self._read += len(piece)
                yield piece
            if self._is_closed:
                return
