"""What stands before Ray: over real sockets, on uvicorn, which is what Ray's proxy and its replicas listen with."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig
from served import Notes, Served, listening
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sentiment.settings import ServeSettings
from serve_app import haproxy, proxy
from serve_app.asgi import create_app
from serve_app.engine import Engine
from serve_app.proxy import TAKEN, LimitedProtocol, ProxyMiddleware

POST = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class App:
    """Answers with the size of the body, once it is complete; takes note of what it saw."""

    def __init__(self) -> None:
        self.called = 0
        self.client_went = threading.Event()
        self.answer_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.called += 1
        size, message = 0, await receive()
        while message.get("more_body", False):
            size += len(message["body"])
            message = await receive()
        if message["type"] == "http.disconnect":
            self.client_went.set()
            return
        answer = b"%d" % (size + len(message["body"])) + b" " * self.answer_bytes
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        if (await receive())["type"] == "http.disconnect":
            self.client_went.set()


@contextmanager
def server(app: ASGIApp) -> Iterator[Callable[[], socket.socket]]:
    """The app behind uvicorn, as Ray's processes have it; gives what connects to it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = uvicorn.Server(
            uvicorn.Config(ProxyMiddleware(app), http=LimitedProtocol, lifespan="off", log_level="critical")
        )
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        listener.listen()
        thread.start()
        try:
            yield lambda: socket.create_connection(listener.getsockname(), timeout=30)
        finally:
            running.should_exit = running.force_exit = True
            thread.join(30)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short patience."""
    for name in ("HEAD_S", "BODY_S", "UNREAD_S"):
        monkeypatch.setattr(proxy, name, 0.2)
    monkeypatch.setattr(proxy, "CHECK_PERIOD_S", 0.05)


def to_the_end(client: socket.socket, sent: bytes = b"") -> bytes:
    """Send, and give all that comes until the other side closes the connection."""
    come = b""
    with closing(client):
        try:
            client.sendall(sent)
            while more := client.recv(1 << 16):
                come += more
        except ConnectionError:
            pass
    return come


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET / HT", GET[:-2], POST % (b"/", 9) + b"four", POST % (b"/", 9)])
def test_a_client_that_stops_in_between_is_shown_out(sent: bytes) -> None:
    app = App()
    with server(app) as connect:
        assert to_the_end(connect(), sent).startswith(b"HTTP/1.1 408 ")
    assert not app.called, "Ray would have given it a slot"


@pytest.mark.usefixtures("quick")
def test_others_are_shown_out_whatever_is_sent_ahead() -> None:
    """Half a head behind a request that is being answered: the limits are for everybody else all the same."""
    may_answer = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.to_thread(may_answer.wait, 30)
        await App()(scope, receive, send)

    with server(app) as connect:
        busy = connect()
        busy.sendall(GET + GET[:-9])
        assert to_the_end(connect(), GET[:-2]).startswith(b"HTTP/1.1 408 ")
        may_answer.set()
        assert to_the_end(busy).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("quick")
def test_a_long_body_has_its_time_too() -> None:
    app = App()
    with server(app) as connect:
        assert to_the_end(connect(), POST % (b"/", 1 << 20) + b"a" * 200_000).startswith(b"HTTP/1.1 408 ")
        assert app.client_went.wait(30)


@pytest.mark.usefixtures("quick")
def test_an_answer_that_nobody_reads_is_given_up() -> None:
    app = App()
    app.answer_bytes = 16 << 20
    with server(app) as connect, connect() as client:
        client.sendall(GET)
        assert app.client_went.wait(30)


def test_whole_requests_get_through_whoever_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "MAX_CONNECTIONS", 4)
    with server(App()) as connect:
        stalled = [connect() for _ in range(20)]
        for client in stalled:
            client.sendall(POST % (b"/", 9))
        assert to_the_end(connect(), GET.replace(b"Host", b"Connection: close\r\nHost")).endswith(b"0\r\n\r\n")
        # Those that have stalled longest have made room; what they send meanwhile may cost them the answer.
        assert to_the_end(stalled[0])[:13] in (b"HTTP/1.1 503 ", b"")
        for client in stalled:
            client.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, b"HTTP/1.1 4"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"HTTP/1.1 4"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"HTTP/1.1 4"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", b"HTTP/1.1 400 "),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"0" * 5000 + b"2\r\n\r\n{}", b"HTTP/1.1 400 "),
        (GET * 500, b""),
    ],
    ids=["long head", "all of it", "long path", "many headers", "long number", "sent ahead"],
)
def test_what_is_held_of_a_head_has_a_bound(sent: bytes, status: bytes) -> None:
    with server(App()) as connect:
        assert to_the_end(connect(), sent).startswith(status)


def test_a_body_that_says_it_is_too_long_need_not_come() -> None:
    async def refusing(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with server(refusing) as connect, connect() as client:
        client.sendall(POST % (b"/", 1 << 40))
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_nobody_refuses_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "MAX_BODY_BYTES", 500_000)
    app = App()
    with server(app) as connect:
        assert to_the_end(connect(), POST % (b"/", 5_000_000) + b"a" * 5_000_000) == b""
        assert app.client_went.wait(30)


def test_an_upgrade_is_an_ordinary_request() -> None:
    upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\nHost"
    with server(App()) as connect, connect() as client:
        client.sendall((POST % (b"/", 0)).replace(b"Host", upgrade))
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_routes_are_nobodys_business() -> None:
    app = App()
    with server(app) as connect:
        sent = b"GET /-/routes HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        assert to_the_end(connect(), sent).startswith(b"HTTP/1.1 404 ")
    assert not app.called


class Reader:
    """A stream's client, as ASGI sees it: sends without end, and reads when it is told to."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.went = asyncio.Event()
        self.received = b""

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"a" * 65536, "more_body": True}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.received += message.get("body", b"")


