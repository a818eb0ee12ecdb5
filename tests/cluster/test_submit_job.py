"""Jobs that are submitted to a cluster which asks for a token: a head of its own, started as people start one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forwarder import Forwarder
from heads import BIN, free_ports, started_head
from job_runs import PATIENCE_S, REPOSITORY, running, wait_for
from told import told

ROWS = 40


@dataclass(frozen=True)
class Head:
    """A cluster's head: the addresses of its dashboard and its own, its token, the environment of those who know it."""

    address: str
    joined_at: str
    token: str
    env: dict[str, str]

    def job(self, submission_id: str) -> Any:
        """What the cluster says of a job."""
        return self.get(f"/api/jobs/{submission_id}")

    def get(self, path: str) -> Any:
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head with token authentication and four logical CPUs, in a folder that isn't the repository."""
    token_file = tmp_path_factory.mktemp("token") / "token"
    token_file.write_text(token := secrets.token_hex(32))
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SENTIMENT_"))}
    plain |= {"HOME": str(tmp_path_factory.mktemp("home")), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    env = {**plain, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    port, dashboard, agent, client = free_ports(4)
    address = f"http://127.0.0.1:{dashboard}"
    flags = [
        *("--node-ip-address=127.0.0.1", "--num-cpus=4", f"--port={port}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
    ]
    with started_head(*flags, env=env) as (process, log):
        started = Head(address, f"127.0.0.1:{port}", token, env)

        def answer() -> Any:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                return started.get("/api/version")

        wait_for("dashboard", answer)
        yield started


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"not my day {number}", "label": number % 2}) + "\n" for number in range(ROWS))
    )
    return path


def read_to(process: subprocess.Popen[str], words: str) -> str:
    """Read stderr up to a line that holds some words."""
    assert process.stderr is not None
    before = ""
    for line in process.stderr:
        before += line
        if words in line:
            return before
    raise AssertionError(f"no {words!r} in {before}")


def test_a_submitted_job_is_like_one_that_runs_here(head: Head, archive: Path, tmp_path: Path) -> None:
    """Even if the line to the cluster breaks on the way."""
    variables = {
        "SENTIMENT_PREPARE_VALIDATION_SHARE": "0",
        "SENTIMENT_API_KEYS": "geheim",
        "RAY_ADDRESS": "http://127.0.0.1:1",  # Ray's own client would prefer it to --address
    }
    flags = ("--input", archive, "--output", tmp_path / "out")
    with Forwarder(int(head.address.rpartition(":")[2])) as line:
        words = (
            *("--address", f"http://127.0.0.1:{line.port}", "--submission-id", "tonight"),
            *("--env", "SENTIMENT_PREPARE_TEST_SHARE=0", "jobs/prepare.py", *flags),
        )
        with running("jobs/submit.py", *words, env={**head.env, **variables}) as process:
            before = read_to(process, "Running entrypoint for job tonight: python jobs/prepare.py")
            line.cut()
            before += read_to(process, "asking again")
            line.mend()
            stdout, stderr = process.communicate(timeout=PATIENCE_S)
    stderr = before + stderr
    assert process.returncode == 0, stderr
    assert stdout.count("\n") == 1
    # Both variables have come: no row is held out.
    result = json.loads(stdout)
    assert (result["rows_in"], result["train"], result["validation"], result["test"]) == (ROWS, ROWS, 0, 0)
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert "answers again" in stderr
    assert stderr.count("Running entrypoint") == 1
    assert "Traceback" not in stderr
    assert head.token not in stderr

    job = head.job("tonight")
    assert job["driver_info"], "it ran on a Ray of its own"
    assert "geheim" not in json.dumps(job)


def test_a_mistake_that_the_job_finds_is_its_exit_code(head: Head, tmp_path: Path) -> None:
    flags = ("--data", tmp_path / "nowhere.csv", "--output", tmp_path / "demo")
    with running("jobs/submit.py", "--address", head.address, "jobs/demo.py", *flags, env=head.env) as process:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (2, ""), stderr
    assert stderr.endswith(f"demo: no file or folder at {tmp_path}/nowhere.csv\n")
    assert "Traceback" not in stderr


def test_ctrl_c_stops_the_job(head: Head, bundle: Path, archive: Path, tmp_path: Path) -> None:
    flags = ("--model", bundle, "--input", archive, "--output", tmp_path / "out", "--num-actors", 1)
    words = ("--address", head.address, "--submission-id", "stopped", "jobs/score.py", *flags)
    with running("jobs/submit.py", *words, env=head.env) as process:
        # Not while libraries are being imported: some swallow the interrupt, and the job is killed a minute later.
        read_to(process, "loading the model in 1 actor(s)")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (130, ""), stderr
    # The job was interrupted, not killed: it said so itself.
    assert "score: interrupted" in stderr
    assert stderr.endswith("submit: stopped has stopped\n")
    assert head.job("stopped")["status"] == "STOPPED"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RAY_AUTH_TOKEN": "f" * 64}, "refuses the token of RAY_AUTH_TOKEN"),
        ({}, "asks for a token: set RAY_AUTH_MODE=token"),
    ],
)
def test_a_token_that_does_not_fit_is_one_line(
    head: Head, variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    stranger = {name: value for name, value in head.env.items() if not name.startswith("RAY_")}
    words = ("--address", head.address, "jobs/demo.py", "--output", tmp_path / "demo")
    with running("jobs/submit.py", *words, env={**stranger, **variables}) as process:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (2, "")
    assert f"{head.address} {said}" in stderr
    assert len(told(stderr).splitlines()) == 1


def test_a_job_that_joins_with_a_wrong_token_says_so(head: Head, bundle: Path, archive: Path, tmp_path: Path) -> None:
    words = ("--model", bundle, "--input", archive, "--output", tmp_path / "out", "--address", head.joined_at)
    with running("jobs/score.py", *words, env={**head.env, "RAY_AUTH_TOKEN": "f" * 64}) as process:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (2, "")
    assert told(stderr).endswith(
        f"score: the cluster at {head.joined_at} refuses the token of RAY_AUTH_TOKEN: it must be the head's\n"
    )
    assert "gcs_client" not in stderr


def test_ray_job_submit_takes_the_working_directory(head: Head, bundle: Path, archive: Path, tmp_path: Path) -> None:
    flags = ["--model", bundle, "--input", archive, "--output", tmp_path / "out", "--num-actors", 1]
    done = subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", "python", "jobs/score.py", *map(str, flags)],
        cwd=REPOSITORY,
        env={**head.env, "RAY_ADDRESS": head.address},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line)["rows_scored"] == ROWS
