"""Ray Train around `sentiment.training`: what all training jobs share.

    driver                            each worker
    checks resources, starts Train →  loads the prepared rows, plans the same batches, takes its own
    shows progress                 ←  trains; rank 0 saves a checkpoint after each epoch
    writes metrics and the curve   ←  measures the best weights on the test rows; rank 0 writes the bundle

Output folder: `bundle/`, `checkpoints/` (the best by validation loss and the last), `metrics.jsonl` (a line an epoch),
`metrics.json`, `curve.png`, `run.json` (what the run was made of; `--resume` holds to it).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.progress import Progress
from jobs.report import model_card, plot_curve
from jobs.session import ray_session, require
from sentiment.batching import LengthBucketedBatches
from sentiment.bundle import BundleConfig, write_bundle
from sentiment.checkpoint import Checkpoint
from sentiment.config import RaySettings, TrainSettings
from sentiment.corpora.prepared import PreparedData
from sentiment.devices import resolve_precision
from sentiment.errors import ConfigError, DataError, SentimentError
from sentiment.models import build_model, count_parameters
from sentiment.recipes import Recipe
from sentiment.schema import TEST, TRAIN, VALIDATION
from sentiment.training import Hooks, Optimisation, evaluate, fit

CHECKPOINTS, IDENTITY = "checkpoints", "run.json"
# Rows of a batch when only measuring: no gradients to keep, so twice a training batch and more fits.
_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Work:
    """What a worker needs to know."""

    settings: TrainSettings
    recipe: Recipe
    board: Any


def train(settings: TrainSettings, ray_settings: RaySettings, recipe: Recipe) -> dict[str, Any]:
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
    prepared = PreparedData(settings.data)
    for split in (TRAIN, VALIDATION):
        if not prepared.manifest["splits"][split]["rows"]:
            raise DataError(f"{settings.data} has no {split} rows: prepare more rows or another --validation-share")
    # Ray Train gives each worker a folder of its own to stand in, so relative paths mean nothing there.
    settings = settings.model_copy(update={"data": prepared.uri})
    output = Path(settings.output).absolute()
    run = {"data": prepared.digest, "recipe": recipe.model_dump(), "seed": settings.seed}
    _check_output(output, settings, run)
    started = time.monotonic()
    with ray_session(ray_settings):
        require(
            f"{settings.num_workers} training workers",
            cpus=settings.num_workers * settings.cpus_per_worker,
            gpus=settings.num_workers if settings.use_gpu else 0,
        )
        _claim_output(output, settings, run)
        with Progress("train", "steps") as progress:
            result = _fit(Work(settings, recipe, progress.board), output)
    result["duration_s"] = round(time.monotonic() - started, 1)
    (output / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    history = result.pop("history")
    plot_curve(history, output / "curve.png", title=recipe.name)
    return {**result, "curve": str(output / "curve.png"), "output": str(output)}


def _fit(work: Work, output: Path) -> dict[str, Any]:
    settings = work.settings
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


def _check_output(output: Path, settings: TrainSettings, run: dict[str, Any]) -> None:
    """Refuse an output folder that holds another run. Changes nothing.

    Args:
        output: The folder.
        settings: Whether to resume or overwrite.
        run: What decides the result. Workers may differ: the same global batch gives the same losses.
    """
    if _is_resumed(output, settings):
        before = json.loads((output / IDENTITY).read_text())
        differing = [key for key in run if before.get(key) != run[key]]
        if differing:
            raise ConfigError(
                f"--resume: {output} was made with another {' and '.join(differing)}; use those again, or start "
                "anew with --overwrite"
            )
    elif output.exists() and any(output.iterdir()) and not settings.overwrite:
        raise ConfigError(f"{output} isn't empty: go on with --resume, replace it with --overwrite")


def _claim_output(output: Path, settings: TrainSettings, run: dict[str, Any]) -> None:
    """Make the folder ours, once nothing else can refuse the run: empty it unless the run goes on there."""
    if _is_resumed(output, settings):
        return
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    replace_text(output / IDENTITY, json.dumps(run, indent=2) + "\n")


def _is_resumed(output: Path, settings: TrainSettings) -> bool:
    return settings.resume and (output / IDENTITY).exists()


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Run by every Ray Train worker; rank 0 returns the result.

    A mistake of the user's is returned too, as `error`: raised, it would count as a lost worker and be tried again.
    """
    try:
        return _train_worker(config["work"], Path(config["output"]))
    except SentimentError as error:
        return {"error": error}


