"""What stands before Ray answers in the service's form: bad headers, Ray's own words, a replica that was lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from ray.serve._private.http_util import convert_object_to_asgi_messages, retry_after_headers
from served import listening
from starlette.types import Message, Receive, Scope, Send

from serve_app.proxy import ProxyMiddleware


@pytest.fixture(scope="module")
def address(bundle: Path) -> Iterator[tuple[str, int]]:
    """A service that asks for a key."""
    with listening(bundle, "key") as url:
        host, _, port = url.removeprefix("http://").partition(":")
        yield host, int(port)


def say(address: tuple[str, int], head: str, body: bytes = b'{"inputs": "a"}') -> tuple[int, bytes]:
    """Send a request as it stands; gives the status and all that came."""
    with socket.create_connection(address, timeout=20) as connection:
        head += f"\r\nHost: a\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode("latin-1") + body)
        answer = connection.makefile("rb").read()
    return int(answer.split()[1]), answer


@pytest.mark.parametrize(
    "header",
    [
        *("X-Request-ID", "x-session-id", "x_session_id", "serve_multiplexed_model_id", "serve-multiplexed-model-id"),
        *("x-request-disconnect-disabled", "x-request-timeout-seconds"),
    ],
)
def test_header_bytes_that_ray_cannot_read(address: tuple[str, int], header: str) -> None:
    for path in ("/predict", "/score", "/health"):
        status, answer = say(address, f"POST {path} HTTP/1.1\r\n{header}: \xff\xfe")
        assert status == 400, answer
        assert f'{{"error":"header {header.lower()}: not UTF-8","error_type":"validation"}}'.encode() in answer
    key = "Authorization: Bearer key"
    assert say(address, f"POST /predict HTTP/1.1\r\n{key}\r\n{header}: {'größe'.encode().decode('latin-1')}")[0] == 200
    assert say(address, f"POST /predict HTTP/1.1\r\n{key}\r\nUser-Agent: \xff\xfe")[0] == 200


def test_an_upgrade_is_answered(address: tuple[str, int]) -> None:
    """With a body, which the parser can't tell from the other protocol's first words, it is refused."""
    web, http2 = "Connection: Upgrade\r\nUpgrade: websocket", "Connection: HTTP2-Settings, upgrade\r\nUpgrade: h2c"
    for upgrade in (web, http2):
        status, answer = say(address, f"POST /predict HTTP/1.1\r\nAuthorization: Bearer key\r\n{upgrade}")
        assert (status, answer.count(b"HTTP/1.1 4")) == (400, 1)
        assert b"header upgrade: this is an HTTP/1.1 service" in answer
        assert say(address, f"GET /health HTTP/1.1\r\n{upgrade}", b"")[0] == 200
    assert say(address, "POST /predict HTTP/1.1\r\nAuthorization: Bearer key\r\nUpgrade: websocket")[0] == 200


@pytest.mark.parametrize("path", ["/predict/", "/score/", "/health/", "/docs/", "/v2/", "//evil.example/predict/"])
def test_nobody_is_sent_elsewhere(address: tuple[str, int], path: str) -> None:
    status, answer = say(address, f"GET {path} HTTP/1.1\r\nAuthorization: Bearer key\r\nHost: evil.example", b"")
    assert status == 404, answer
    assert b"location:" not in answer.lower()


def ask(*messages: Message, error: Exception | None = None, path: str = "/predict", **headers: str) -> Any:
    """The answer of Ray's part, which says some messages, as a client sees it; and the headers that Ray saw."""
    seen: list[tuple[bytes, bytes]] = []

    async def ray(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(ProxyMiddleware(ray), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            return await client.post(path, headers=headers)

    return asyncio.run(main()), dict(seen)


@pytest.mark.parametrize(
    ("said", "status", "kind", "words"),
    [
        ([408, "Request 7 timed out after 35.0s."], 504, "timeout", "no answer within the time limit"),
        ([503, "Deployment is unavailable"], 503, "unhealthy", "no replica is there"),
        ([503, "Request dropped", retry_after_headers(2.5)], 503, "overloaded", "too many requests are under way"),
        ([404, "Path '/predict' not found."], 503, "unhealthy", "nothing is served at this path"),
    ],
)
def test_rays_words_in_our_form(said: list[Any], status: int, kind: str, words: str) -> None:
    code, text, *more = said
    answer, _ = ask(*convert_object_to_asgi_messages(text, code, *more), **{"X-Request-ID": "mine"})
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert words in answer.json()["error"]
    assert text not in answer.text
    assert answer.headers["X-Request-ID"] == "mine"
    assert answer.headers.get("Retry-After") == {"unhealthy": "1", "overloaded": "3", "timeout": None}[kind]


def test_other_answers_stay_as_they_are() -> None:
    for code, said, path in ((200, "success", "/-/healthz"), (503, "draining", "/-/healthz"), (404, {}, "/predict")):
        answer, _ = ask(*convert_object_to_asgi_messages(said, code), path=path)
        assert (answer.status_code, answer.text) == (code, said or "{}")


def test_a_request_that_ray_leaves_without_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    answer, _ = ask(**{"X-Request-ID": "mine"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json() == {
        "error": "the replica that had the request was lost: try again",
        "error_type": "unhealthy",
    }
    assert answer.headers["X-Request-ID"] == "mine"
    answer, _ = ask(error=ValueError("secret"))
    assert (answer.status_code, answer.json()["error_type"]) == (500, "internal")
    assert "secret" not in answer.text + caplog.text


def test_clients_do_not_choose_the_time_limit() -> None:
    header = "x-request-timeout-seconds"
    _, seen = ask(**{header: "0"})
    assert header.encode() not in seen
    _, seen = ask(path="/score", **{header: "5"})
    assert seen[header.encode()] == b"0"
