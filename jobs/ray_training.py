"""Ray Train around `sentiment.training`: what all training jobs share.

    driver                            each worker
    checks resources, starts Train →  loads the prepared rows, plans the same batches, takes its own
    shows progress                 ←  trains; rank 0 saves a checkpoint after each epoch
    writes metrics and the curve   ←  measures the best weights on the test rows; rank 0 writes the bundle

Output folder: `bundle/`, `checkpoints/` (the best by validation loss and the last), `metrics.jsonl` (a line an epoch),
`metrics.json`, `curve.png`, `run.json` (what the run was made of; `--resume` holds to it); `mlflow.json` with --mlflow.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.lock import Lock
from jobs.metrics import TrainingMeter
from jobs.progress import Progress
from jobs.report import plot_curve
from jobs.tracking import check_tracking, tracked
from jobs.train_storage import train_storage
from jobs.train_worker import CHECKPOINTS, Work, train_worker
from jobs.training_run import Run
from sentiment.corpora.folder import Folder
from sentiment.corpora.prepared import PreparedData
from sentiment.errors import ConfigError, DataError
from sentiment.recipe import Recipe
from sentiment.schema import TRAIN, VALIDATION
from sentiment.session import ray_session, require, wait_for_room
from sentiment.settings import RaySettings, TrainSettings

IDENTITY, METRICS, CURVE = "run.json", "metrics.json", "curve.png"

# Where the number of workers may change: how often it is looked whether there is room for more. Each change goes back
# to the last checkpoint.
_RESIZE_S = 60.0


@dataclass(frozen=True)
class Plan:
    """A run, and what has to be done before it starts.

    Attributes:
        run: As far as it is known at once.
        complete: Gives the whole run; may take long, and may refuse it.
        prepare: Does what needs the output folder.
    """

    run: Run
    complete: Callable[[], Run]
    prepare: Callable[[], None] = lambda: None


def train(
    settings: TrainSettings,
    ray_settings: RaySettings,
    recipe: Recipe,
    plan_for: Callable[[str], Plan],
    inputs: Sequence[str] = (),
) -> dict[str, Any]:
    """Train on Ray and report.

    Args:
        settings: Section `train` or `train_bert`.
        ray_settings: Section `ray`.
        recipe: With its overrides applied.
        plan_for: Plans the run on prepared data, whose folder it gets.
        inputs: What is read beside that: none of it may be in the output folder.

    Returns:
        The job's JSON: bundle, recipe, parameters, epochs, accuracies, rows_per_s and where things are.

    Raises:
        SentimentError: Data, settings or resources are not as they must be.
    """
    check_tracking(settings)
    output, started = Folder(settings.output), time.monotonic()
    prepared = PreparedData(settings.data or settings.at_root(recipe.usual_data))
    prepared.require(TRAIN, VALIDATION)
    # The quick refusals first. Ray Train gives each worker a folder of its own to stand in, so relative paths mean
    # nothing there.
    _check_output(output, settings, [prepared.uri, *inputs])
    plan = plan_for(prepared.uri)
    if _is_resumed(output, settings):
        _check_identity(output, plan.run)
        if output.has(METRICS):
            print(f"{output.uri} is finished: nothing left to do", file=sys.stderr)
            with tracked(settings, recipe, output):
                return _report(json.loads(output.read(METRICS)), output)
    with ExitStack() as tracking:
        with ray_session(ray_settings):
            least, gpus = settings.workers[0], 1 if settings.use_gpu else 0
            wait_for_room(ray_settings, least, "training workers", cpus=settings.cpus_per_worker, gpus=gpus)
            require(least, "training workers", cpus=settings.cpus_per_worker, gpus=gpus)
            run = plan.complete()
            with Lock(output) as lock:
                _claim_output(output, settings, run.identity)
                lock.renew()  # It was removed with all else.
                # It ends after the last record is written.
                tracking.enter_context(tracked(settings, recipe, output))
                plan.prepare()
                meter = TrainingMeter(output.absolute, recipe.name)
                with Progress("train", "steps", meter=meter.tell) as progress:
                    work = Work(run, settings.use_gpu, settings.cpus_per_worker, progress.board)
                    result = _fit(work, settings, output)
        result["duration_s"] = round(time.monotonic() - started, 1)
        output.write_json(METRICS, result)
        return _report(result, output)


def _report(result: dict[str, Any], output: Folder) -> dict[str, Any]:
    """Draw the curve, say what came out, and give the job's JSON."""
    history = result.pop("history")
    curve = output.address(CURVE)
    output.write_bytes(CURVE, plot_curve(history, title=result["recipe"]))
    test = "–" if result["test_accuracy"] is None else f"{result['test_accuracy']:.2%}"
    print(
        f"best epoch {result['best_epoch']}: validation accuracy {result['validation_accuracy']:.2%}, test accuracy "
        f"{test}\nbundle {result['bundle']}\ncurve  {curve}",
        file=sys.stderr,
    )
    return {**result, "curve": curve, "output": output.absolute}


def _fit(work: Work, settings: TrainSettings, output: Folder) -> dict[str, Any]:
    least, most = settings.workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"work": work, "output": output},
        scaling_config=ScalingConfig(
            num_workers=least if least == most else (least, most),
            elastic_resize_monitor_interval_s=_RESIZE_S,
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker, **({"GPU": 1} if settings.use_gpu else {})},
        ),
        torch_config=TorchConfig(timeout_s=settings.collective_timeout_s),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=output.base,
            storage_filesystem=train_storage(output),
            # The latest is always kept too, so one is enough for the best.
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="validation_loss", checkpoint_score_order="min"
            ),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )
    with _interruptible():
        result = trainer.fit().return_value
    assert isinstance(result, dict)
    if error := result.get("error"):
        raise error
    return result


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays what it is elsewhere: Ray Train ends its workers, and then would end this process with success."""
    if threading.current_thread() is not threading.main_thread():
        yield  # There Ray leaves it alone too.
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt from ended
    finally:
        signal.signal(signal.SIGINT, before)


def _check_output(output: Folder, settings: TrainSettings, inputs: Sequence[str]) -> None:
    """Refuse an output folder that holds another run, or an input. Changes nothing."""
    if _is_resumed(output, settings):
        return
    if output.has(IDENTITY) and not settings.overwrite:
        raise ConfigError(
            f"{output.absolute} holds a run: go on with --resume, replace it with --overwrite, or name another"
        )
    output.check(overwrite=settings.overwrite, inputs=inputs)


def _check_identity(output: Folder, run: Run) -> None:
    """Refuse to go on with another run. Workers may differ: the same global batch gives the same losses."""
    try:
        before = json.loads(output.read(IDENTITY))
    except (OSError, ValueError) as error:
        raise DataError(f"{output.address(IDENTITY)} can't be read: start anew with --overwrite") from error
    identity = run.identity
    differing = [key for key in identity if before.get(key) != identity[key]]
    if differing:
        raise ConfigError(
            f"--resume: {output.absolute} was made with another {' and '.join(differing)}; use those again, or start "
            "anew with --overwrite instead of --resume"
        )


def _claim_output(output: Folder, settings: TrainSettings, identity: dict[str, Any]) -> None:
    """Make the folder ours, once nothing else can refuse the run: empty it unless the run goes on there."""
    if _is_resumed(output, settings):
        return
    output.claim(overwrite=settings.overwrite)
    output.write_json(IDENTITY, identity)


def _is_resumed(output: Folder, settings: TrainSettings) -> bool:
    return settings.resume and output.has(IDENTITY)
