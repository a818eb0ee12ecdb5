"""Workers that die of the file they read, and workers that freeze: the job ends, and each row is there once.

Files come from a web server that deals with the processes that ask for them: nothing here depends on time.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_runs import PATIENCE_S, Trained, call_job, read_rows, refusal, run_job, wait_for
from ray._private import state

from jobs import prepare, score
from sentiment.data.synthetic import tweets

pytestmark = pytest.mark.usefixtures("ray_cluster")

GOOD_ROWS = 90


class Server(ThreadingHTTPServer):
    """Serves one file; what a reader asks for it, in a process other than this one, is sent a signal first.

    Attributes:
        content: The file.
        left: Signals for the readers to come.
        hit: Process ids of those that got one.
        may_answer: Whoever comes when no signal is left waits for it.
        spares_bytes: Whoever asks for one of so many first bytes is left alone.
        fails_after: Once a signal was sent, nobody else is answered.
    """

    spares_bytes, fails_after = 0, False

    def __init__(self, content: str, signals: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.left, self.hit = content.encode(), signals, list[int]()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        asking = next(one.pid for one in psutil.net_connections("tcp") if one.laddr == self.client_address)
        # Planning and checksums want its bytes alone; it is what a reader makes of them that is deadly.
        if asking and asking != os.getpid() and "sha256" not in psutil.Process(asking).cmdline()[0]:
            if self.server.fails_after and self.server.hit:
                self.send_error(503)
                return
            if self._first_byte() < self.server.spares_bytes:
                pass
            elif self.server.left:
                self.server.hit.append(asking)
                os.kill(asking, self.server.left.pop(0))
            else:
                self.server.may_answer.wait(PATIENCE_S)
        self._answer(self.server.content)

    def _first_byte(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])

    def _answer(self, body: bytes) -> None:
        whole = self.server.content
        first, _, last = self.headers.get("Range", f"bytes=0-{len(whole) - 1}").removeprefix("bytes=").partition("-")
        end = min(int(last) + 1, len(whole))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(end - int(first)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(whole)}")
        self.end_headers()
        self.wfile.write(body[int(first) : end])


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of a file; parametrized with what is done to its readers."""
    content = '{"text": "a lovely day", "label": "positive"}\n{"text": "an awful day", "label": "negative"}\n'
    with Server(content, list(request.param)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def good_file(folder: Path) -> Path:
    """Labeled rows without a fault."""
    made = [tweet.text for tweet in tweets(GOOD_ROWS, seed=5)]
    rows = [{"text": text, "label": ("negative", "positive")[at % 2]} for at, text in enumerate(made)]
    (folder / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "good.jsonl"


@pytest.mark.parametrize("server", [[signal.SIGKILL] * 3], indirect=True)
def test_a_file_that_kills_its_readers_is_rejected(server: Server, trained: Trained, tmp_path: Path) -> None:
    good, url, output = good_file(tmp_path), server.url("deadly.jsonl"), tmp_path / "out"
    flags = ("--model", trained.bundle, "--input", good, url, "--output", output, "--num-actors", 1)
    flags += ("--rows-per-file", 20, "--text-column", "text")
    result = run_job(score.JOB, *flags)
    assert (result["rows_in"], result["rows_scored"], result["rows_rejected"]) == (GOOD_ROWS + 1, GOOD_ROWS, 1)
    # Shards of the same group were done before its reader died, and are made anew: it is cut otherwise now.
    assert sorted(read_rows(output / "scored")["source_row"].to_pylist()) == list(range(GOOD_ROWS))
    (rejected,) = read_rows(output / "rejected").to_pylist()
    assert rejected["source_file"] == url
    assert rejected["reason"] == "file can't be read on: its reader died three times"
    inputs = json.loads((output / "manifest.json").read_text())["inputs"]
    assert [(line["path"], line["rows"], line["rejected"]) for line in inputs] == [(str(good), 90, 0), (url, 1, 1)]
    assert len(server.hit) == 3

    # A run that goes on remembers it: nobody else dies, nor does the answer change.
    server.left.append(signal.SIGKILL)
    for name in ("_SUCCESS", "manifest.json"):
        (output / name).unlink()
    for report in (output / "_run" / "done").iterdir():
        report.unlink()
    again = run_job(score.JOB, *flags)
    assert {**again, "duration_s": 0, "rows_per_s": 0} == {**result, "duration_s": 0, "rows_per_s": 0}
    assert len(server.hit) == 3
    assert "--strict" in refusal(score.JOB, *flags, "--strict")


@pytest.mark.parametrize("server", [[signal.SIGKILL] * 3], indirect=True)
def test_it_is_rejected_by_prepare_too(server: Server, tmp_path: Path) -> None:
    flags = ("--input", good_file(tmp_path), server.url("deadly.jsonl"), "--output", tmp_path / "out")
    code, stdout, stderr = call_job(prepare.JOB, *flags)
    assert code == 0, stderr
    result = json.loads(stdout)
    assert "rejected rows: 1\n           1  file can't be read on: its reader died three times\n" in stderr
    assert (result["rows_in"], result["rejected"]) == (GOOD_ROWS + 1, 1)
    (rejected,) = read_rows(tmp_path / "out" / "rejected").to_pylist()
    assert rejected["reason"] == "file can't be read on: its reader died three times"
    assert len(server.hit) == 3


@pytest.mark.parametrize("server", [[signal.SIGKILL]], indirect=True)
def test_a_file_that_is_lost_half_read_is_told(server: Server, tmp_path: Path) -> None:
    """Its first blocks are there already, and Ray takes them for all that there is."""
    rows = [{"text": f"a lovely day {number} {'so lovely ' * 30}", "label": number % 2} for number in range(40_000)]
    server.content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    server.spares_bytes, server.fails_after = len(server.content) * 2 // 3, True
    url = server.url("large.jsonl")
    code, stdout, stderr = call_job(prepare.JOB, "--input", good_file(tmp_path), url, "--output", tmp_path / "out")
    assert (code, stdout) == (2, ""), stderr
    assert stderr.splitlines()[-1].startswith(f"prepare: not read to the end: {url} (the reader was lost")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("server", [[signal.SIGSTOP]], indirect=True)
def test_frozen_processes_are_replaced(server: Server, trained: Trained, tmp_path: Path) -> None:
    stopped: list[dict[str, Any]] = []

    def stop_actor() -> None:
        """Once the reader is stopped: the job can't be at its end."""
        server.may_answer.clear()
        wait_for("a stopped reader", lambda: server.hit)
        stopped.append(wait_for("the model actor", model_actor))
        os.kill(stopped[0]["Pid"], signal.SIGSTOP)
        server.may_answer.set()

    thread = threading.Thread(target=stop_actor)
    thread.start()
    result = run_job(
        score.JOB,
        *("--model", trained.bundle, "--input", good_file(tmp_path), server.url("stops.jsonl")),
        *("--output", tmp_path / "out", "--num-actors", 1, "--rows-per-file", 20, "--text-column", "text"),
        *("--worker-timeout-s", 3),
    )
    thread.join()
    assert (result["rows_in"], result["rows_scored"]) == (GOOD_ROWS + 2, GOOD_ROWS + 2)
    assert (
        len({(row["source_file"], row["source_row"]) for row in read_rows(tmp_path / "out" / "scored").to_pylist()})
        == GOOD_ROWS + 2
    )
    assert actor_table()[stopped[0]["ActorID"]]["NumRestarts"] == 1
    assert not any(psutil.pid_exists(pid) for pid in (server.hit[0], stopped[0]["Pid"]))


def actor_table() -> dict[str, dict[str, Any]]:
    return state.state.actor_table(None, None, None)


def model_actor() -> dict[str, Any] | None:
    """The one of the job that this process runs now."""
    alive = [one for one in actor_table().values() if one["State"] == "ALIVE" and "MapWorker" in one["ActorClassName"]]
    return alive[0] if alive else None
