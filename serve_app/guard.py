"""What every request passes first: API keys, the size of its body; and what is counted of it in the end.

Its id (X-Request-ID, in and out) is the affair of Ray Serve, which also writes it to its log.

Plain ASGI, for a middleware class of Starlette would gather streamed answers.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from typing import Protocol

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import ApiError, internal

# What a load balancer, a browser's first visit and a client's generator ask for.
_OPEN = frozenset(
    (method, path)
    for path in ("/", "/health", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
    for method in ("GET", "HEAD")
)
_UNBOUNDED = ("/score",)


class Observer(Protocol):
    """Where requests are counted."""

    def answered(self, route: str, status: int, seconds: float, error_type: str | None) -> None:
        """A request was answered."""
        ...


def respond(error: ApiError) -> Response:
    """An error as an answer."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error.body.model_dump_json(), error.status, headers, media_type="application/json")


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        key_digests: SHA-256 of the API keys, one of which is needed; none: no key is asked for.
        max_body_bytes: Of a request, but where the body is a stream.
        observer: Told of each request.
    """

    def __init__(self, app: ASGIApp, key_digests: Sequence[bytes], max_body_bytes: int, observer: Observer) -> None:
        self._app, self._key_digests, self._max_body_bytes, self._observer = app, key_digests, max_body_bytes, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, headers = time.monotonic(), 0, Headers(scope=scope)
        state = scope.setdefault("state", {})

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
            if (problem := self._refuse(scope["method"], path, headers)) is not None:
                state["error_type"] = problem.kind
                await respond(problem)(scope, receive, send_on)
            else:
                bounded = receive if path in _UNBOUNDED else _Bounded(receive, self._max_body_bytes)
                await self._app(scope, bounded, send_on)
        except Exception as error:
            # Raised further, its words would be logged, and they may hold what the user wrote.
            problem = internal(error)
            state["error_type"] = problem.kind
            if status:
                raise RuntimeError("failed while answering") from None  # The client has to see that it's not all.
            await respond(problem)(scope, receive, send_on)
        finally:
            # The route and not the path: strangers' paths would each make a metric.
            route = state.get("route") or getattr(scope.get("route"), "path", "other")
            self._observer.answered(route, status, time.monotonic() - began, state.get("error_type"))

    def _refuse(self, method: str, path: str, headers: Headers) -> ApiError | None:
        if self._key_digests and (method, path) not in _OPEN and not self._is_known(headers):
            return ApiError(401, "unauthorized", "an API key is needed: Authorization: Bearer KEY")
        length = headers.get("content-length", "")
        if path not in _UNBOUNDED and length.isdecimal() and int(length) > self._max_body_bytes:
            return _too_long(self._max_body_bytes)
        return None

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""  # the bytes that came
        # All are compared, each in constant time: how long it takes tells nothing.
        digest = hashlib.sha256(given).digest()
        matches = [hmac.compare_digest(digest, key_digest) for key_digest in self._key_digests]
        return any(matches)


class _Bounded:
    """Receives at most so many bytes; a body may come without saying how long it is."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left, self._most = receive, most, most

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, _too_long(self._most).message)
        return message


def _too_long(most: int) -> ApiError:
    return ApiError(413, "validation", f"the body has more than {most} bytes; /score takes archives of any size")
