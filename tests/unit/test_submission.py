"""Submitting a job: what the cluster is given, and what is refused before it is asked."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

import pytest
from ray.exceptions import AuthenticationError
from told import told

from sentiment import submission
from sentiment.errors import ConfigError
from sentiment.submission import dashboard_address, plan

ROOT = Path(__file__).parents[2]
SCORE = (
    "jobs/score.py",
    ["--model", "/shared/bundle", "--input", "s3://bucket/*.gz", "/a b", "--output", "/shared/out"],
)


@pytest.fixture(autouse=True)
def in_an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("SENTIMENT_", "RAY_")):
            monkeypatch.delenv(name)


def test_the_jobs_flags_arrive_as_they_are() -> None:
    submission = plan(*SCORE)
    assert shlex.split(submission["entrypoint"]) == ["python", SCORE[0], *SCORE[1]]
    assert submission["runtime_env"]["working_dir"] == str(ROOT)
    assert submission["submission_id"].startswith("score-")
    assert plan(*SCORE)["submission_id"] != submission["submission_id"]
    assert plan(*SCORE, submission_id="tonight")["submission_id"] == "tonight"


def test_the_job_gets_our_variables_but_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_SCORE_BATCH_ROWS", "512")
    monkeypatch.setenv("SENTIMENT_API_KEYS", "geheim")
    monkeypatch.setenv("SENTIMENT_RAY_ADDRESS", "ray://elsewhere:10001")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "geheim")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    assert plan(*SCORE, profile="gpu-cluster", assignments=["HF_HOME=/shared/a=b"])["runtime_env"]["env_vars"] == {
        "SENTIMENT_SCORE_BATCH_ROWS": "512",
        "SENTIMENT_PROFILE": "gpu-cluster",
        # The cluster it runs on; not the one that jobs started here join.
        "SENTIMENT_RAY_ADDRESS": "auto",
        # Ray Train ends gracefully on SIGINT.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "HF_HOME": "/shared/a=b",
    }
    assert os.environ["SENTIMENT_RAY_ADDRESS"] == "ray://elsewhere:10001"
    assert "SENTIMENT_PROFILE" not in os.environ


def test_how_a_job_is_stopped_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "600")
    variables = plan(*SCORE, assignments=["RAY_JOB_STOP_SIGNAL=SIGTERM"])["runtime_env"]["env_vars"]
    assert (variables["RAY_JOB_STOP_SIGNAL"], variables["RAY_JOB_STOP_WAIT_TIME_S"]) == ("SIGTERM", "600")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["jobs/scor.py"], "no job at jobs/scor.py; there are jobs/demo.py"),
        (["sentiment/settings.py"], "no job at sentiment/settings.py"),
        (["jobs/submit.py"], "no job at jobs/submit.py"),
        ([], "JOB"),
        (["--adress", "http://head:8265", *SCORE], "--adress"),
        (["--env", "HF_HOME", SCORE[0]], "--env takes NAME=VALUE, got 'HF_HOME'"),
        (
            ["--profile", "gpu", SCORE[0], *SCORE[1]],
            "unknown profile 'gpu' in ray_config.yaml: there are: gpu-cluster",
        ),
        ([SCORE[0], *SCORE[1], "--sede", "1"], "unknown flag '--sede' in sentiment score"),
        ([SCORE[0], "--model", "/shared/bundle"], "--input is required"),
        ([SCORE[0], *SCORE[1], "--address", "http://head:8265"], "--address stands before the job's file"),
        ([SCORE[0], *SCORE[1], "--output", "runs/scored"], "--output runs/scored is relative"),
        ([SCORE[0], *SCORE[1], "--input", "/a", "runs/a.csv"], "--input runs/a.csv is relative"),
        (["jobs/train_bert.py", "--data", "/shared/imdb"], "--output runs/bert is relative"),
        (
            ["jobs/train_bert.py", "--output", "/shared/b", "--mlflow", "runs/mlflow"],
            "--mlflow runs/mlflow is relative",
        ),
        (
            ["jobs/train_bert.py", "--output", "/shared/b", "--mlflow", "sqlite:///m.db"],
            "--mlflow sqlite:///m.db is rel",
        ),
        (["jobs/demo.py"], "--output runs/demo is relative"),
        (["jobs/train_bert.py", "--output", "/shared/bert", "--encoder", "docs"], f"such as {ROOT}/docs"),
        (
            ["--address", "ray://head:10001", SCORE[0], *SCORE[1]],
            "--address: jobs are submitted to the cluster's dashboard",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [word for words in argv for word in ([words] if isinstance(words, str) else words)]
    assert submission.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("submit: ")
    assert message in err
    assert len(told(err).splitlines()) == 1


def test_a_root_is_advised_where_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    bert = ["jobs/train_bert.py", "--data", "/shared/imdb", "--output"]
    for argv, helps in (
        ([*bert, "runs/b"], True),
        ([*bert, "/shared/b", "--mlflow"], False),
        (["jobs/demo.py"], False),
    ):
        assert submission.main(argv) == 2
        assert ("storage.root" in capsys.readouterr().err) == helps


@pytest.mark.parametrize(
    "mlflow", ["databricks", "http://tracking:5000", "/shared/mlflow", "sqlite:////shared/mlflow.db"]
)
def test_where_mlflow_may_be(mlflow: str) -> None:
    plan("jobs/train_bert.py", ["--data", "/shared/imdb", "--output", "/shared/bert", "--mlflow", mlflow])


def test_names_of_encoders_are_no_paths() -> None:
    plan("jobs/train_bert.py", ["--output", "/shared/bert", "--encoder", "bert-base-uncased"])


def test_where_jobs_are_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS: .* got '10\.0\.0\.1:6379'$"):
        dashboard_address(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://head/")
    assert dashboard_address(None) == "https://head"
    assert dashboard_address("http://other:8265") == "http://other:8265"


def test_no_cluster_is_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "set so that it is put back")
        assert submission.main(["--address", address, SCORE[0], *SCORE[1]]) == 2
    err = capsys.readouterr().err
    assert told(err).startswith(f"submit: no Ray cluster at {address}")
    assert len(told(err).splitlines()) == 1


def refusing(error: Exception) -> type:
    """Ray's client at a head that says no."""

    class Client:
        def __init__(self, address: str) -> None:
            if isinstance(error, AuthenticationError):
                raise error

        def submit_job(self, **_: object) -> str:
            raise error

    return Client