def start(path: str = "/score") -> Scope:
    return {"type": "http", "method": "POST", "path": path, "headers": []}


async def settled(task: asyncio.Task[object]) -> bool:
    """Whether a task is done once everything that can happen has happened."""
    for _ in range(100):
        await asyncio.sleep(0)
    return task.done()


def test_a_stream_is_read_as_it_is_taken_in() -> None:
    """Ray calls `receive` on and on, whether or not the application takes anything."""

    async def run() -> None:
        reader, come = Reader(), 0
        reader.reads.set()

        async def ray(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal come

            async def read_ahead() -> None:
                nonlocal come
                while True:
                    come += len((await receive())["body"])
                    await asyncio.sleep(0)

            reading = asyncio.create_task(read_ahead())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for times in (1, 2, 3):
                assert not await settled(reading)
                assert come == times * proxy.MAX_AHEAD_BYTES
                body = {"type": "http.response.body", "body": b"", "more_body": True}
                await send({**body, TAKEN: proxy.MAX_AHEAD_BYTES})
            reading.cancel()
            await send({"type": "http.response.body", "body": b"end"})

        await ProxyMiddleware(ray)(start(), reader.receive, reader.send)
        assert reader.received == b"end"

    asyncio.run(run())


@pytest.mark.parametrize("comes_back", [True, False])
def test_unread_answers_have_a_bound(monkeypatch: pytest.MonkeyPatch, comes_back: bool) -> None:
    monkeypatch.setattr(proxy, "MAX_UNREAD_BYTES", 1000)
    monkeypatch.setattr(proxy, "UNREAD_S", 30 if comes_back else 0.05)
    put = 0

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        nonlocal put
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(5000):
            await send({"type": "http.response.body", "body": b"b" * 100, "more_body": True})
            put += 1
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        reader = Reader()
        scope = start() | {"extensions": {proxy.ABORT: reader.went.set}}

        async def serve() -> None:
            await ProxyMiddleware(app)(scope, reader.receive, reader.send)

        reader.reads.set()
        slow = Reader()
        slow.reads.clear()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await slow.send(message)

        reader.send = send  # type: ignore[method-assign]
        serving: asyncio.Task[object] = asyncio.create_task(serve())
        assert not await settled(serving)
        # What the writer holds, and what is in the outbox.
        assert put <= 20
        if comes_back:
            slow.reads.set()
            await serving
            assert len(slow.received) == 500_000
        else:
            await asyncio.wait_for(reader.went.wait(), 30)
            serving.cancel()

    asyncio.run(run())


def test_a_stream_that_falls_silent_is_ended(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(bundle) as url:
        # A line that is longer than all that Ray may have at a time.
        lines = httpx.post(
            f"{url}/score", content=b'"' + b"b" * 3_000_000 + b'"\n"lovely"\n', timeout=30
        ).text.splitlines()
        assert ["error" in line for line in lines] == [True, False]
        monkeypatch.setattr(proxy, "IDLE_S", 0.3)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(POST % (b"/score", 1000) + b'"lovely"\n')
            come = b""
            while not come.endswith(b"0\r\n\r\n"):
                come += client.recv(4096)
    assert b'"line":1,"label"' in come
    assert b'"error":"nothing came for ' in come


def test_streams_have_a_limit(bundle: Path) -> None:
    with listening(bundle, max_streams=1) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as first:
            first.sendall(POST % (b"/score", 1000) + b'"lovely"\n')
            assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
            with socket.create_connection((host, int(port)), timeout=30) as second:
                second.sendall(POST % (b"/score", 0))
                answer = second.recv(4096)
                assert answer.startswith(b"HTTP/1.1 429 ")
                assert b"retry-after: 1\r\n" in answer.lower()


def test_without_us_before_ray_an_archive_is_as_long_as_any_request(bundle: Path, served: Served) -> None:
    notes = Notes()
    engine = Engine(ServeSettings(model=str(bundle), max_body_mib=0.01), notes)
    with TestClient(create_app(engine, notes)) as client:
        assert client.portal is not None
        client.portal.call(engine.load, str(bundle))
        answer = client.post("/score", content=b'"lovely"\n' * 2000)
        assert [json.loads(line)["error_type"] for line in answer.text.splitlines()[-1:]] == ["validation"]
        assert "see docs/serving.md" in answer.text
    assert served.client.post("/score", content=b'"lovely"\n' * 2000).text.count('"label"') == 2000


def test_haproxy_is_configured_with_limits(tmp_path: Path) -> None:
    """As Ray writes it, and as HAProxy itself reads it."""
    config = HAProxyConfig(socket_path=str(tmp_path / "admin.sock"), server_state_base=str(tmp_path))
    path = tmp_path / "haproxy.cfg"
    HAProxyApi(cfg=config, backend_configs={}, config_file_path=str(path))._generate_config_file_internal()
    before = path.read_text()
    env = os.environ | {"SENTIMENT_HAPROXY": haproxy.binary()}
    for _ in range(2):  # the second time there is nothing to change
        command = [haproxy.__file__, "-c", "-f", path]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
    after = path.read_text()
    assert "bind :9101" in before
    assert "bind *:8404" in before
    assert "bind 127.0.0.1:9101\n" in after
    assert "bind 127.0.0.1:8404\n" in after
    assert "500.http" not in after
    with pytest.raises(ValueError, match="doesn't know Ray's configuration of HAProxy"):
        haproxy.limited(before.replace("frontend http_frontend", "frontend another"), 20_000)
    command = [sys.executable, "-S", haproxy.__file__, "-f", path]
    lacking = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": ""})
    assert (lacking.returncode, lacking.stderr.count("\n")) == (1, 1)
