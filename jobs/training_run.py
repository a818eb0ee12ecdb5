"""One training run, wherever it is done: set up, train, measure, write the bundle.

The workers of Ray Train (`jobs.train_worker`) and the tasks of `jobs/reproduce.py` both do exactly this. What is
trained on what is said by the two kinds of runs: `jobs.word_run` and `jobs.bert_run`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.report import model_card
from sentiment.bundle import Bundle, BundleConfig, write_bundle
from sentiment.checkpoint import Checkpoint
from sentiment.corpora.prepared import PreparedData
from sentiment.devices import resolve_precision
from sentiment.errors import DataError, SentimentError
from sentiment.metrics import Figures
from sentiment.models import count_parameters
from sentiment.optimisation import Optimisation
from sentiment.recipe import Recipe
from sentiment.schema import TEST, TRAIN, VALIDATION
from sentiment.settings import Precision
from sentiment.shapes import ModelConfig
from sentiment.tokenizers import Tokenizer
from sentiment.training import Batches, Hooks, evaluate, fit

# Rows of a worker's batch when only measuring: no gradients to keep, so more than a training batch fits.
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is, and what it computes on."""

    rank: int
    world_size: int
    device: torch.device


class Setup(ABC):
    """A run's model and data in one process.

    Attributes:
        model: What is trained and measured.
        whole: The model that predicts, of which `model` may be a part.
        shape: Of the whole model.
        tokenizer: What its ids mean.
        facts: Of this kind of run, for `metrics.json`.
    """

    model: nn.Module
    whole: nn.Module
    shape: ModelConfig
    tokenizer: Tokenizer
    facts: dict[str, Any]

    @abstractmethod
    def batches(self, split: str) -> Batches:
        """A process's share of a split: shuffled for training, by length for measuring."""

    def end_training(self) -> None:  # noqa: B027  (most have nothing to do)
        """Bring the model into the form that is measured and bundled."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """What goes into the bundle, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Run(ABC):
    """What decides a run's result.

    Attributes:
        recipe: Model and optimiser settings.
        data: Folder that `jobs/prepare.py` wrote.
        seed: Everything random follows from it.
        precision: Number format of forward passes.
        checkpoint_steps: As in `Optimisation`.
    """

    recipe: Recipe
    data: str
    seed: int
    precision: Precision
    checkpoint_steps: int = 0

    @abstractmethod
    def set_up(self, place: Place) -> Setup:
        """Load data and build the model.

        Raises:
            SentimentError: Data or settings are not as they must be.
        """

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common with its checkpoint."""

    def _identity(self, made_of: dict[str, Any]) -> dict[str, Any]:
        """Data, seed and settings; `made_of` in place of names that don't say what is behind them."""
        settings = self.recipe.model_dump(mode="json", exclude={*Recipe.WORDS} - {"name"})
        data = PreparedData(self.data).digest
        return {"data": data, "recipe": {**settings, **made_of}, "seed": self.seed, "precision": self.precision}

    @property
    def optimisation(self) -> Optimisation:
        """How the weights are fitted."""
        recipe = self.recipe
        return Optimisation(
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            schedule=recipe.schedule,
            warmup_share=recipe.warmup_share,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            seed=self.seed,
            checkpoint_steps=self.checkpoint_steps,
            optimizer=recipe.optimizer,
        )


@dataclass(frozen=True)
class Trained:
    """What a run ends with.

    Attributes:
        setup: With the weights of its best epoch.
        metrics: Figures, for `metrics.json`.
    """

    setup: Setup
    metrics: dict[str, Any]


def ready(run: Run, place: Place, resume: Callable[[], Checkpoint | None]) -> tuple[Setup, Checkpoint | None]:
    """Load data, model and checkpoint in all processes, or in none: one that fails alone leaves the others waiting.

    Args:
        run: What to train.
        place: This process.
        resume: Gives the checkpoint to go on from.

    Returns:
        What is trained on, and the checkpoint.

    Raises:
        SentimentError: Data or settings are not as they must be, here or in another process; all raise the same.
    """
    made, error, data = None, None, ""
    try:
        data = PreparedData(run.data).digest
        made = run.set_up(place), resume()
    except SentimentError as mistake:
        error = mistake
    if place.world_size > 1:
        found: list[tuple[SentimentError | None, str]] = [(None, "")] * place.world_size
        dist.all_gather_object(found, (error, data))
        error = next((other for other, _ in found if other is not None), None)
        if error is None and len({digest for _, digest in found}) > 1:
            error = DataError(f"{run.data} isn't the same on all nodes: give a folder that all of them share, or a URI")
    if error is not None:
        raise error
    assert made is not None
    return made


def train_run(run: Run, place: Place, *, hooks: Hooks, resume: Callable[[], Checkpoint | None]) -> Trained:
    """Train, choose the best epoch, measure it on the test rows.

    Args:
        run: What to train.
        place: This process; with several, their process group is set up.
        hooks: As in `fit`.
        resume: Gives the checkpoint to go on from.

    Raises:
        SentimentError: Data or settings are not as they must be, here or in another process.
    """
    setup, checkpoint = ready(run, place, resume)
    precision = resolve_precision(run.precision, place.device)
    final = fit(
        setup.model,
        setup.batches(TRAIN),
        setup.batches(VALIDATION),
        run.optimisation,
        device=place.device,
        precision=precision,
        hooks=hooks,
        resume=checkpoint,
    )
    assert final.best_weights is not None
    setup.model.load_state_dict(final.best_weights)
    setup.end_training()
    started = time.monotonic()
    test = evaluate(setup.model, setup.batches(TEST), device=place.device, precision=precision)
    test_s = time.monotonic() - started
    metrics = {
        "recipe": run.recipe.name,
        "parameters": count_parameters(setup.whole),
        "trainable_parameters": count_parameters(setup.whole, trainable=True),
        "vocabulary": setup.tokenizer.vocabulary_size,
        **setup.facts,
        **_figures(final, test),
        "test_rows_per_s": round(test.rows / test_s),
        "workers": place.world_size,
        "device": place.device.type,
        "precision": precision,
        "history": final.progress.history,
    }
    return Trained(setup, metrics)


def bundle_run(folder: Path, run: Run, trained: Trained) -> Bundle:
    """Write a run's model as a bundle."""
    setup = trained.setup
    return write_bundle(
        folder,
        config=BundleConfig(recipe=run.recipe.name, model=setup.shape, max_length=run.recipe.max_length),
        weights=setup.weights(),
        tokenizer=setup.tokenizer,
        metrics=trained.metrics,
        card=model_card(run.recipe, trained.metrics, PreparedData(run.data).manifest),
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
