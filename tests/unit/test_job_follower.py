"""Staying with a submitted job, with a cluster that is acted: logs, results, exit codes, lost connections, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray._raylet import Config
from ray.exceptions import AuthenticationError

from sentiment import submission
from sentiment.errors import ConfigError, ResourceError
from sentiment.submission import Follower, JobLog

RESULT = '{"rows_in": 3}'
SUBMISSION = {"submission_id": "run-1", "entrypoint": "python jobs/score.py", "runtime_env": {}}


@dataclass
class Status:
    """As `ray.job_submission.JobStatus`."""

    name: str

    def __str__(self) -> str:
        return self.name

    def is_terminal(self) -> bool:
        return self.name in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass
class ActedCluster:
    """A job that ends when its story has been told.

    Attributes:
        log: All of its log, in the end.
        tails: How far each connection to the log gets; later ones stay open and silent.
        answers: Statuses, one for each question; an error is raised; the last one stays.
        code: The job's exit code.
        line: What happens to the answer when a job is handed over.
    """

    log: str = ""
    tails: list[int] = field(default_factory=list)
    answers: list[str | Exception] = field(default_factory=lambda: ["RUNNING", "SUCCEEDED"])
    code: int | None = 0
    message: str | None = None
    stops: int = 0
    line: Exception = field(default_factory=lambda: ConnectionError("Connection reset by peer"))

    def submit_job(self, **_: object) -> str:
        raise self.line

    def get_job_info(self, job_id: str) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(status=Status(answer), driver_exit_code=self.code, message=self.message)

    def get_job_logs(self, job_id: str) -> str:
        return self.log

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        if not self.tails:
            await asyncio.Event().wait()
        end = self.tails.pop(0)
        for start in range(0, end, 7):
            yield self.log[start : min(start + 7, end)]
        if end < len(self.log):
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def stop_job(self, job_id: str) -> bool:
        self.stops += 1
        self.answers = ["RUNNING", "STOPPED"]
        return True


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_POLL_S", 0.01)


def follow(cluster: ActedCluster, *, patience_s: float = 10, meanwhile: Callable[[], None] | None = None) -> int:
    with Follower(cluster, "run-1", "http://head:8265", patience_s) as follower:
        if meanwhile is not None:
            threading.Timer(0.05, meanwhile).start()
        return follower.follow()


def test_stdout_is_the_result_and_stderr_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    log = f'Running entrypoint\nwords\n{{"not": "the last"}}\nmore\n{RESULT}\n{{broken\nlate words, no line break'
    assert follow(ActedCluster(log)) == 0
    out, err = capsys.readouterr()
    assert out == RESULT + "\n"
    assert err.splitlines() == [
        *("Running entrypoint", "words", "more", '{"not": "the last"}', "{broken", "late words, no line break"),
    ]


def test_a_message_in_json_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    log = submission.JobLog()
    log.add('{"level": "info", "message": "words"}\n', 0)
    assert capsys.readouterr().err == '{"level": "info", "message": "words"}\n'
    assert log.result is None


def test_lost_connections_repeat_and_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log = "".join(f"line {number} ü\n" for number in range(200)) + RESULT + "\n"
    cut = ConnectionError("Connection reset by peer")
    answers: list[str | Exception] = [
        "PENDING",
        *["RUNNING"] * 5,
        cut,
        cut,
        TimeoutError(),
        *["RUNNING"] * 5,
        "SUCCEEDED",
    ]
    assert follow(ActedCluster(log, tails=[30, 11, 700, len(log)], answers=answers)) == 0
    out, err = capsys.readouterr()
    assert out == RESULT + "\n"
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("line")] == log.splitlines()[:-1]
    assert [line for line in lines if not line.startswith("line")] == [
        "submit: no answer from http://head:8265 (Connection reset by peer), asking again",
        "submit: http://head:8265 answers again",
    ]


def test_a_job_that_ends_while_the_line_is_cut_is_heard_of(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = ActedCluster(RESULT + "\n", answers=[ConnectionError("Connection reset by peer"), "SUCCEEDED"])
    assert follow(cluster) == 0
    out, err = capsys.readouterr()
    assert out == RESULT + "\n"
    assert "submit: http://head:8265 answers again" in err.splitlines()


def test_a_silent_connection_is_made_anew(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(submission, "_SILENCE_S", 0.05)
    cluster = ActedCluster("some words\n", answers=["RUNNING"])
    opened = []

    async def tail(job_id: str) -> AsyncIterator[str]:
        opened.append(job_id)
        if len(opened) == 3:
            cluster.answers = ["SUCCEEDED"]
        yield "some"
        await asyncio.Event().wait()

    monkeypatch.setattr(cluster, "tail_job_logs", tail)
    assert follow(cluster) == 0
    assert len(opened) >= 3
    assert capsys.readouterr().err == "some words\n"


@pytest.mark.parametrize(
    ("status", "code", "expected", "said"),
    [
        ("FAILED", 2, 2, "score: no bundle at /x"),
        ("FAILED", 1, 1, "score: no bundle at /x"),
        ("FAILED", -9, 137, "score: no bundle at /x"),
        ("FAILED", 127, 127, "finds no `python`"),
        ("FAILED", None, 1, "run-1 failed: runtime_env setup failed: no space"),
        ("STOPPED", None, 130, "run-1 has stopped"),
    ],
)
def test_exit_codes(
    status: str, code: int | None, expected: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = f"score: no bundle at /x\n{RESULT}\n"
    cluster = ActedCluster(log, answers=["RUNNING", status], code=code, message="runtime_env setup failed:\nno space")
    assert follow(cluster) == expected
    out, err = capsys.readouterr()
    assert out == ""  # a job that fails has no result
    assert said in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_job_and_waits(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = ActedCluster("words\n", answers=["RUNNING"])
    assert follow(cluster, meanwhile=lambda: os.kill(os.getpid(), number)) == code
    assert cluster.stops == 1
    err = capsys.readouterr().err
    assert "stopping run-1" in err
    assert err.endswith("run-1 has stopped\n")


def test_a_job_that_ends_meanwhile_has_its_own_code() -> None:
    cluster = ActedCluster(RESULT + "\n", answers=["RUNNING"])

    def end() -> None:
        cluster.answers = ["SUCCEEDED"]
        os.kill(os.getpid(), signal.SIGINT)

    assert follow(cluster, meanwhile=end) == 0


def test_a_second_signal_leaves_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = ActedCluster(answers=["RUNNING"])
    asked: list[str] = []

    def ask_in_vain(job_id: str) -> bool:
        if not asked:  # The first signal has been understood.
            os.kill(os.getpid(), signal.SIGINT)
        asked.append(job_id)
        return False

    monkeypatch.setattr(cluster, "stop_job", ask_in_vain)

    monkeypatch.setattr(submission, "connect", lambda address: cluster)
    monkeypatch.setattr(submission, "send", lambda client, submission: os.kill(os.getpid(), signal.SIGINT))
    assert submission.submit(SUBMISSION, "http://head:8265") == 130
    err = capsys.readouterr().err
    assert "ray job logs --follow --address http://head:8265 run-1" in err
    assert err.endswith("submit: left run-1, which may go on\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Request failed with status code 404: Job run-1 does not exist."), "doesn't know run-1"),
        (ConnectionError("Connection refused"), "no answer for 0.1 s from http://head:8265, run-1 may go on"),
        (AuthenticationError("Unauthenticated"), "doesn't accept the token any more: it must be the head's; run-1 may"),
    ],
)
def test_a_cluster_that_is_gone_is_exit_1(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(ActedCluster(answers=["RUNNING", error]), patience_s=0.1) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        *(ConnectionError("Connection reset by peer"), TimeoutError()),
        RuntimeError("Request failed with status code 504: <html>\n<h1>504 Gateway Time-out</h1>\n</html>"),
    ],
)
def test_a_job_that_was_taken_is_not_lost_with_the_line(monkeypatch: pytest.MonkeyPatch, line: Exception) -> None:
    """Reported as refused, it would be submitted again and run twice."""
    monkeypatch.setattr(submission, "_PAUSE_S", 0.01)
    gateway = RuntimeError("Request failed with status code 502: Bad Gateway.")
    submission.send(ActedCluster(line=line, answers=[ConnectionError(), gateway, "PENDING"]), SUBMISSION)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            RuntimeError("Request failed with status code 404: Job run-1 does not exist."),
            "the job wasn't submitted: Conn",
        ),
        (ConnectionError("Connection refused"), "it may or may not have the job; .* see ray job status run-1"),
    ],
)
def test_a_line_that_breaks_over_a_submission(monkeypatch: pytest.MonkeyPatch, answer: Exception, said: str) -> None:
    monkeypatch.setattr(submission, "_PAUSE_S", 0.01)
    with pytest.raises(ResourceError, match=said):
        submission.send(ActedCluster(answers=[answer]), SUBMISSION)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            RuntimeError("Request failed with status code 500: Traceback …\nValueError: no such environment.\n"),
            "no such env",
        ),
        (RuntimeError(), "RuntimeError"),
        (AuthenticationError("Unauthenticated"), "doesn't accept the token"),
    ],
)
def test_a_job_that_is_refused(line: Exception, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        submission.send(ActedCluster(line=line), SUBMISSION)


def test_a_cluster_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections, and that is all; Ray's client would wait for ever."""
    monkeypatch.setattr(submission, "_ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "set so that it is put back")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    Config.initialize("")  # Another test may have had Ray read another mode.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ResourceError, match=rf"no Ray dashboard answers at {address} \(.*timed out"):
            submission.connect(address)


def test_pieces_that_overlap_are_taken_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = JobLog()
    for text, position in (("ab", 0), ("abc\nd", 0), ("c\nde\n", 2), ("abc\nde\nf", 0)):
        log.add(text, position)
    log.close()
    assert capsys.readouterr().err == "abc\nde\nf\n"