@pytest.mark.parametrize(
    ("variables", "error", "message"),
    [
        ({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"}, AuthenticationError(""), "RAY_AUTH_MODE=disabled keeps"),
        ({"RAY_AUTH_TOKEN": "x"}, AuthenticationError(""), "refuses the token of RAY_AUTH_TOKEN"),
        ({"HOME": "HERE"}, AuthenticationError(""), "refuses the token of ~/.ray/auth_token"),
        ({}, AuthenticationError(""), "asks for a token: set"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, AuthenticationError(""), "RAY_AUTH_TOKEN_PATH: no file at /nowhere"),
        (
            {},
            RuntimeError(
                "Request failed with status code 400: Traceback (most recent call last):\n  File ...\n"
                "ValueError: Job with submission_id x already exists. Please use a different submission_id.\n."
            ),
            "refuses the job: ValueError: Job with submission_id x already exists",
        ),
    ],
)
def test_what_the_cluster_refuses_is_one_line(
    variables: dict[str, str],
    error: Exception,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", refusing(error))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "set so that it is put back")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("HERE", str(tmp_path)))
    assert submission.main(["--address", "http://head:8265", SCORE[0], *SCORE[1]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(told(err).splitlines()) == 1


def test_help_of_the_submission_and_of_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        submission.main(["--help"])
    assert "--submission-id" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        submission.main(["jobs/score.py", "--help"])
    assert "--rows-per-file" in capsys.readouterr().out
