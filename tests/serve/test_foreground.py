"""`python -m serve_app`: from the command line to Ctrl-C, behind Ray's own proxy and behind HAProxy."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
from job_runs import beyond_loopback, environment, free_port, running, wait_for
from told import told

from sentiment.errors import ResourceError
from sentiment.predictor import Predictor
from sentiment.settings import RaySettings, ServeSettings
from serve_app.app import check, serve_until_interrupted

HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}


def started(*flags: object, **more: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return running("-m", "serve_app", *flags, env=environment(None) | more)


class Stream:
    """A request to /score that is under way: its first line is answered, the others are still to come."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        head = "POST /score HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer some-key\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._socket.sendall(head.encode() + b'6\r\n"day"\n\r\n')
        self._answer = b""
        while b'"line":1' not in self._answer:
            self._answer += self._socket.recv(4096)

    def finish(self) -> bytes:
        """Send the last line; gives the whole answer."""
        self._socket.sendall(b'8\r\n"night"\n\r\n0\r\n\r\n')
        return self.rest()

    def rest(self) -> bytes:
        """The whole answer, once it has ended; without its end where it was cut."""
        try:
            while not self._answer.endswith(b"\r\n0\r\n\r\n") and (more := self._socket.recv(4096)):
                self._answer += more
        except ConnectionError:
            pass
        self._socket.close()
        return self._answer


