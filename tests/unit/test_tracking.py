"""Training runs in MLflow, in a real database: all of a run, once, whatever came between; and training never minds."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sentiment.errors import ConfigError
from sentiment.observability import mlflow
from sentiment.observability.mlflow import Tracker, check_tracking
from sentiment.settings import TrainSettings
from sentiment.storage.output_directory import OutputDirectory
from sentiment.training.recipes import get_recipe

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RECIPE = get_recipe("tweets").with_overrides({"epochs": 3})


def figures(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 1 / epoch, "validation_loss": 2 / epoch, "rows_per_s": 100.0 + epoch}


RESULT = {
    **{"best_epoch": 3, "epochs": 3, "validation_loss": 2 / 3, "validation_accuracy": 0.75, "test_loss": 0.5},
    **{"test_accuracy": None, "test_macro_f1": 0.7, "duration_s": 12.5, "model_id": "tweets-0123", "bundle": "b"},
    **{"device": "cpu", "precision": "bf16", "parameters": 10, "trainable_parameters": 9, "rows_per_s": 102.0},
}


@dataclass(frozen=True)
class Training:
    """A training run as its folder shows it, and the MLflow that it is logged to."""

    output: Path
    target: str

    @property
    def settings(self) -> TrainSettings:
        return TrainSettings(output=str(self.output), data="runs/some", mlflow=self.target, mlflow_experiment="tests")

    def write_epochs(self, count: int) -> None:
        self.output.mkdir(exist_ok=True)
        lines = (json.dumps(figures(epoch)) + "\n" for epoch in range(1, count + 1))
        (self.output / "metrics.jsonl").write_text("".join(lines))

    def write_result(self) -> None:
        (self.output / "metrics.json").write_text(json.dumps(RESULT))
        (self.output / "curve.png").write_bytes(b"\x89PNG a curve")

    def tracked(self) -> Tracker:
        return Tracker(self.settings, RECIPE, OutputDirectory(str(self.output)))

    def finish(self) -> None:
        with self.tracked() as tracker:
            tracker.start()
            self.write_epochs(3)
            self.write_result()

    @property
    def run_id(self) -> str:
        run_id = json.loads((self.output / "mlflow.json").read_text())["run_id"]
        assert isinstance(run_id, str)
        return run_id


@dataclass(frozen=True)
class Store:
    """A folder for MLflow, and what was printed when its database was made."""

    folder: Path
    printed: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all tests: making it takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    training = Training(folder / "run", str(folder / "made"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        check_tracking(training.settings)
        training.output.mkdir()
        training.finish()
    return Store(folder / "made", printed.getvalue())


@pytest.fixture
def store(made: Store) -> Path:
    return made.folder


@pytest.fixture
def training(store: Path, tmp_path: Path) -> Training:
    training = Training(tmp_path / "run", str(store))
    training.output.mkdir()
    check_tracking(training.settings)
    return training


@pytest.fixture
def client(store: Path) -> Iterator[MlflowClient]:
    from mlflow import MlflowClient

    yield MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def assert_complete(client: MlflowClient, run_id: str) -> Run:
    """Everything is there, and each figure of each epoch once."""
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    for name in figures(1):
        history = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        assert sorted(history) == [(epoch, figures(epoch)[name]) for epoch in (1, 2, 3)], name
    for name in ("test_loss", "test_macro_f1", "best_epoch", "duration_s"):
        assert [metric.value for metric in client.get_metric_history(run_id, name)] == [RESULT[name]], name
    assert {file.path for file in client.list_artifacts(run_id)} == {"metrics.json", "curve.png"}
    return run


def test_a_run_with_all_its_records(training: Training, client: MlflowClient, store: Path, tmp_path: Path) -> None:
    training.finish()
    run = assert_complete(client, training.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "tests"
    assert run.info.run_name == f"{tmp_path.name}/run"
    assert run.data.params.items() >= {"recipe": "tweets", "epochs": "3", "seed": "1", "num_workers": "2"}.items()
    assert "summary" not in run.data.params
    assert run.data.metrics["best_validation_accuracy"] == 0.75
    assert "test_accuracy" not in run.data.metrics, "it wasn't measured"
    assert run.data.tags.items() >= {"model_id": "tweets-0123", "precision": "bf16"}.items()
    assert {"ray", "torch", "python"} <= run.data.tags.keys()
    assert (store / "artifacts" / training.run_id / "artifacts/metrics.json").read_text() == json.dumps(RESULT)


def test_the_commit_is_a_tag(training: Training, client: MlflowClient) -> None:
    if not (Path(__file__).parents[2] / ".git").exists():
        pytest.skip("not a checkout")
    training.finish()
    assert len(client.get_run(training.run_id).data.tags["mlflow.source.git.commit"]) == 40


def test_a_run_that_goes_on_is_one_run(training: Training, client: MlflowClient) -> None:
    with pytest.raises(RuntimeError, match="lost"), training.tracked() as tracker:
        tracker.start()
        training.write_epochs(1)
        raise RuntimeError("lost")
    run_id = training.run_id
    assert client.get_run(run_id).info.status == "FAILED"
    with pytest.raises(KeyboardInterrupt), training.tracked() as tracker:
        tracker.start()
        training.write_epochs(2)
        raise KeyboardInterrupt
    assert client.get_run(run_id).info.status == "KILLED"
    training.finish()
    assert training.run_id == run_id
    assert_complete(client, run_id)
    # And once more, as --resume of a finished run does.
    training.finish()
    assert training.run_id == run_id
    assert_complete(client, run_id)


def test_epochs_are_logged_while_it_trains(training: Training, client: MlflowClient) -> None:
    with training.tracked() as tracker:
        tracker.start()
        wait_for((training.output / "mlflow.json").exists)
        wait_for(lambda: client.get_run(training.run_id).data.params.get("recipe") == "tweets")
        training.write_epochs(1)
        tracker.log_epochs(1)
        wait_for(lambda: client.get_run(training.run_id).data.metrics.get("epoch") == 1)
        assert client.get_run(training.run_id).info.status == "RUNNING"
        training.write_epochs(3)
        training.write_result()
    assert_complete(client, training.run_id)


def test_a_run_that_never_began_leaves_nothing(training: Training) -> None:
    """It was refused before it took the folder."""
    with pytest.raises(ConfigError), training.tracked():
        raise ConfigError("another run is at it")
    assert list(training.output.iterdir()) == []


def test_a_run_that_is_gone_is_logged_anew(training: Training, client: MlflowClient) -> None:
    training.finish()
    first = training.run_id
    client.delete_run(first)
    training.finish()
    assert training.run_id != first
    assert_complete(client, training.run_id)
    (training.output / "mlflow.json").write_text('{"run_id": "0123456789abcdef0123456789abcdef"}')
    training.finish()
    assert_complete(client, training.run_id)


def test_what_a_server_missed_is_logged_later(
    training: Training,
    client: MlflowClient,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as nobody:  # Bound, but it doesn't listen.
        nobody.bind(("127.0.0.1", 0))
        away = dataclasses.replace(training, target=f"http://127.0.0.1:{nobody.getsockname()[1]}")
        check_tracking(away.settings)
        away.finish()
    assert capfd.readouterr() == ("", "")
    (line,) = caplog.messages
    assert line.startswith("MLflow can't be reached (")
    assert not (training.output / "mlflow.json").exists()
    training.finish()
    assert_complete(client, training.run_id)


def test_a_server_that_never_answers_holds_nothing_up(
    training: Training, client: MlflowClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(mlflow, "_END_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # Connections are made, by the kernel, and that is all.
        deaf = dataclasses.replace(training, target=f"http://127.0.0.1:{silent.getsockname()[1]}")
        check_tracking(deaf.settings)
        with deaf.tracked() as tracker:
            began = time.monotonic()
            tracker.start()
            for epoch in (1, 2, 3):
                training.write_epochs(epoch)
                tracker.log_epochs(epoch)
            assert time.monotonic() - began < 0.5
            training.write_result()
            began = time.monotonic()
        assert 0.9 < time.monotonic() - began < 5
        assert caplog.messages == ["MLflow isn't done after 1 s: what is missing is logged by --resume"]
    training.finish()
    assert_complete(client, training.run_id)


def test_nothing_is_printed_or_reported(made: Store) -> None:
    assert made.printed == ""
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_without_the_flag_nothing_is_done(training: Training) -> None:
    settings = training.settings.model_copy(update={"mlflow": None})
    check_tracking(settings)
    with Tracker(settings, RECIPE, OutputDirectory(str(training.output))) as tracker:
        tracker.start()
        tracker.log_epochs(1)
    assert list(training.output.iterdir()) == []


def test_missing_packages_are_named_with_the_command(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"mlflow"}
    monkeypatch.setattr(mlflow, "find_spec", lambda name: name if name in there else None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tracking\]'"):
        check_tracking(training.settings)
    server = training.settings.model_copy(update={"mlflow": "http://tracking:5000"})
    check_tracking(server)
    there.clear()
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tracking\]'"):
        check_tracking(server)


def test_targets_that_cannot_be_are_refused(training: Training, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target, message in (
        ("htp://someone:secret@tracking:5000", "^--mlflow htp:…: accepted are a folder and URIs of http, https"),
        (str(tmp_path / "file"), "can't make that folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_tracking(training.settings.model_copy(update={"mlflow": target}))
    for target in ("http://tracking:5000", "sqlite:///a.db", "postgresql+psycopg://user:secret@host/db", "databricks"):
        check_tracking(training.settings.model_copy(update={"mlflow": target}))
