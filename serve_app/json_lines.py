"""`POST /score`: JSON lines in, JSON lines out, in order and streamed, for archives that come over HTTP.

Memory stays constant: lines are scored some hundreds at a time, and one batch is read while another is scored. Ray
reads a request ahead of its application, and takes answers whether or not the client reads them. So each message of the
answer says how many bytes of the request have been read, and `serve_app.proxy` passes no more than that on to Ray.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from sentiment.schema import LABELS, POSITIVE
from serve_app.engine import Engine
from serve_app.proxy import STREAM_PATH, TAKEN
from serve_app.responses import NO_TEXT_ERROR, ApiError, ErrorResponse, Id, api_error, model_header, schema_error

MEDIA_TYPE = "application/x-ndjson"
# Lines scored together: enough for full batches.
_BATCH_LINES = 512


class ScoreLine(BaseModel):
    """One line that comes in at /score; a line may also be a plain JSON string."""

    text: str = Field(description="text to score", examples=["what a lovely day"])
    id: Id | int | None = Field(None, description="comes back with the answer", examples=["tweet-1"])


class ScoredLine(BaseModel):
    """One line that goes out at /score; instead of it, one with `error` and `error_type` for a bad line."""

    line: int = Field(description="number of the line that it answers, from 1", examples=[1])
    id: str | int | None = Field(None, description="as it came in", examples=["tweet-1"])
    label: str = Field(description="likelier label", examples=[LABELS[POSITIVE]])
    score: float = Field(description="its probability", examples=[0.98])
    p_positive: float = Field(description="probability of the positive label", examples=[0.98])
    model_id: str = Field(description="which bundle said so", examples=["tweets-0a1b2c3d4e5f"])


# Sends whole lines of answers, and says how many bytes of the request have been read since the call before.
SendLines = Callable[[bytes, int], Awaitable[None]]


def add_endpoints(app: FastAPI, engine: Engine) -> None:
    """Add the endpoint to the application; it has the engine score its texts."""
    settings = engine.settings
    streams = asyncio.Semaphore(settings.max_streams)
    body = {"required": True, "content": {MEDIA_TYPE: {"schema": ScoreLine.model_json_schema()}}}
    answer = {MEDIA_TYPE: {"schema": ScoredLine.model_json_schema()}}

    @app.post(
        STREAM_PATH,
        tags=["Archives"],
        response_class=StreamingResponse,
        openapi_extra={"requestBody": body},
        responses={200: {"content": answer, "description": "A line for each line, in order"}},
    )
    async def score(request: Request) -> _DuplexResponse:
        """Score JSON lines: objects with `text` and perhaps `id`, or plain strings; a bad line gets an error line."""
        model_id = engine.predictor.model_id  # A 503 now rather than on each line.
        if streams.locked():
            limit = settings.max_streams
            message = f"{limit} archives are being scored already, {limit} may be: try again later"
            raise ApiError(429, message, retry_after_s=settings.retry_after_s)
        return _DuplexResponse(engine, request.stream(), streams, model_id)


class _DuplexResponse(Response):
    """An answer that is sent while the request still comes in.

    Starlette's StreamingResponse would receive beside it, to see the client go, and swallow parts of the body.
    """

    media_type = MEDIA_TYPE

    def __init__(self, engine: Engine, chunks: AsyncIterable[bytes], streams: asyncio.Semaphore, model_id: str) -> None:
        super().__init__(headers=model_header(model_id))
        del self.headers["content-length"]
        self._engine, self._chunks, self._streams = engine, chunks, streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        body = {"type": "http.response.body", "more_body": True}

        async def send_lines(lines: bytes, taken: int) -> None:
            await send({**body, "body": lines, TAKEN: taken})

        async with self._streams:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await answer_lines(self._engine, self._chunks, send_lines)
            await send({**body, "more_body": False})


async def answer_lines(engine: Engine, chunks: AsyncIterable[bytes], send: SendLines) -> None:
    """Read lines, score those that have come together, send the answers in order.

    Args:
        engine: Scores them.
        chunks: The body as it comes in.
        send: Takes the answers; while it waits, no more is read.
    """
    settings = engine.settings
    # A line holds a text and little else; JSON may write each character as \\uXXXX\\uXXXX.
    max_line_bytes = settings.max_text_chars * 12 + 4096
    max_lines = min(_BATCH_LINES, settings.max_texts)
    lines: asyncio.Queue[tuple[int, bytes | None] | None] = asyncio.Queue(2 * max_lines)
    scoring: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(1)
    problem: ApiError | None = None

    async def read() -> None:
        nonlocal problem
        try:
            async for line in _split(chunks, max_line_bytes, send):
                await lines.put(line)
        except ApiError as error:
            problem = error  # The body is too long: what came before is answered.
        await lines.put(None)

    async def write() -> None:
        while (task := await scoring.get()) is not None:
            await send(await task, 0)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(write())
            is_over = False
            while not is_over:
                # The lines that have come, one at least: a client may wait for answers before it sends more.
                batch = []
                line = await lines.get()
                while line is not None:
                    batch.append(line)
                    if len(batch) == max_lines or lines.empty():
                        break
                    line = lines.get_nowait()
                is_over = line is None
                if batch:
                    await scoring.put(group.create_task(_answer(engine, batch)))
            await scoring.put(None)
    except* ClientDisconnect:
        pass  # Nobody is left to be answered.
    if problem is not None:
        await send(to_json(problem.body) + b"\n", 0)


async def _split(
    chunks: AsyncIterable[bytes], max_line_bytes: int, send: SendLines
) -> AsyncIterator[tuple[int, bytes | None]]:
    """Cut a body into numbered lines; None stands for one that is too long, of which nothing is kept."""
    number, kept, is_too_long = 1, b"", False
    async for chunk in chunks:
        *complete, rest = (kept + chunk).split(b"\n")
        for raw in complete:
            yield number, None if is_too_long or len(raw) > max_line_bytes else raw
            number, is_too_long = number + 1, False
        is_too_long = is_too_long or len(rest) > max_line_bytes
        kept = b"" if is_too_long else rest
        await send(b"", len(chunk))
    if is_too_long or kept.strip():
        yield number, None if is_too_long else kept


async def _answer(engine: Engine, lines: list[tuple[int, bytes | None]]) -> bytes:
    parsed = [_parse(raw, engine.settings.max_text_chars) for _, raw in lines]
    texts = [line.text for line in parsed if isinstance(line, ScoreLine)]
    try:
        scored = iter(await _score(engine, texts))
    except Exception as error:
        scored = iter([api_error(error).body.model_dump()] * len(texts))  # The status is long sent: each line says it.
    answers = []
    for (number, _), line in zip(lines, parsed, strict=True):
        answer: dict[str, object] = {"line": number}
        if isinstance(line, ErrorResponse):
            answer |= line.model_dump()
        else:
            answer |= next(scored)
            answer = answer if line.id is None else {"id": line.id, **answer}
        answers.append(to_json(answer) + b"\n")
    return b"".join(answers)


def _parse(raw: bytes | None, max_chars: int) -> ScoreLine | ErrorResponse:
    """Give a line's text, or what is wrong with it."""
    if raw is None:
        message = f"line too long; a text has at most {max_chars} characters"
    else:
        try:
            value = json.loads(raw)
            line = ScoreLine.model_validate({"text": value} if isinstance(value, str) else value)
            if len(line.text) <= max_chars:
                return line
            message = f"text: at most {max_chars} characters, got {len(line.text)}"
        except ValidationError as error:
            message = schema_error(error, root="line").body.error
        except (ValueError, RecursionError):
            message = "not JSON"
    return ErrorResponse(error=message, error_type="validation")


async def _score(engine: Engine, texts: list[str]) -> list[dict[str, object]]:
    """Give what each text's line says; a busy service is waited for, and the client with it."""
    while True:
        try:
            scores = await engine.score(texts, field="text", has_time_limit=False)
            break
        except ApiError as error:
            if error.status != 429:
                raise
            await asyncio.sleep(error.retry_after_s or 1.0)
    labels, best_scores, p_positive = scores.outputs()
    scored = (
        {"label": label, "score": score, "p_positive": p, "model_id": scores.model_id}
        for label, score, p in zip(labels, best_scores.tolist(), p_positive.tolist(), strict=True)
    )
    return scores.for_each_text(scored, NO_TEXT_ERROR.model_dump())
