"""MLflow beside a training run: parameters, the figures of each epoch, and in the end those on test rows and the curve.

It is done beside the training, and nothing that goes wrong there ends it. Needs MLflow: the extra `tracking`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from jobs.background import Background
from jobs.mlflow_run import Tracker, load_mlflow, scheme_of
from sentiment.corpora.folder import Folder
from sentiment.errors import ConfigError, brief
from sentiment.recipe import Recipe
from sentiment.settings import TrainSettings

_LOOK_S = 2.0
_SERVERS, _DATABASES = ("http", "https", "databricks"), ("sqlite", "postgresql", "mysql", "mssql")


def check_tracking(settings: TrainSettings) -> None:
    """Refuse what can't be tracked, and load what tracks it, before anything is started.

    Args:
        settings: Section `train` or `train_bert`.

    Raises:
        ConfigError: MLflow isn't installed, the URI is of no kind that it knows, or the folder can't be made.
    """
    if settings.mlflow is None:
        return
    scheme = scheme_of(settings.mlflow)
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
    load_mlflow()


@contextmanager
def tracked(settings: TrainSettings, recipe: Recipe, output: Folder) -> Iterator[None]:
    """Log a run to MLflow for a `with` block that trains it; without --mlflow nothing.

    Args:
        settings: Section `train` or `train_bert`; checked.
        recipe: With its overrides applied.
        output: The run's folder; it is the run's by now, and in the end holds its records.
    """
    if settings.mlflow is None:
        yield
        return
    parameters = {
        "recipe": recipe.name,
        **recipe.model_dump(mode="json", exclude={*Recipe.WORDS}),
        **{"seed": settings.seed, "num_workers": settings.num_workers, "use_gpu": settings.use_gpu},
        "data": settings.data or settings.at_root(recipe.usual_data),
    }
    tracker = Tracker(settings.mlflow, settings.mlflow_experiment, output, parameters)
    status = "FAILED"
    try:
        with Background("mlflow", _LOOK_S, tracker.catch_up):
            yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.close(status)
