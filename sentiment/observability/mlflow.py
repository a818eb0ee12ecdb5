"""MLflow beside a training run: parameters, the figures of each epoch, and in the end those on test rows and the curve.

The figures are those of metrics.jsonl and metrics.json in the run's folder, and MLflow is asked which epochs it has. So
a resumed run is one run there too, nothing is logged twice, and what an unreachable server missed is logged at the end,
or by `--resume` of the finished run. MLflow is called in a thread of its own: a server that doesn't answer neither ends
the training nor holds it up. Needs the extra `tracking`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from sentiment.errors import ConfigError, brief
from sentiment.observability.prometheus import name_of
from sentiment.settings import TrainSettings
from sentiment.storage.output_directory import OutputDirectory
from sentiment.training.recipes import Recipe

if TYPE_CHECKING:
    from mlflow.entities import Run

_log = logging.getLogger(__name__)

STATE = "mlflow.json"
# Between a failure and the next try.
_RETRY_S = 60.0
# For what is still to be logged when training has ended.
_END_S = 30.0
_SERVERS, _DATABASES = ("http", "https", "databricks"), ("sqlite", "postgresql", "mysql", "mssql")
# Figures of metrics.json that are logged at the end, and under which names; facts of it that become tags.
_FINAL = {
    "best_epoch": "best_epoch",
    "validation_loss": "best_validation_loss",
    "validation_accuracy": "best_validation_accuracy",
    **{name: name for name in ("test_loss", "test_accuracy", "test_macro_f1", "duration_s")},
}
_TAGS = ("model_id", "bundle", "device", "precision", "parameters", "trainable_parameters")
_ARTIFACTS = ("metrics.json", "curve.png")
_ENVIRONMENT = {
    # Without it MLflow reports its use to its makers.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
}
# By default a server that doesn't answer is waited for for many minutes.
_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


def check_tracking(settings: TrainSettings) -> None:
    """Refuse what can't be tracked, and import MLflow, before anything is started.

    Args:
        settings: Section `train` or `train_bert`.

    Raises:
        ConfigError: MLflow isn't installed, the URI is of no kind that it knows, or the folder can't be made.
    """
    if settings.mlflow is None:
        return
    scheme = _scheme(settings.mlflow)
    if scheme is not None and scheme not in (*_SERVERS, *_DATABASES):
        raise ConfigError(
            f"--mlflow {scheme}:…: accepted are a folder and URIs of {', '.join((*_SERVERS, *_DATABASES))}"
        )
    needed = ("mlflow",) if scheme in _SERVERS else ("mlflow", "sqlalchemy", "alembic")
    if any(find_spec(name) is None for name in needed):
        raise ConfigError("--mlflow needs MLflow: pip install -e '.[tracking]' in the checkout, on all nodes")
    if scheme is None:
        try:
            Path(settings.mlflow).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--mlflow {settings.mlflow}: can't make that folder ({brief(error)})") from error
    os.environ.update(_ENVIRONMENT)
    for name, value in _LIMITS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401  (before there are threads that import too)

    # What goes wrong is raised too, and said once.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)


class Tracker:
    """A training run in MLflow, for the `with` block that trains it; without --mlflow it does nothing.

    A failure is said once. After it MLflow is tried again with later epochs, at least a minute later, and at the end.

    Args:
        settings: Section `train` or `train_bert`, after `check_tracking`.
        recipe: With its overrides applied.
        output: The training run's folder; in the end it holds metrics.json and curve.png.
    """

    def __init__(self, settings: TrainSettings, recipe: Recipe, output: OutputDirectory) -> None:
        self._target, self._experiment, self._output = settings.mlflow, settings.mlflow_experiment, output
        self._parameters = {
            "recipe": recipe.name,
            **recipe.settings,
            **{"seed": settings.seed, "num_workers": settings.num_workers, "use_gpu": settings.use_gpu},
            "data": settings.data or settings.at_root(recipe.usual_data),
        }
        self._client: Any = None
        self._run: Run | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._status: str | None = None  # that the run ends with
        self._has_failed = False
        self._epochs = 0  # that MLflow has
        self._retry_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is None:
            return
        self._status = "FINISHED" if kind is None else "KILLED" if kind is KeyboardInterrupt else "FAILED"
        self._wake.set()
        self._thread.join(_END_S)
        if self._thread.is_alive() and not self._has_failed:
            self._has_failed = True
            _log.warning(f"MLflow isn't done after {_END_S:.0f} s: what is missing is logged by --resume")

    def start(self) -> None:
        """Make the MLflow run, or continue the one of mlflow.json, once it is sure that there is something to train."""
        if self._target is not None:
            self._wake.set()
            # A daemon: a call that hangs must not keep the process.
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def log_epochs(self, done: int) -> None:
        """Have the epochs logged that MLflow doesn't have, if more are done; returns at once."""
        if done > self._epochs and time.monotonic() >= self._retry_at:
            self._wake.set()

    def _work(self) -> None:
        while self._wake.wait():
            self._wake.clear()
            # Read after the event is cleared: the end writes it before it sets the event, so it isn't missed.
            if (status := self._status) is not None:
                self._attempt(lambda: self._end(status))
                return
            self._attempt(self._log_epochs)

    def _attempt(self, action: Callable[[], None]) -> None:
        # Whatever MLflow, its server, a database or a store of artifacts may raise: training is what counts.
        try:
            action()
        except Exception as error:
            if not self._has_failed:
                _log.warning(
                    f"MLflow can't be reached ({brief(error)}): training continues; what is missing is logged at the "
                    "end, or by --resume after it"
                )
            self._retry_at = time.monotonic() + _RETRY_S
            self._has_failed, self._run = True, None  # It may have arrived all the same: ask before the next try.

    def _open(self) -> str:
        """Find the run, or make it, and which epochs it has; returns its id."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        if self._run is not None:
            return str(self._run.info.run_id)
        assert self._target is not None
        folder = None if _scheme(self._target) else Path(self._target).absolute()
        # A folder's database is made if it isn't there, which takes seconds.
        client = self._client = MlflowClient(
            tracking_uri=f"sqlite:///{folder / 'mlflow.db'}" if folder else self._target
        )
        run = self._find()
        if run is None:
            experiment = client.get_experiment_by_name(self._experiment)
            # Of a server or database the artifacts go where it says; beside a folder's database they are in the folder.
            experiment_id = (
                experiment.experiment_id
                if experiment
                else client.create_experiment(
                    self._experiment, artifact_location=(folder / "artifacts").as_uri() if folder else None
                )
            )
            tags = {"mlflow.source.name": "sentiment-at-scale", "output": self._output.absolute, **_versions()}
            run = client.create_run(experiment_id, tags=tags, run_name=name_of(self._output.absolute))
            self._output.write_json(STATE, {"run_id": run.info.run_id})
        if not run.data.params:
            parameters = [Param(name, str(value)) for name, value in self._parameters.items()]
            client.log_batch(run.info.run_id, params=parameters)
        if run.info.status in ("FAILED", "KILLED"):
            client.update_run(run.info.run_id, status="RUNNING")
        self._epochs = int(run.data.metrics.get("epoch", 0))
        self._run = run
        return str(run.info.run_id)

    def _find(self) -> Run | None:
        """The run that is continued, unless it is somewhere else or was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(json.loads(self._output.read(STATE))["run_id"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _log_epochs(self) -> None:
        run_id = self._open()
        lines = self._output.read("metrics.jsonl").decode().splitlines() if self._output.has("metrics.jsonl") else []
        for figures in map(json.loads, lines[self._epochs :]):
            # The epoch's number goes last: it says how many MLflow has.
            figures["epoch"] = epoch = figures.pop("epoch")
            self._log(run_id, figures, step=epoch)
            self._epochs += 1

    def _end(self, status: str) -> None:
        self._log_epochs()
        run_id, client = self._open(), self._client
        run = client.get_run(run_id)
        if run.info.status == "FINISHED":
            return
        if status == "FINISHED":
            result = json.loads(self._output.read("metrics.json"))
            with tempfile.TemporaryDirectory(prefix="mlflow-") as scratch:
                for name in _ARTIFACTS:
                    Path(scratch, name).write_bytes(self._output.read(name))
                client.log_artifacts(run_id, scratch)
            if _FINAL["best_epoch"] not in run.data.metrics:
                self._log(run_id, {name: result.get(key) for key, name in _FINAL.items()}, step=result["epochs"])
            for name in _TAGS:
                client.set_tag(run_id, name, str(result.get(name)))
        client.set_terminated(run_id, status)

    def _log(self, run_id: str, figures: dict[str, Any], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, step) for name, value in figures.items() if value is not None]
        self._client.log_batch(run_id, metrics=metrics)


def _scheme(target: str) -> str | None:
    """The scheme of a tracking URI, without a driver's name; None for a folder."""
    if "://" not in target:
        return "databricks" if target == "databricks" else None
    return urlsplit(target).scheme.partition("+")[0]


def _versions() -> dict[str, str]:
    """Tags for the code that ran: versions, and the commit if it is a checkout."""
    tags = {name: version(name) for name in ("ray", "torch", "tokenizers")} | {"python": platform.python_version()}
    root = Path(__file__).parents[2]
    try:
        found = subprocess.run(  # noqa: S603
            ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split("\n")
    except OSError:  # There is no git.
        return tags
    # An installed copy may lie inside somebody else's repository.
    if Path(found[0]) == root:
        tags["mlflow.source.git.commit"] = found[1]
    return tags