def upload(port: int, path: Path) -> str:
    """Send an archive by curl, which sends a file once the service has said to go on (`Expect: 100-continue`)."""
    options = ["-sS", "--fail", "--noproxy", "*", "-X", "POST", "-H", "Authorization: Bearer some-key", "-T", str(path)]
    command = ["curl", *options, f"http://127.0.0.1:{port}/score"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.ray
@pytest.mark.parametrize(
    ("proxy", "end"), [({}, signal.SIGTERM), (HAPROXY, signal.SIGINT)], ids=["python-proxy", "haproxy"]
)
def test_from_start_to_end(
    bundle: Path, predictor: Predictor, proxy: dict[str, str], end: signal.Signals, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("some-key\n")
    port = free_port()
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": "Bearer some-key"}
    flags = ("--model", bundle, "--port", port, "--max-replicas", 1, "--api-keys-file", keys, "--num-cpus", 2)
    flags += ("--precision", "float32")
    # HAProxy's other two are fixed: another service on this machine may have them.
    ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    # Paths of Ray's sockets are short: not in `tmp_path`.
    with tempfile.TemporaryDirectory() as folder, started(*flags, **proxy, **ports, RAY_TMPDIR=folder) as process:
        said = until_said("serving at", process)
        wait_until_healthy(url, process)
        assert beyond_loopback(psutil.Process(process.pid)) == []
        (one,) = predictor.predict(["what a lovely day"])
        answer = httpx.post(f"{url}/predict", json={"inputs": "what a lovely day"}, headers=headers)
        assert answer.json()[0][0]["score"] == pytest.approx(one.score, abs=1e-5)
        assert len(answer.headers.get_list("x-request-id")) == 1
        assert httpx.post(f"{url}/predict", json={"inputs": "a"}).status_code == 401
        assert "<textarea" in httpx.get(url).text
        # Our limits stand before Ray, and whatever HAProxy listens at is loopback.
        assert httpx.get(f"{url}/-/routes").status_code == 404
        assert httpx.get(f"{url}/-/healthz").text == "success"
        assert httpx.get(url, headers={"X": "a" * 100_000}).status_code in (400, 431)
        assert {host for host, _ in addresses(process.pid, "haproxy")} == ({"127.0.0.1"} if proxy else set())
        lines = httpx.post(f"{url}/score", content=b'"lovely"\n' * 30_000, headers=headers, timeout=60).text
        assert [json.loads(line)["line"] for line in lines.splitlines()] == list(range(1, 30_001))
        # As often as it takes to meet a race: behind HAProxy some of such answers were empty.
        archive = tmp_path / "archive.jsonl"
        archive.write_text(f'"{"lovely " * 50}"\n' * 800)
        assert [upload(port, archive).count('"label"') for _ in range(12)] == [800] * 12
        answer = httpx.post(f"{url}/predict", json={"inputs": "a"}, headers={b"X-Request-ID": b"\xff"})
        assert (answer.status_code, answer.json()["error"]) == (400, "header x-request-id: not UTF-8")
        streams = [Stream(port) for _ in range(4)]
        process.send_signal(end)
        said += until_said("under way", process)
        refused = wait_for_refusal(url)
        assert (refused.json()["error_type"], refused.headers["Retry-After"]) == ("unhealthy", "1")
        for stream in streams:
            assert (answers := stream.finish()).endswith(b"\r\n0\r\n\r\n"), answers
            assert (answers.count(b'"label"'), answers.count(b'"line":2')) == (2, 1)
        stdout, stderr = process.communicate(timeout=60)
        stderr = said + stderr
        assert list(Path(folder).iterdir()) == [], "Ray's token and logs"
    assert process.returncode == 0, stderr
    assert json.loads(stdout) == {"stopped": True}
    assert f"serving at {url}" in stderr
    assert "some-key" not in stderr
    assert "Traceback" not in stderr


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("proxy", [{}, HAPROXY], ids=["python-proxy", "haproxy"])
def test_a_replica_that_dies_or_hangs_is_replaced(bundle: Path, proxy: dict[str, str]) -> None:
    """Whoever asks meanwhile is told within the time limit, and nothing is left of the process.

    HAProxy tells clients that have used their connection before by closing it (`abort_keep_alive` in its http_ana.c).
    """
    told = {200, 503, 504} | ({"RemoteProtocolError", "ReadError"} if proxy else set())
    port = free_port()
    url, limit_s = f"http://127.0.0.1:{port}", 10
    flags = ("--model", bundle, "--port", port, "--max-replicas", 1, "--num-cpus", 2, "--request-timeout-s", 5)
    ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    with started(*flags, **proxy, **ports) as process:
        until_said("serving at", process)
        wait_until_healthy(url, process)
        for how in (signal.SIGKILL, signal.SIGSTOP):
            (victim,) = replicas(process)
            with ThreadPoolExecutor(8) as pool:
                over = threading.Event()
                asked = [pool.submit(ask, url, over) for _ in range(8)]
                time.sleep(1)  # so that there are requests under way
                victim.send_signal(how)
                try:
                    wait_for("another replica", partial(others_than, victim, process), process)
                    wait_until_healthy(url, process)
                    victim.wait(20)  # Killed, it is still a zombie until Ray has noticed.
                finally:
                    over.set()
            seen, slowest_s = Counter[object](), 0.0
            for task in asked:
                statuses, longest_s = task.result()
                seen, slowest_s = seen + statuses, max(slowest_s, longest_s)
            print(how.name, dict(seen), f"slowest {slowest_s:.1f} s")
            assert set(seen) <= told, seen
            assert len(seen) > 1, "nothing was disturbed"
            assert slowest_s < limit_s + 10


def replicas(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "ray::ServeReplica" in " ".join(child.cmdline()):
                found.append(child)
    return found


def others_than(victim: psutil.Process, process: subprocess.Popen[str]) -> list[psutil.Process] | None:
    there = replicas(process)
    return there if there and victim not in there else None


def ask(url: str, over: threading.Event) -> tuple[Counter[object], float]:
    """Ask again and again; gives the statuses, or kinds of failure, and how long the longest took, s."""
    seen, longest_s = Counter[object](), 0.0
    with httpx.Client(timeout=60) as client:
        while not over.is_set():
            began = time.monotonic()
            try:
                answer = client.post(f"{url}/predict", json={"inputs": "what a day"})
                seen[answer.status_code] += 1
                assert answer.status_code == 200 or set(answer.json()) == {"error", "error_type"}
            except httpx.HTTPError as error:
                seen[type(error).__name__] += 1
            longest_s = max(longest_s, time.monotonic() - began)
    return seen, longest_s


@pytest.mark.ray
@pytest.mark.chaos
def test_a_second_signal_ends_it_at_once(bundle: Path) -> None:
    """Also while a request is under way that has all its time."""
    port = free_port()
    with started("--model", bundle, "--port", port, "--num-cpus", 2, "--request-timeout-s", 600) as process:
        until_said("serving at", process)
        stream = Stream(port)
        process.send_signal(signal.SIGTERM)
        until_said("under way", process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert not stream.rest().endswith(b"\r\n0\r\n\r\n")


@pytest.mark.ray
@pytest.mark.chaos
def test_it_can_be_ended_while_it_loads(bundle: Path) -> None:
    with started("--model", bundle, "--port", free_port(), "--num-cpus", 2) as process:
        until_said(f"loading {bundle}", process)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "stopping the service…\n" in stderr
    assert "Traceback" not in stderr


def test_what_can_never_come_up_is_refused(ray_cluster: str, bundle: Path) -> None:
    settings = ServeSettings(model=str(bundle), port=free_port(), cpus_per_replica=64)
    with pytest.raises(ResourceError, match="1 replicas ask for 64 CPUs"):
        serve_until_interrupted(settings, RaySettings())


def test_ports_that_are_taken_are_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_port()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"can't listen at 127.0.0.1:{port} .*: try another --port"):
            check(ServeSettings(model=str(bundle), port=port))
        monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
        monkeypatch.setenv("RAY_SERVE_HAPROXY_METRICS_PORT", str(port))
        with pytest.raises(ResourceError, match="try another RAY_SERVE_HAPROXY_METRICS_PORT"):
            check(ServeSettings(model=str(bundle), port=free))


def test_mistakes_are_told_before_ray_starts(bundle: Path, tmp_path: Path) -> None:
    for flags, words in (
        (("--model", tmp_path), "MANIFEST.json"),
        (("--model", bundle, "--port", 70_000), "--port: "),
        (("--model", bundle, "--min-replicas", 3), "--min-replicas is more than --max-replicas"),
        (("--model", bundle, "--api-keys-file", tmp_path / "none"), "can't be read"),
        (("--model", bundle, "--pord", 1), "did you mean --port"),
    ):
        with started(*flags) as process:
            stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (2, "")
        assert words in stderr
        assert told(stderr).count("\n") == 1, stderr


def addresses(pid: int, name: str) -> set[tuple[str, int]]:
    """Where processes of a name listen that descend from one."""
    found = [process for process in psutil.Process(pid).children(recursive=True) if process.name() == name]
    sockets = [one for process in found for one in process.net_connections("inet") if one.status == "LISTEN"]
    return {(one.laddr.ip, one.laddr.port) for one in sockets}


def until_said(words: str, process: subprocess.Popen[str]) -> str:
    """What stands on stderr up to a line with some words."""
    assert process.stderr is not None
    said = ""
    while words not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def wait_for_refusal(url: str) -> httpx.Response:
    """The first answer that isn't a 200."""
    end = time.monotonic() + 60
    while (answer := httpx.get(f"{url}/health", timeout=30)).status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.05)
    return answer


def wait_until_healthy(url: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError("not healthy within 120 s")
