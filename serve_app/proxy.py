"""Limits on connections and requests in front of Ray Serve's HTTP server, and Ray's own errors in the service's form.

Ray Serve calls `middlewares` in its Python proxy and, behind HAProxy, in each replica, before the HTTP server there
starts: `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.proxy:middlewares` in the environment of all nodes. Without
it uvicorn waits for headers and bodies without a limit, each request whose body is still coming takes a replica's time,
and Ray's own errors are plain text.

`LimitedProtocol` has the limits of connections, `ProxyMiddleware` those of requests, `_Stream` those of /score.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn.config
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serve_app.responses import ApiError, ErrorResponse, api_error

# Connections at a time; beyond, the one is closed whose client has been silent longest.
MAX_CONNECTIONS = 4096
# Seconds for a request's head, for its body, and for reading the answer. /score has its own: it may take hours.
HEAD_S, BODY_S, UNREAD_S = 10.0, 30.0, 30.0
# Bytes and lines of a head, and requests that a client may send ahead on a connection.
MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED = 64 << 10, 128, 128
CHECK_PERIOD_S = 1.0  # between two looks at a connection
_SPARE_FILES = 512  # that the process may open beside its connections

# A body up to this size is complete before Ray hears of the request; uvicorn itself buffers as much.
_HELD_BYTES = 64 << 10
# A body with a content-length beyond this isn't waited for: by default the application refuses it at once.
_MAX_AWAITED_BYTES = 8 << 20
# Of a body that isn't a stream; no setting allows more.
MAX_BODY_BYTES = 64 << 20
_MAX_LENGTH_DIGITS = 20  # of a content-length

# The endpoint whose body has no limit and is answered while it comes in.
STREAM_PATH = "/score"
# Of a stream: bytes that Ray may have read ahead of the application; seconds without a byte in either direction; bytes
# of answers that the client hasn't read, and how many of them are kept in memory.
MAX_AHEAD_BYTES, IDLE_S = 256 << 10, 120.0
MAX_UNREAD_BYTES, _IN_MEMORY_BYTES, _READ_BYTES = 128 << 20, 4 << 20, 64 << 10

# In a request's scope: what ends its connection at once (Ray never sees it); that `TAKEN` limits what is read ahead.
ABORT, PACED = "sentiment.abort", "sentiment.paced"
# In a message of an answer's body: how many more bytes of the request the application has read.
TAKEN = "taken"

# Headers by which clients could choose how long a request may take (0: for ever), and make Ray finish requests whose
# client has gone.
_TIMEOUT, _HOLD_ON = b"x-request-timeout-seconds", b"x-request-disconnect-disabled"
# Headers that Ray decodes, with - or _ in their names.
_DECODED = {
    *(_TIMEOUT, _HOLD_ON, b"x-request-id", b"x-session-id"),
    *(b"serve-multiplexed-model-id", b"traceparent", b"tracestate"),
}
# For each server of this process (there is hardly ever more than one): connections whose client is to send something,
# longest waiting first.
_WAITING: WeakKeyDictionary[ServerState, dict[LimitedProtocol, None]] = WeakKeyDictionary()


def middlewares() -> list[Middleware]:
    """Give the ASGI middleware, and make uvicorn in this process use `LimitedProtocol`. Ray Serve calls it."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{LimitedProtocol.__module__}:{LimitedProtocol.__name__}"
    files, max_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = max(files, min(MAX_CONNECTIONS + _SPARE_FILES, max_files))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, max_files))
    return [Middleware(ProxyMiddleware)]


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits, which it doesn't have itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting = _WAITING.setdefault(self.server_state, {})
        self._timer: asyncio.TimerHandle | None = None
        # Since when its head, its body and its answer's being read are waited for; None: they aren't.
        self._head_since: float | None = None
        self._body_since: float | None = None
        self._unread_since = 0.0
        self._unread = self._head_bytes = self._parsed_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(CHECK_PERIOD_S, self._check_times)
        self._await_head()
        # Fewer than MAX_CONNECTIONS where the process may not open as many files.
        limit = min(MAX_CONNECTIONS, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES))
        while len(self.connections) > limit and self._waiting:
            connection = next(iter(self._waiting))
            del self._waiting[connection]
            self.connections.discard(connection)
            connection.end(503)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self.transport.is_closing():
            return
        if self._head_since is None and self._body_since is None:
            self._head_since, self._head_bytes = self.loop.time(), 0
        super().data_received(data)
        if self._head_since is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.end(431)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._parsed_bytes = 0
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]
        self._await_head()

    def on_url(self, url: bytes) -> None:
        """A part of the first line of a head has come."""
        self._count_head(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of a head or of a trailer has come."""
        self._count_head(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._head_since, self._body_since = None, self.loop.time()
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def on_message_complete(self) -> None:
        """A request is complete."""
        self._body_since = None
        self._waiting.pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request is answered."""
        if not self.pipeline:
            self._await_client()
        if self._body_since is not None:
            self._body_since = self.loop.time()  # The rest of it, which nobody wants.
        super().on_response_complete()

    def resume_writing(self) -> None:
        """The client has read much of what it was sent."""
        self._unread_since = self.loop.time()
        super().resume_writing()

    def _await_head(self) -> None:
        self._head_since, self._head_bytes = self.loop.time(), 0
        self._await_client()

    def _await_client(self) -> None:
        self._waiting.pop(self, None)
        self._waiting[self] = None

    def _count_head(self, part: bytes) -> None:
        """Bound a head that comes all at once; what is raised here is answered with a 400."""
        self._parsed_bytes += len(part)
        if self._parsed_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            raise ValueError("the head is too long")

    def _should_upgrade_to_ws(self) -> bool:
        return False  # There is no such endpoint: it is an ordinary request.

    def _check_times(self) -> None:
        """End the connection if the client has had its time."""
        now = self.loop.time()
        self._timer = self.loop.call_later(CHECK_PERIOD_S, self._check_times)
        is_busy = self.cycle is not None and not self.cycle.response_complete
        # Not our own scope: that may be the one of a head that is still coming.
        is_stream_open = is_busy and _is_stream(self.cycle.scope)
        if self._head_since is not None and is_busy:
            self._head_since = now  # Of the request after the one that is answered.
        is_head_late = self._head_since is not None and now - self._head_since > HEAD_S
        is_body_late = self._body_since is not None and now - self._body_since > BODY_S and not is_stream_open
        if is_head_late or is_body_late:
            self.end(408)
        unread = self.transport.get_write_buffer_size()
        if not unread or unread < self._unread:
            self._unread_since = now
        self._unread = unread
        is_over = self.transport.is_closing() or not is_stream_open
        if now - self._unread_since > UNREAD_S and is_over:
            self.transport.abort()

    def end(self, status: int) -> None:
        """Close the connection, with an answer of that status if none has begun."""
        cycle = self.cycle
        if self.transport.is_closing():
            return
        if cycle is None or (cycle.response_complete if self._head_since is not None else not cycle.response_started):
            reasons = {408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}
            body = reasons[status]
            head = b"HTTP/1.1 %d %s\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(head % (status, body, len(body)) + body)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


class ProxyMiddleware:
    """ASGI middleware around Ray's application: bounded bodies, and Ray's own answers in the service's form.

    Ray Serve answers some requests itself: bad headers and lost replicas by a plain 500, its own limits by plain text.
    Its time limit (`HTTPOptions.request_timeout_s`) holds for every request but streams, whatever a client says.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        extensions = scope.setdefault("extensions", {})
        abort = extensions.pop(ABORT, None)
        try:
            content_length = _read_head(scope)
        except ApiError as problem:
            await problem.response()(scope, receive, send)
            return
        has_begun = is_replaced = False

        async def send_own(problem: ApiError) -> None:
            response = problem.response()
            # Ray has given the request an id by now, if it had none.
            response.raw_headers += [(key, value) for key, value in scope["headers"] if key == b"x-request-id"]
            await response(scope, receive, send)

        async def send_checked(message: Message) -> None:
            nonlocal has_begun, is_replaced
            if message["type"] == "http.response.start":
                has_begun = True
                if not scope["path"].startswith("/-/") and (problem := _error_of_ray(message)) is not None:
                    is_replaced = True
                    await send_own(problem)
            if not is_replaced:
                await send(message)

        try:
            if _is_stream(scope):
                scope["headers"].append((_TIMEOUT, b"0"))
                extensions[PACED] = {}
                async with aclosing(_Stream(receive, send_checked, abort)) as stream:
                    await self._app(scope, stream.receive, stream.send)
            else:
                held = await _hold_body(receive, abort, is_awaited=content_length <= _MAX_AWAITED_BYTES)
                if held is None:
                    return  # The client has gone.
                await self._app(scope, held, send_checked)
        except Exception as error:
            if has_begun:
                raise
            await send_own(api_error(error))
        else:
            if not has_begun:
                # So Ray ends a request whose replica has died.
                await send_own(_unhealthy("the replica that had the request was lost: try again"))


async def _hold_body(receive: Receive, abort: Callable[[], None] | None, is_awaited: bool) -> Receive | None:
    """Wait for a body, or for `_HELD_BYTES` of it; gives what receives it anew, or None if the client has gone."""
    held: list[Message] = []
    received = 0

    async def receive_more() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES and abort is not None:
            abort()  # The application should have refused it long ago, but Ray keeps reading.
        return message

    async def receive_held() -> Message:
        return held.pop() if held else await receive_more()

    if is_awaited:
        while (not held or held[-1].get("more_body", False)) and received < _HELD_BYTES:
            held.append(await receive_more())
        if held[-1]["type"] == "http.disconnect":
            return None
        held.reverse()
    return receive_held


def _is_stream(scope: Mapping[str, Any]) -> bool:
    return scope["method"] == "POST" and str(scope["path"]).endswith(STREAM_PATH)


def _read_head(scope: Scope) -> int:
    """Take out headers that Ray mustn't see, refuse what it can't read; gives the body's length (0: not known)."""
    headers, content_length, has_body, upgrades = [], 0, False, False
    closing = {"Connection": "close"}
    for header in scope["headers"]:
        key, value = header
        if not value.isascii() and key.replace(b"_", b"-") in _DECODED:
            try:
                value.decode()
            except UnicodeDecodeError:
                # Ray would fail to decode it, and its plain 500 would come before any API key is asked for.
                raise ApiError(400, f"header {key.decode()}: not UTF-8", headers=closing) from None
        if key == b"content-length":
            if len(value) > _MAX_LENGTH_DIGITS:  # Python reads no number of thousands of digits.
                raise ApiError(400, "header content-length: too long", headers=closing)
            content_length = int(value) if value.isdigit() else 0
            has_body |= value != b"0"
        has_body |= key == b"transfer-encoding"
        upgrades |= key == b"connection" and b"upgrade" in value.lower()
        if key not in (_TIMEOUT, _HOLD_ON):
            headers.append(header)
    if upgrades and has_body:
        # uvicorn's parser takes the body for the other protocol's.
        raise ApiError(400, "header upgrade: this is an HTTP/1.1 service; send the request without it", headers=closing)
    if str(scope["path"]).endswith("/-/routes"):  # Ray would list its applications to anybody.
        raise ApiError(404, "Not Found")
    scope["headers"] = headers
    return content_length


def _error_of_ray(start: Message) -> ApiError | None:
    """Turn an error of Ray's own, plain text without a content-length, into one of the service's; None for others."""
    headers = Headers(raw=start["headers"])
    if not headers.get("content-type", "").startswith("text/plain") or "content-length" in headers:
        return None
    if start["status"] == 408:
        return ApiError(504, "no answer within the time limit: try fewer texts, or later")
    if start["status"] == 503 and "retry-after" in headers:
        message, retry_after_s = "too many requests are under way: try again later", float(headers["retry-after"])
        return ApiError(503, message, error_type="overloaded", retry_after_s=retry_after_s)
    if start["status"] == 503:
        return _unhealthy("no replica is there to answer: try again")
    if start["status"] == 404:
        return _unhealthy("nothing is served at this path, not yet or not any more: try again")
    return None


def _unhealthy(message: str) -> ApiError:
    return ApiError(503, message, retry_after_s=1.0)


class _Stream:
    """A request to /score: no more of its body is read than the application takes, and answers wait for the client.

    Many clients send everything before they read anything. Without a buffer for their answers the service would stop
    reading, and both sides would wait for each other. Answers wait in memory, many of them in a temporary file, and no
    more than `MAX_UNREAD_BYTES`.
    """

    def __init__(self, receive: Receive, send: Send, abort: Callable[[], None] | None) -> None:
        self._receive, self._send, self._abort = receive, send, abort
        self._ahead = 0
        self._taken = asyncio.Event()
        self._is_body_over = self._is_idle = False
        self._active_at = time.monotonic()
        # Answers between these two offsets wait to be read; the file is deleted with the object.
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
        self._read = self._written = 0
        self._has_answers, self._was_read = asyncio.Event(), asyncio.Event()
        self._is_answer_over = False
        self._sending: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        """Receive more, once the application has taken in most of what there was."""
        while self._ahead >= MAX_AHEAD_BYTES:
            self._taken.clear()
            await self._taken.wait()
        if self._is_body_over:
            # What comes after too long a pause is thrown away.
            while (message := await self._receive())["type"] != "http.disconnect":
                pass
            return message
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    message = await self._receive()
            except TimeoutError:
                if time.monotonic() - self._active_at < IDLE_S:
                    continue
                self._is_idle = True
                message = {"type": "http.request", "body": b"", "more_body": False}
            self._active_at = time.monotonic()
            self._ahead += len(message.get("body", b""))
            self._is_body_over = not message.get("more_body", False)
            return message

    async def send(self, message: Message) -> None:
        """Keep a part of the answer until it can be sent; waits while too much of it is unread."""
        self._ahead -= message.get(TAKEN, 0)
        self._taken.set()
        if message["type"] == "http.response.start":
            await self._send(message)
            self._sending = asyncio.create_task(self._send_kept())
            return
        try:
            await self._until_unread_below(MAX_UNREAD_BYTES)
            self._keep(message.get("body", b""))
            if not message.get("more_body", False):
                if self._is_idle:
                    error = ErrorResponse(error=f"nothing came for {IDLE_S:g} s", error_type="timeout")
                    self._keep(error.model_dump_json().encode() + b"\n")
                self._is_answer_over = True
                self._has_answers.set()
                await self._until_unread_below(1)
                assert self._sending is not None
                # Not `wait_for`: in Python 3.11 it passes over a cancellation that comes together with the end.
                async with asyncio.timeout(UNREAD_S):
                    await asyncio.shield(self._sending)
        except TimeoutError:
            # As if the client had gone: Ray and the application end with it.
            if self._abort is not None:
                self._abort()

    async def aclose(self) -> None:
        """Stop sending, and delete the answers that are left."""
        if self._sending is not None:
            self._sending.cancel()
            with suppress(asyncio.CancelledError):
                await self._sending
        self._file.close()

    async def _until_unread_below(self, limit: int) -> None:
        """Wait until the client has read enough; a TimeoutError if it reads nothing for too long."""
        while self._written - self._read >= limit:
            self._was_read.clear()
            async with asyncio.timeout(UNREAD_S):
                await self._was_read.wait()

    def _keep(self, answers: bytes) -> None:
        if self._read == self._written:  # All read: begin anew, so that a client that keeps up needs no disk.
            self._file.seek(0)
            self._file.truncate()
            self._read = self._written = 0
        self._file.seek(self._written)
        self._written += self._file.write(answers)
        self._has_answers.set()

    async def _send_kept(self) -> None:
        body = {"type": "http.response.body", "more_body": True}
        while True:
            await self._has_answers.wait()
            self._has_answers.clear()
            while self._read < self._written:
                self._file.seek(self._read)
                answers = self._file.read(_READ_BYTES)
                self._read += len(answers)
                self._was_read.set()
                await self._send({**body, "body": answers})
                self._active_at = time.monotonic()
            if self._is_answer_over:
                break
        await self._send({**body, "body": b"", "more_body": False})
