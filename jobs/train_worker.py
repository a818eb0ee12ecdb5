"""What runs in every Ray Train worker: load, train, measure; rank 0 saves checkpoints and writes the bundle."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from jobs.report import model_card
from sentiment.batching import LengthBucketedBatches
from sentiment.bundle import BundleConfig, write_bundle
from sentiment.checkpoint import Checkpoint
from sentiment.config import TrainSettings
from sentiment.corpora.folder import Folder
from sentiment.corpora.prepared import PreparedData
from sentiment.devices import resolve_precision
from sentiment.errors import SentimentError
from sentiment.metrics import Figures
from sentiment.models import build_model, count_parameters
from sentiment.recipes import Recipe
from sentiment.schema import TEST, TRAIN, VALIDATION
from sentiment.tokenizers import WordTokenizer
from sentiment.training import Hooks, Optimisation, evaluate, fit

# Rows of a worker's batch when only measuring: no gradients to keep, so more than a training batch fits.
_EVALUATION_BATCH = 256
_SHOW_EVERY_S = 0.5


@dataclass(frozen=True)
class Work:
    """What a worker needs to know."""

    settings: TrainSettings
    recipe: Recipe
    board: Any


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
    rank = ray.train.get_context().get_world_rank()
    torch.set_num_threads(settings.cpus_per_worker)
    device = ray.train.torch.get_device() if settings.use_gpu else torch.device("cpu")
    precision = resolve_precision(settings.precision, device)
    prepared = PreparedData(settings.data)
    tokenizer = prepared.tokenizer()
    shape = recipe.model(tokenizer.vocabulary_size, tokenizer.pad_id, tokenizer.unk_id)
    torch.manual_seed(settings.seed)
    model = build_model(shape)
    final = fit(
        model,
        _batches(work, prepared, tokenizer, TRAIN),
        _batches(work, prepared, tokenizer, VALIDATION),
        _optimisation(work),
        device=device,
        precision=precision,
        hooks=_hooks(work, output, rank),
        resume=_last_checkpoint(),
    )
    assert final.best_weights is not None
    model.load_state_dict(final.best_weights)
    test = evaluate(model, _batches(work, prepared, tokenizer, TEST), device=device, precision=precision)
    if rank != 0:
        return None
    metrics = {
        "recipe": recipe.name,
        "parameters": count_parameters(model),
        "vocabulary": tokenizer.vocabulary_size,
        **_figures(final, test),
        "workers": ray.train.get_context().get_world_size(),
        "device": device.type,
        "precision": precision,
        "history": final.progress.history,
    }
    bundle = write_bundle(
        output / "bundle",
        config=BundleConfig(recipe=recipe.name, model=shape, max_length=recipe.max_length),
        weights=final.best_weights,
        tokenizer=tokenizer,
        metrics=metrics,
        card=model_card(recipe, metrics, prepared.manifest),
    )
    return {"bundle": str(bundle.path), "model_id": bundle.model_id, **metrics}


def _batches(work: Work, prepared: PreparedData, tokenizer: WordTokenizer, split: str) -> LengthBucketedBatches:
    """This worker's share of a split: shuffled for training, by length for measuring."""
    context = ray.train.get_context()
    is_train = split == TRAIN
    return LengthBucketedBatches(
        prepared.examples(split),
        batch_size=work.recipe.batch_size if is_train else _EVALUATION_BATCH * context.get_world_size(),
        pad_id=tokenizer.pad_id,
        max_length=work.recipe.max_length,
        shuffle=is_train,
        seed=work.settings.seed,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
    )


def _optimisation(work: Work) -> Optimisation:
    recipe, settings = work.recipe, work.settings
    return Optimisation(
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        schedule=recipe.schedule,
        warmup_share=recipe.warmup_share,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        seed=settings.seed,
        checkpoint_steps=settings.checkpoint_steps,
    )


def _figures(final: Checkpoint, test: Figures) -> dict[str, Any]:
    """Figures of the best epoch and of the test rows; None where there are none."""
    history, best_epoch = final.progress.history, final.progress.best_epoch
    assert best_epoch is not None
    best = history[best_epoch]
    train_s = sum(epoch["train_s"] for epoch in history)
    return {
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "validation_loss": best["validation_loss"],
        "validation_accuracy": best["validation_accuracy"],
        "test_rows": test.rows,
        "test_loss": test.loss if test.rows else None,
        "test_accuracy": test.accuracy if test.rows else None,
        "test_macro_f1": test.macro_f1 if test.rows else None,
        "test_confusion": test.confusion,
        "rows_per_s": round(sum(epoch["rows_per_s"] * epoch["train_s"] for epoch in history) / train_s),
    }


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
            Folder(str(output)).write_text("metrics.jsonl", lines)
            work.board.say.remote(_epoch_line(figures, epochs))
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            checkpoint.save(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal shown_at
        if rank == 0 and time.monotonic() - shown_at > _SHOW_EVERY_S:
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
