"""The application: endpoints, errors in one form, the page."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from sentiment.schema import LABELS
from serve_app import hugging_face, lines, open_inference
from serve_app.engine import Engine
from serve_app.errors import ApiError, ErrorType, explain
from serve_app.guard import Guard, Observer, respond
from serve_app.schemas import Health, Info, Limits

_PACKAGES = ("sentiment-at-scale", "torch", "ray", "transformers", "tokenizers")
_ABOUT = """Sentiment of texts: the likelier of two labels and its probability.

Errors come as `{"error": "what was wrong", "error_type": "kind"}`; `/info` has the limits.
"""
# Nothing from elsewhere, and no frame around it.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(engine: Engine, observer: Observer, key_digests: Sequence[bytes] = ()) -> FastAPI:
    """Put the application together.

    Args:
        engine: Answers.
        observer: Told of each request.
        key_digests: SHA-256 of the API keys, one of which is needed; none: no key is asked for.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    version = _version("sentiment-at-scale")
    app = FastAPI(title="Sentiment at scale", version=version, description=_ABOUT, lifespan=lifespan, redoc_url=None)
    app.add_middleware(
        Guard,
        key_digests=key_digests,
        max_body_bytes=_body_bytes(engine),
        observer=observer,
    )
    _add_handlers(app)
    app.router.routes[:0] = hugging_face.routes(engine)
    for router in (hugging_face.description(), lines.router(engine), open_inference.router(engine)):
        app.include_router(router)
    page = files("serve_app").joinpath("page.html").read_text(encoding="utf-8")

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["Service"], responses={503: {"description": "Not yet"}})
    async def health() -> Health:
        """Say whether the model is loaded and warm."""
        _ = engine.predictor
        return Health()

    @app.get("/info", tags=["Service"])
    async def info() -> Info:
        """Say what is served, and what a request may hold."""
        return _info(engine, requires_api_key=bool(key_digests))

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        """The page to try it."""
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    return app


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> Response:
        request.state.error_type = error.kind
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        request.state.error_type = "validation"
        return respond(explain(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        kinds: dict[int, ErrorType] = {404: "not_found", 405: "not_found"}
        problem = ApiError(error.status_code, kinds.get(error.status_code, "validation"), str(error.detail))
        request.state.error_type = problem.kind
        answer = respond(problem)
        answer.headers.update(error.headers or {})
        return answer


def _info(engine: Engine, requires_api_key: bool) -> Info:
    predictor, settings = engine.predictor, engine.settings
    limits = Limits(
        max_texts=settings.max_texts,
        max_text_chars=settings.max_text_chars,
        max_tokens=predictor.config.max_length,
        max_body_bytes=_body_bytes(engine),
        max_queued_texts=settings.max_queued_texts,
        request_timeout_s=settings.request_timeout_s,
    )
    return Info(
        name=settings.name,
        model_id=predictor.model_id,
        labels=list(LABELS),
        precision=predictor.precision,
        device=str(predictor.device),
        requires_api_key=requires_api_key,
        limits=limits,
        versions={"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    )


def _body_bytes(engine: Engine) -> int:
    return int(engine.settings.max_body_mib * 2**20)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        return "unknown"
