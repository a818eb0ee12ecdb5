"""The HTTP application, which any ASGI server could run: middleware, endpoints, the page.

A protocol is a module with a function that adds its endpoints; `PROTOCOLS` lists them.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.metadata
import platform
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Literal, NoReturn

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sentiment.schema import LABELS
from serve_app import hugging_face, json_lines, open_inference
from serve_app.engine import Engine, Metrics
from serve_app.proxy import PACED, STREAM_PATH
from serve_app.responses import ApiError, api_error

PROTOCOLS: tuple[Callable[[FastAPI, Engine], None], ...] = (
    hugging_face.add_endpoints,
    json_lines.add_endpoints,
    open_inference.add_endpoints,
)
# Files of the page at /docs.
SWAGGER = {"/docs/swagger-ui-bundle.js": "text/javascript", "/docs/swagger-ui.css": "text/css"}
# What needs no API key: load balancers, browsers and code generators ask for it.
_OPEN = {"/", "/health", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json", *SWAGGER}
_PACKAGES = ("sentiment-at-scale", "torch", "ray", "transformers", "tokenizers")
_DESCRIPTION = """Sentiment of texts: the likelier of two labels and its probability.

Errors come as `{"error": "what was wrong", "error_type": "kind"}`; `/info` has the limits.
"""
# The page loads nothing from other servers, and no other page may show it in a frame.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Limits(BaseModel):
    """What a request may hold."""

    max_texts: int = Field(description="texts of a request", examples=[1024])
    max_text_chars: int = Field(description="characters of a text", examples=[100_000])
    max_tokens: int = Field(description="tokens of a text that the model reads; the rest is cut", examples=[512])
    max_body_bytes: int = Field(description="size of a request; /score has none", examples=[8 << 20])
    max_queued_texts: int = Field(description="texts that may wait in a replica", examples=[2048])
    request_timeout_s: float = Field(description="seconds until a request is given up", examples=[30.0])


class Info(BaseModel):
    """What is served, and how."""

    name: str = Field(description="of the model in /v2", examples=["sentiment"])
    model_id: str = Field(description="which bundle it is", examples=["tweets-0a1b2c3d4e5f"])
    labels: list[str] = Field(description="in the order of their numbers", examples=[list(LABELS)])
    precision: str = Field(description="number format of the forward pass", examples=["bf16"])
    device: str = Field(description="what it runs on", examples=["cpu"])
    requires_api_key: bool = Field(description="whether requests need `Authorization: Bearer KEY`", examples=[False])
    limits: Limits = Field(
        description="what a request may hold",
        examples=[{name: field.examples[0] for name, field in Limits.model_fields.items() if field.examples}],
    )
    versions: dict[str, str] = Field(description="of what matters", examples=[{"torch": "2.13.0", "ray": "2.60.0"}])


class Health(BaseModel):
    """The model is loaded and warm."""

    status: Literal["ok"] = Field("ok", description="always ok: otherwise the answer is a 503", examples=["ok"])


def create_app(engine: Engine, metrics: Metrics, key_digests: Sequence[bytes] = ()) -> FastAPI:
    """Put the application together.

    Args:
        engine: Scores the texts.
        metrics: Told of each answer.
        key_digests: SHA-256 of the API keys, one of which every request needs; none: no key is asked for.
    """
    settings = engine.settings
    max_body_bytes = int(settings.max_body_mib * 2**20)
    versions = {name: _version(name) for name in _PACKAGES}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    app = FastAPI(
        title="Sentiment at scale",
        version=versions["sentiment-at-scale"],
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads its parts from elsewhere; `_add_pages` has them here.
        redoc_url=None,
        redirect_slashes=False,  # It would send clients to whatever host they have named.
    )
    app.add_middleware(GuardMiddleware, metrics=metrics, key_digests=key_digests, max_body_bytes=max_body_bytes)
    for error in (HTTPException, RequestValidationError):
        app.add_exception_handler(error, _leave_to_guard)
    for add_endpoints in PROTOCOLS:
        add_endpoints(app, engine)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["Service"], responses={503: {"description": "Not yet"}})
    async def health() -> Health:
        """Say whether the model is loaded and warm."""
        _ = engine.predictor
        return Health()

    @app.get("/info", tags=["Service"])
    async def info() -> Info:
        """Say what is served, and what a request may hold."""
        predictor = engine.predictor
        limits = {"max_tokens": predictor.config.max_length, "max_body_bytes": max_body_bytes}
        return Info(
            name=settings.name,
            model_id=predictor.model_id,
            labels=list(LABELS),
            precision=predictor.precision,
            device=str(predictor.device),
            requires_api_key=bool(key_digests),
            limits=Limits.model_validate(settings.model_dump() | limits),
            versions={"python": platform.python_version()} | versions,
        )

    _add_pages(app)
    return app


class GuardMiddleware:
    """What every request passes first: API key, size of its body, an answer to whatever is raised, and its metrics.

    Ray Serve itself gives requests their ids (X-Request-ID) and logs them. Plain ASGI, for Starlette's
    BaseHTTPMiddleware would gather streamed answers.

    Args:
        app: The application.
        metrics: Told of each answer.
        key_digests: SHA-256 of the API keys, one of which is needed; none: no key is asked for.
        max_body_bytes: Of a request, but where the body is a stream.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, key_digests: Sequence[bytes], max_body_bytes: int) -> None:
        self._app, self._metrics, self._key_digests, self._max_body_bytes = app, metrics, key_digests, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at, status, received, error_type = time.monotonic(), 0, 0, None
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        state = scope.setdefault("state", {})
        is_endless = path == STREAM_PATH and PACED in scope.get("extensions", {})

        async def receive_bounded() -> Message:  # A body may come without saying how long it is.
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes and not is_endless:
                raise self._too_long(path)
            return message

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_head(scope["method"], path, Headers(scope=scope))
            await self._app(scope, receive_bounded, send_noted)
        except Exception as error:
            problem = api_error(error)
            error_type = problem.body.error_type
            if status:
                # The client has to see that it's not all. Raised further, a bug's message would be logged, and it may
                # hold what the user wrote.
                raise RuntimeError("failed while answering") from None
            await problem.response()(scope, receive, send_noted)
        finally:
            # The route and not the path: strangers' paths would each make a metric.
            route = state.get("route") or getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, status, time.monotonic() - started_at, error_type)

    def _check_head(self, method: str, path: str, headers: Headers) -> None:
        if self._key_digests and not (path in _OPEN and method in ("GET", "HEAD")):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""  # the bytes that came
            # All are compared, each in constant time: how long it takes tells nothing.
            digest = hashlib.sha256(key).digest()
            if not any([hmac.compare_digest(digest, known) for known in self._key_digests]):  # noqa: C419
                message = "an API key is needed: Authorization: Bearer KEY"
                raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "")
        if path != STREAM_PATH and length.isdecimal() and int(length) > self._max_body_bytes:
            raise self._too_long(path)

    def _too_long(self, path: str) -> ApiError:
        advice = "; /score takes archives of any size"
        if path == STREAM_PATH:  # Without `serve_app.proxy` before it, Ray would take all of it into memory.
            advice = ", and Ray isn't set up for such archives: see docs/serving.md"
        return ApiError(413, f"the body has more than {self._max_body_bytes} bytes{advice}")


async def _leave_to_guard(_: Request, error: Exception) -> NoReturn:
    """In place of the answers that Starlette and FastAPI would give: all errors have one form."""
    raise error


def _add_pages(app: FastAPI) -> None:
    """Add the page at / and Swagger UI at /docs, with relative links: the service may be below a prefix."""
    docs_js, docs_css = (path.removeprefix("/") for path in SWAGGER)
    docs = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url=docs_js,
        swagger_css_url=docs_css,
        swagger_favicon_url="data:,",
    )
    part_headers = {"Cache-Control": "max-age=86400", "X-Content-Type-Options": "nosniff"}

    def add(path: str, content: bytes, media_type: str, headers: dict[str, str]) -> None:
        async def page() -> Response:
            return Response(content, media_type=media_type, headers=headers)

        app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)(page)

    add("/", files("serve_app").joinpath("page.html").read_bytes(), "text/html", _PAGE_HEADERS)
    add("/docs", bytes(docs.body), "text/html", _PAGE_HEADERS)
    for path, media_type in SWAGGER.items():
        content = files("fastapi_swagger").joinpath("resources", path.rpartition("/")[2]).read_bytes()
        add(path, content, media_type, part_headers)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        return "unknown"
