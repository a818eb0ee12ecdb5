"""An MLflow run that is kept up with the records of a training run: metrics.jsonl and metrics.json in its folder.

MLflow is asked what it has of them. So a run that goes on is one run there too, nothing is logged twice, and what a
server missed is logged when it is back, at the latest by `--resume` of the finished run.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jobs.metrics import name_of
from sentiment.corpora.folder import Folder
from sentiment.errors import brief

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATE = "mlflow.json"
# An epoch's number, logged with its figures: the last one says how many MLflow has.
_EPOCH = "epoch"
# Of metrics.json; logged once, under these names.
_FINAL = {
    "best_epoch": "best_epoch",
    "validation_loss": "best_validation_loss",
    "validation_accuracy": "best_validation_accuracy",
    **{name: name for name in ("test_loss", "test_accuracy", "test_macro_f1", "duration_s")},
}
_FACTS = ("model_id", "bundle", "device", "precision", "parameters", "trainable_parameters")
_RECORDS = "metrics.jsonl"
_ARTIFACTS = ("metrics.json", "curve.png")
_ENVIRONMENT = {
    # Without it MLflow reports its use to its makers.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
}
# By default a server that doesn't answer is waited for for many minutes, and at its end a run waits with it.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


class Tracker:
    """Brings an MLflow run up to the records of a training run; whatever fails there is said once.

    Args:
        target: MLflow's URI, or a folder.
        experiment: Its experiment; made if it isn't there.
        output: The training run's folder.
        parameters: Logged when the run begins.
    """

    def __init__(self, target: str, experiment: str, output: Folder, parameters: dict[str, Any]) -> None:
        self._target, self._experiment, self._parameters = target, experiment, parameters
        self._output = output
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._logged = 0
        self._has_warned = False

    def catch_up(self) -> None:
        """Log the epochs that MLflow doesn't have."""
        self._attempt(None)

    def close(self, status: str) -> None:
        """Log what is left, and how the run ended.

        Args:
            status: MLflow's word for that; a run that has FINISHED has all its records.
        """
        self._attempt(status)

    def _attempt(self, status: str | None) -> None:
        # Whatever MLflow, its server, a database or a store of artifacts may raise: training is what counts.
        try:
            run_id = self._run_id or self._begin()
            self._log_epochs(run_id)
            if status is not None:
                self._end(run_id, status)
        except Exception as error:
            self._run_id = None  # It may have arrived all the same: ask what is there before the next try.
            if not self._has_warned:
                self._has_warned = True
                print(
                    f"MLflow can't be reached ({brief(error)}): training goes on; what is missing is logged later, or "
                    "by --resume after the end",
                    file=sys.stderr,
                    flush=True,
                )

    def _begin(self) -> str:
        """Find the run, or make it, and what it has."""
        client = self._client = self._client or _connect(self._target)
        run = self._find(client)
        if run is None:
            tags = {"mlflow.source.name": "sentiment-at-scale", "output": self._output.absolute, **_versions()}
            run = client.create_run(self._experiment_id(client), tags=tags, run_name=name_of(self._output.absolute))
            self._output.write_json(STATE, {"run_id": run.info.run_id})
        if not run.data.params:
            client.log_batch(run.info.run_id, params=_params(self._parameters))
        if run.info.status in ("FAILED", "KILLED"):
            client.update_run(run.info.run_id, status="RUNNING")
        self._logged = int(run.data.metrics.get(_EPOCH, 0))
        self._run_id = run.info.run_id
        return self._run_id

    def _find(self, client: MlflowClient) -> Run | None:
        """The run that this one goes on with, unless it is somewhere else or was deleted."""
        from mlflow.exceptions import MlflowException

        state = self._read_json(STATE)
        if state is None:
            return None
        try:
            run = client.get_run(state["run_id"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment_id(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is not None:
            return found.experiment_id
        # Of a server or database the artifacts go where it says; beside a folder's database they are in the folder.
        is_folder = scheme_of(self._target) is None
        artifacts = (Path(self._target).absolute() / "artifacts").as_uri() if is_folder else None
        return client.create_experiment(self._experiment, artifact_location=artifacts)

    def _log_epochs(self, run_id: str) -> None:
        assert self._client is not None
        lines = self._output.read(_RECORDS).decode().splitlines() if self._output.has(_RECORDS) else []
        for line in lines[self._logged :]:
            figures = json.loads(line)
            # The number goes last: once it is there, so are the others.
            figures[_EPOCH] = figures.pop(_EPOCH)
            self._client.log_batch(run_id, metrics=_metrics(figures, step=figures[_EPOCH]))
            self._logged += 1

    def _end(self, run_id: str, status: str) -> None:
        assert self._client is not None
        result = self._read_json("metrics.json") if status == "FINISHED" else None
        run = self._client.get_run(run_id)
        if run.info.status == "FINISHED":
            return
        if result is not None:
            with tempfile.TemporaryDirectory(prefix="mlflow-") as scratch:
                for name in _ARTIFACTS:
                    file = Path(scratch, name)
                    file.write_bytes(self._output.read(name))
                    self._client.log_artifact(run_id, str(file))
            if _FINAL["best_epoch"] not in run.data.metrics:
                final = {name: result.get(key) for key, name in _FINAL.items()}
                self._client.log_batch(run_id, metrics=_metrics(final, step=result["epochs"]))
            for name in _FACTS:
                self._client.set_tag(run_id, name, str(result.get(name)))
        self._client.set_terminated(run_id, status)

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads(self._output.read(name))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None


def scheme_of(target: str) -> str | None:
    """What kind of target it is: the scheme of a URI, without a driver's name; None for a folder."""
    if "://" not in target:
        return "databricks" if target == "databricks" else None
    return urlsplit(target).scheme.partition("+")[0]


def load_mlflow() -> None:
    """Import MLflow, silent and patient as a training run needs it; before there are threads that import too."""
    os.environ.update(_ENVIRONMENT)
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    # What goes wrong is raised too, and said once.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)


def _connect(target: str) -> MlflowClient:
    """MLflow's client; a folder's database is made if it isn't there, which takes seconds."""
    from mlflow import MlflowClient

    is_folder = scheme_of(target) is None
    return MlflowClient(tracking_uri=f"sqlite:///{Path(target).absolute() / 'mlflow.db'}" if is_folder else target)


def _metrics(figures: dict[str, Any], step: int) -> list[Any]:
    """Figures as MLflow takes them; those that don't exist are left out."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    return [Metric(name, value, now_ms, step) for name, value in figures.items() if value is not None]


def _params(parameters: dict[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, str(value)) for name, value in parameters.items()]


def _versions() -> dict[str, str]:
    """Tags for the code that ran: versions, and the commit if it is a checkout."""
    tags = {name: version(name) for name in ("ray", "torch", "tokenizers")} | {"python": platform.python_version()}
    root = Path(__file__).parents[1]
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
