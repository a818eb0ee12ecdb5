"""Ray Train around `sentiment.training`: what all training jobs share.

    driver                            each worker
    checks resources, starts Train →  loads the prepared rows, plans the same batches, takes its own
    shows progress                 ←  trains; rank 0 saves a checkpoint after each epoch
    writes metrics and the curve   ←  measures the best weights on the test rows; rank 0 writes the bundle

Output folder: `bundle/`, `checkpoints/` (the best by validation loss and the last), `metrics.jsonl` (a line an epoch),
`metrics.json`, `curve.png`, `run.json` (what the run was made of; `--resume` holds to it).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.pretrained import load_pretrained
from jobs.progress import Progress
from jobs.report import plot_curve
from jobs.session import ray_session, require
from jobs.train_worker import Work, train_worker
from jobs.training_run import Run
from sentiment.config import RaySettings, TrainSettings
from sentiment.corpora.folder import Folder
from sentiment.corpora.prepared import PreparedData
from sentiment.corpora.streams import is_uri
from sentiment.errors import ConfigError, DataError
from sentiment.recipe import WordRecipe
from sentiment.schema import TRAIN, VALIDATION

CHECKPOINTS, IDENTITY = "checkpoints", "run.json"


def train(settings: TrainSettings, ray_settings: RaySettings, recipe: WordRecipe) -> dict[str, Any]:
    """Train a recipe on Ray and report.

    Args:
        settings: Section `train`.
        ray_settings: Section `ray`.
        recipe: With its overrides applied.

    Returns:
        The job's JSON: bundle, recipe, parameters, epochs, accuracies, rows_per_s and where things are.

    Raises:
        SentimentError: Data, settings or resources are not as they must be.
    """
    prepared = PreparedData(settings.data or recipe.usual_data)
    prepared.require(TRAIN, VALIDATION)
    if is_uri(settings.output):
        raise ConfigError(f"--output {settings.output}: training writes to a local or shared folder, not to a URI")
    output = Path(settings.output).absolute()
    started = time.monotonic()
    # Ray Train gives each worker a folder of its own to stand in, so relative paths mean nothing there.
    run = Run(recipe, prepared.uri, settings.seed, settings.precision, settings.checkpoint_steps)
    _check_output(output, settings, run)
    with ray_session(ray_settings):
        require(
            settings.num_workers,
            "training workers",
            cpus=settings.cpus_per_worker,
            gpus=1 if settings.use_gpu else 0,
        )
        # The last thing that can refuse the run, and the longest: vectors may be fetched.
        if pretrained := load_pretrained(recipe, prepared, settings.seed):
            run = dataclasses.replace(run, pretrained=pretrained)
            print(pretrained.line, file=sys.stderr, flush=True)
        _claim_output(output, settings, run.identity)
        with Progress("train", "steps") as progress:
            work = Work(run, settings.use_gpu, settings.cpus_per_worker, progress.board)
            result = _fit(work, settings, output)
    result["duration_s"] = round(time.monotonic() - started, 1)
    Folder(str(output)).write_json("metrics.json", result)
    history = result.pop("history")
    plot_curve(history, output / "curve.png", title=recipe.name)
    test = "–" if result["test_accuracy"] is None else f"{result['test_accuracy']:.2%}"
    print(
        f"best epoch {result['best_epoch']}: validation accuracy {result['validation_accuracy']:.2%}, test accuracy "
        f"{test}\nbundle {result['bundle']}\ncurve  {output / 'curve.png'}",
        file=sys.stderr,
    )
    return {**result, "curve": str(output / "curve.png"), "output": str(output)}


def _fit(work: Work, settings: TrainSettings, output: Path) -> dict[str, Any]:
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"work": work, "output": str(output)},
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker, **({"GPU": 1} if settings.use_gpu else {})},
        ),
        torch_config=TorchConfig(timeout_s=settings.collective_timeout_s),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=str(output),
            # The latest is always kept too, so one is enough for the best.
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="validation_loss", checkpoint_score_order="min"
            ),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )
    result = trainer.fit().return_value
    assert isinstance(result, dict)
    if error := result.get("error"):
        raise error
    return result


def _check_output(output: Path, settings: TrainSettings, run: Run) -> None:
    """Refuse an output folder that holds another run. Changes nothing.

    Args:
        output: The folder.
        settings: Whether to resume or overwrite.
        run: What decides the result. Workers may differ: the same global batch gives the same losses.
    """
    if _is_resumed(output, settings):
        try:
            before = json.loads((output / IDENTITY).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{output / IDENTITY} can't be read: start anew with --overwrite") from error
        identity = run.identity
        differing = [key for key in identity if before.get(key) != identity[key]]
        if differing:
            raise ConfigError(
                f"--resume: {output} was made with another {' and '.join(differing)}; use those again, or start "
                "anew with --overwrite instead of --resume"
            )
    elif (output / IDENTITY).exists() and not settings.overwrite:
        raise ConfigError(f"{output} holds a run: go on with --resume, replace it with --overwrite, or name another")
    else:
        Folder(str(output)).check(overwrite=settings.overwrite, inputs=[run.data])


def _claim_output(output: Path, settings: TrainSettings, identity: dict[str, Any]) -> None:
    """Make the folder ours, once nothing else can refuse the run: empty it unless the run goes on there."""
    if _is_resumed(output, settings):
        return
    folder = Folder(str(output))
    folder.claim(overwrite=settings.overwrite)
    folder.write_json(IDENTITY, identity)


def _is_resumed(output: Path, settings: TrainSettings) -> bool:
    return settings.resume and (output / IDENTITY).exists()
