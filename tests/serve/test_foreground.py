"""`python -m serve_app`: from the command line to Ctrl-C, behind Ray's own proxy and behind HAProxy."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2 as httpx
import pytest
from job_runs import environment, free_port, running

from sentiment.errors import ResourceError
from sentiment.predictor import Predictor
from sentiment.settings import RaySettings, ServeSettings
from serve_app.foreground import check, serve_until_interrupted

HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}


def started(*flags: object, **more: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return running("-m", "serve_app", *flags, env=environment(None) | more)


@pytest.mark.ray
@pytest.mark.parametrize("proxy", [{}, HAPROXY], ids=["python-proxy", "haproxy"])
def test_from_start_to_interrupt(bundle: Path, predictor: Predictor, proxy: dict[str, str], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("some-key\n")
    port = free_port()
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": "Bearer some-key"}
    flags = ("--model", bundle, "--port", port, "--max-replicas", 1, "--api-keys-file", keys, "--num-cpus", 2)
    # HAProxy's other two are fixed: another service on this machine may have them.
    ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    with started(*flags, **proxy, **ports) as process:
        said = until_said("serving at", process)
        wait_until_healthy(url, process)
        (one,) = predictor.predict(["what a lovely day"])
        answer = httpx.post(f"{url}/predict", json={"inputs": "what a lovely day"}, headers=headers)
        assert answer.json()[0][0]["score"] == pytest.approx(one.score, abs=1e-2)
        assert len(answer.headers.get_list("x-request-id")) == 1
        assert httpx.post(f"{url}/predict", json={"inputs": "a"}).status_code == 401
        assert "<textarea" in httpx.get(url).text
        lines = httpx.post(f"{url}/score", content=b'"lovely"\n' * 30_000, headers=headers, timeout=60).text
        assert [json.loads(line)["line"] for line in lines.splitlines()] == list(range(1, 30_001))
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        stderr = said + stderr
    assert process.returncode == 0, stderr
    assert json.loads(stdout) == {"stopped": True}
    assert f"serving at {url}" in stderr
    assert "some-key" not in stderr
    assert "Traceback" not in stderr


@pytest.mark.ray
@pytest.mark.chaos
def test_it_can_be_ended_while_it_loads(bundle: Path) -> None:
    with started("--model", bundle, "--port", free_port(), "--num-cpus", 2) as process:
        until_said("loading", process)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stderr.startswith("stopping\n")


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
        assert stderr.count("\n") == 1, stderr


def until_said(words: str, process: subprocess.Popen[str]) -> str:
    """What stands on stderr up to a line with some words."""
    assert process.stderr is not None
    said = ""
    while words not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


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
