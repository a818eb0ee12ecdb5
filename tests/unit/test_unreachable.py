"""A file that can't be reached isn't a damaged one: its rows are asked for again, not rejected."""

from __future__ import annotations

import gzip
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from sentiment.data.byte_stream import UnreachableError
from sentiment.data.formats import batches_of
from sentiment.data.read_plan import plan
from sentiment.errors import DataError

ROWS = 50_000


class SlowStore(MemoryFileSystem):
    """A bucket that answers until `limit` bytes of a file were asked for, then times out."""

    protocol = "slowstore"
    limit = 1 << 62
    error: Exception = TimeoutError("Read timed out")

    def _open(self, path: str, mode: str = "rb", **how: object) -> MemoryFile:
        opened = super()._open(path, mode, **how)
        if "r" in mode:
            read = opened.read

            def limited(size: int = -1) -> bytes:
                if opened.tell() >= SlowStore.limit:
                    raise SlowStore.error
                return bytes(read(size))

            opened.read = limited
        return opened


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("slowstore", SlowStore, clobber=True)
    monkeypatch.setattr(SlowStore, "limit", 1 << 62)
    monkeypatch.setattr(SlowStore, "error", TimeoutError("Read timed out"))


def build_all(paths: list[str]) -> int:
    reads = plan(paths)
    SlowStore.limit = 300_000
    return sum(piece.build().num_rows for piece in batches_of(reads))


def contents() -> dict[str, bytes]:
    chance = random.Random(1)
    lines = b"".join(b'{"text": "%d"}\n' % chance.getrandbits(80) for _ in range(ROWS))
    sink = pa.BufferOutputStream()
    texts = pa.table({"text": [f"row {row * 7919 % 65537}" for row in range(ROWS)]})
    pq.write_table(texts, sink, row_group_size=10_000, compression="none", use_dictionary=False)
    return {"a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines, 1), "a.parquet": sink.getvalue().to_pybytes()}


@pytest.mark.parametrize("name", contents())
def test_a_store_that_times_out(name: str) -> None:
    content = contents()[name]
    assert len(content) > 400_000
    with fsspec.open(f"slowstore://bucket/{name}", "wb") as file:
        file.write(content)
    with pytest.raises(UnreachableError, match="timed out"):
        build_all([f"slowstore://bucket/{name}"])


@pytest.mark.parametrize(
    "error",
    [
        FSTimeoutError(),
        ConnectionResetError(),
        OSError("Azure Error: [ServerBusy] 503 The server is busy."),
        OSError("google::cloud::Status(UNAVAILABLE: try again)"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("Response payload is not completed"),
        FileNotFoundError("bucket/a.jsonl"),
    ],
    ids=repr,
)
def test_what_stores_say(error: Exception) -> None:
    """Some of them nothing but the name of their error: the rest of the file would be one rejected row."""
    with fsspec.open("slowstore://bucket/a.jsonl", "wb") as file:
        file.write(contents()["a.jsonl"])
    SlowStore.error = error
    with pytest.raises(UnreachableError, match=r"a\.jsonl can't be read now"):
        build_all(["slowstore://bucket/a.jsonl"])


class Hiccups(ThreadingHTTPServer):
    """Serves a file until `is_down`."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), HiccupsHandler)
        self.content, self.is_down = content, False


class HiccupsHandler(BaseHTTPRequestHandler):
    server: Hiccups

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        if self.server.is_down:
            self.send_error(503)
            return
        whole = self.server.content
        first, _, last = self.headers.get("Range", f"bytes=0-{len(whole) - 1}").removeprefix("bytes=").partition("-")
        piece = whole[int(first) : int(last) + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(piece)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(piece) - 1}/{len(whole)}")
        self.end_headers()
        if with_body:
            self.wfile.write(piece)


@pytest.mark.parametrize("name", contents())
def test_a_web_server_that_is_down_for_a_while(name: str) -> None:
    content = contents()[name]
    with Hiccups(content) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        reads = plan([url])
        assert sum(piece.build().num_rows for piece in batches_of(reads)) == ROWS
        server.is_down = True
        with pytest.raises(UnreachableError, match=r"can't be read now: .*503"):
            [piece.build() for piece in batches_of(reads)]
        server.shutdown()


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_that_is_gone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(contents()[name])
    reads = plan([str(tmp_path)])
    (tmp_path / name).unlink()
    with pytest.raises(UnreachableError, match=f"{name}.*No such file"):
        [piece.build() for piece in batches_of(reads)]


def test_a_store_that_is_away_while_planning() -> None:
    with fsspec.open("slowstore://bucket/b.jsonl", "wb") as file:
        file.write(contents()["a.jsonl"])
    SlowStore.limit = 0
    with pytest.raises(DataError, match=r"can't be read now: .*timed out; mend that, or leave the file out"):
        plan(["slowstore://bucket/b.jsonl"])


@pytest.mark.parametrize("pattern", ["tweets.csv", "*.csv"])
def test_a_web_server_that_is_not_there(pattern: str) -> None:
    """fsspec says of it that there is no such file."""
    host = "127.0.0.1:1"  # nobody listens there
    with pytest.raises(DataError, match=rf"^http://{host}/.*: can't reach {host} \(.*\); check the"):
        plan([f"http://{host}/{pattern}"])


def test_a_web_server_that_refuses_or_has_no_such_file() -> None:
    with Hiccups(b"") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        server.is_down = True
        with pytest.raises(DataError, match=r"can't reach .*503"):
            plan([f"{url}/a.csv"])
        server.shutdown()


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = "http://127.0.0.1:1"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    with pytest.raises(DataError, match=rf"^hf://datasets/demo/none/a.parquet: can't reach {hub} \(ConnectError"):
        plan(["hf://datasets/demo/none/a.parquet"])