def _train_worker(work: Work, output: Path) -> dict[str, Any] | None:
    settings, recipe = work.settings, work.recipe
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(settings.cpus_per_worker)
    device = ray.train.torch.get_device() if settings.use_gpu else torch.device("cpu")
    precision = resolve_precision(settings.precision, device)

    prepared = PreparedData(settings.data)
    tokenizer = prepared.tokenizer()

    def batches(split: str, batch_size: int, shuffle: bool = False) -> LengthBucketedBatches:
        return LengthBucketedBatches(
            prepared.examples(split),
            batch_size=batch_size,
            pad_id=tokenizer.pad_id,
            max_length=recipe.max_length,
            shuffle=shuffle,
            seed=settings.seed,
            rank=rank,
            world_size=world_size,
        )

    model_config = recipe.model(tokenizer.vocabulary_size, tokenizer.pad_id, tokenizer.unk_id)
    torch.manual_seed(settings.seed)
    model = build_model(model_config)
    final = fit(
        model,
        batches(TRAIN, recipe.batch_size, shuffle=True),
        batches(VALIDATION, _EVALUATION_BATCH * world_size),
        Optimisation(
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            schedule=recipe.schedule,
            warmup_share=recipe.warmup_share,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            seed=settings.seed,
            checkpoint_steps=settings.checkpoint_steps,
        ),
        device=device,
        precision=precision,
        hooks=_hooks(work, output, rank),
        resume=_last_checkpoint(),
    )
    assert final.best_weights is not None and final.progress.best_epoch is not None
    model.load_state_dict(final.best_weights)
    test = evaluate(model, batches(TEST, _EVALUATION_BATCH * world_size), device=device, precision=precision)
    if rank != 0:
        return None
    history, best = final.progress.history, final.progress.history[final.progress.best_epoch]
    metrics = {
        "recipe": recipe.name,
        "parameters": count_parameters(model),
        "vocabulary": tokenizer.vocabulary_size,
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "validation_loss": best["validation_loss"],
        "validation_accuracy": best["validation_accuracy"],
        "test_rows": test.rows,
        "test_loss": test.loss if test.rows else None,
        "test_accuracy": test.accuracy if test.rows else None,
        "test_macro_f1": test.macro_f1 if test.rows else None,
        "test_confusion": test.confusion,
        "rows_per_s": round(sum(e["rows_per_s"] * e["train_s"] for e in history) / sum(e["train_s"] for e in history)),
        "workers": world_size,
        "device": device.type,
        "precision": precision,
        "history": history,
    }
    bundle = write_bundle(
        output / "bundle",
        config=BundleConfig(recipe=recipe.name, model=model_config, max_length=recipe.max_length),
        weights=final.best_weights,
        tokenizer=tokenizer,
        metrics=metrics,
        card=model_card(recipe, metrics, prepared.manifest),
    )
    return {"bundle": str(bundle.path), "model_id": bundle.model_id, **metrics}


def _last_checkpoint() -> Checkpoint | None:
    """What Ray Train has kept of this run, if it was stopped or lost a worker."""
    kept = ray.train.get_checkpoint()
    if kept is None:
        return None
    with kept.as_directory() as folder:
        return Checkpoint.load(Path(folder))


def _hooks(work: Work, output: Path, rank: int) -> Hooks:
    """Checkpoints go to Ray Train, words and steps to the progress board."""
    epochs = work.recipe.epochs
    shown_at = 0.0

    def on_checkpoint(checkpoint: Checkpoint, figures: dict[str, Any] | None) -> None:
        # A checkpoint inside an epoch has no validation loss yet: it must not pass for the best.
        metrics = {"validation_loss": figures["validation_loss"] if figures else 1e30}
        if rank != 0:
            ray.train.report(metrics)
            return
        if figures:
            lines = "".join(json.dumps(line) + "\n" for line in checkpoint.progress.history)
            replace_text(output / "metrics.jsonl", lines)
            work.board.say.remote(_epoch_line(figures, epochs))
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            checkpoint.save(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal shown_at
        if rank == 0 and time.monotonic() - shown_at > 0.5:
            shown_at = time.monotonic()
            work.board.show.remote(f"epoch {epoch + 1}/{epochs}", step, steps)

    return Hooks(on_checkpoint, on_step)


def _epoch_line(figures: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {figures['epoch']}/{epochs}  {figures['train_s']:6.1f} s  "
        f"train loss {figures['train_loss']:.4f}  accuracy {figures['train_accuracy']:.2%}  |  "
        f"validation loss {figures['validation_loss']:.4f}  accuracy {figures['validation_accuracy']:.2%}  |  "
        f"{figures['rows_per_s']:,.0f} rows/s"
    )


def replace_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text)
    beside.replace(path)
