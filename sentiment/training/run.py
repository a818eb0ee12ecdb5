"""One training run, wherever it is done: load model and data, train, measure, write the bundle.

The workers of Ray Train and the tasks of `jobs/reproduce.py` both do exactly this. Each family of models is a `Run`:
`sentiment.training.word_models` and `sentiment.training.bert_models`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sentiment.batching import LengthBucketedBatches, Rows
from sentiment.bundle import Bundle, BundleConfig, write_bundle
from sentiment.data.prepared import PreparedData
from sentiment.devices import resolve_precision
from sentiment.errors import DataError, SentimentError
from sentiment.models.build import count_parameters
from sentiment.models.config import ModelConfig
from sentiment.predictor import Predictor, labels_and_scores
from sentiment.schema import TEST, TEXT, TRAIN, VALIDATION
from sentiment.settings import Precision, TrainSettings
from sentiment.tokenizers import Tokenizer
from sentiment.training.checkpoint import Checkpoint
from sentiment.training.loop import Batches, Hooks, evaluate, fit
from sentiment.training.recipes import Recipe
from sentiment.training.report import model_card

# Rows of a worker's batch when only measuring: no gradients to keep, so more than a training batch fits.
EVALUATION_BATCH = 256
# Validation rows on which bfloat16 is compared with float32: seconds for tweets, a minute for a BiGRU on reviews, which
# trains for an hour.
_COMPARED_ROWS = 2_000


@dataclass(frozen=True)
class Rank:
    """Which of how many processes this one is, and what it computes on."""

    index: int
    world_size: int
    device: torch.device


@dataclass(kw_only=True, eq=False, repr=False)
class Run(ABC):
    """A recipe on prepared data: planned on the driver, sent to the workers, and loaded there.

    Attributes:
        recipe: Model and optimizer settings.
        data: Folder that `jobs/prepare.py` wrote.
        seed: Everything random follows from it.
        precision: Number format of forward passes.
        checkpoint_steps: As in `fit`.
        max_micro_batch_tokens: As in `LengthBucketedBatches`.
        rank: Of the process that has loaded it, as all that follow are set by `load`.
        model: What is trained and measured.
        full_model: The model that predicts, of which `model` may be a part.
        config: Of the full model.
        tokenizer: What its ids mean.
        details: Of this family, for `metrics.json`.
    """

    recipe: Recipe
    data: str
    seed: int
    precision: Precision
    checkpoint_steps: int = 0
    max_micro_batch_tokens: int | None = None
    rank: Rank = field(init=False)
    model: nn.Module = field(init=False)
    full_model: nn.Module = field(init=False)
    config: ModelConfig = field(init=False)
    tokenizer: Tokenizer = field(init=False)
    details: dict[str, Any] = field(init=False)

    @property
    @abstractmethod
    def digests(self) -> dict[str, Any]:
        """What stands in the identity in place of a recipe's names that don't say what is behind them."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that is resumed must have in common with its checkpoint."""
        settings = {"name": self.recipe.name, **self.recipe.settings, **self.digests}
        data = PreparedData(self.data).digest
        return {"data": data, "recipe": settings, "seed": self.seed, "precision": self.precision}

    def find_inputs(self) -> None:  # noqa: B027  (a family may need none)
        """On the driver, before anything is written: find and check what may take long.

        Raises:
            SentimentError: It isn't as it must be.
        """

    def prepare(self, settings: TrainSettings) -> None:  # noqa: B027  (a family may need none)
        """On the driver, with Ray, once the output folder is there: make what the workers read."""

    @abstractmethod
    def load(self, rank: Rank) -> None:
        """In each process: build the model and open the data.

        Raises:
            SentimentError: Data or settings are not as they must be.
        """

    @abstractmethod
    def rows(self, split: str) -> Rows:
        """All rows of a split."""

    def batches(self, split: str, max_length: int | None = None) -> Batches:
        """This process's share of a split: shuffled for training, by length for measuring.

        Args:
            split: "train", "validation" or "test".
            max_length: Tokens that texts are cut to; the recipe's if not given.
        """
        is_train = split == TRAIN
        return LengthBucketedBatches(
            self.rows(split),
            batch_size=self.recipe.batch_size if is_train else EVALUATION_BATCH * self.rank.world_size,
            pad_id=self.tokenizer.pad_id,
            max_length=max_length or self.recipe.max_length,
            shuffle=is_train,
            seed=self.seed,
            rank=self.rank.index,
            world_size=self.rank.world_size,
            max_micro_batch_tokens=self.max_micro_batch_tokens,
        )

    def end_training(self) -> None:  # noqa: B027  (most have nothing to do)
        """Bring the model into the form that is measured and bundled."""

    def weights(self) -> dict[str, Tensor]:
        """What goes into the bundle, on the CPU."""
        return {name: weight.cpu() for name, weight in self.full_model.state_dict().items()}


def load_on_all_ranks(run: Run, rank: Rank, resume: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """Load data, model and checkpoint in all processes, or in none: one that fails alone leaves the others waiting.

    Args:
        run: What to train.
        rank: This process.
        resume: Gives the checkpoint to resume from.

    Raises:
        SentimentError: Data or settings are not as they must be, here or in another process; all raise the same.
    """
    checkpoint, error, data = None, None, ""
    try:
        data = PreparedData(run.data).digest
        run.load(rank)
        checkpoint = resume()
    except SentimentError as mistake:
        error = mistake
    if rank.world_size > 1:
        answers: list[tuple[SentimentError | None, str]] = [(None, "")] * rank.world_size
        dist.all_gather_object(answers, (error, data))
        error = next((other for other, _ in answers if other is not None), None)
        if error is None and len({digest for _, digest in answers}) > 1:
            error = DataError(f"{run.data} isn't the same on all nodes: give a folder that all of them share, or a URI")
    if error is not None:
        raise error
    return checkpoint


def train_run(run: Run, rank: Rank, *, hooks: Hooks, resume: Callable[[], Checkpoint | None]) -> dict[str, Any]:
    """Train, choose the best epoch, measure it on the test rows.

    Args:
        run: What to train; afterwards its model has the weights of the best epoch.
        rank: This process; with several, their process group is set up.
        hooks: As in `fit`.
        resume: Gives the checkpoint to resume from.

    Returns:
        Figures for `metrics.json`; None where there are none.

    Raises:
        SentimentError: Data or settings are not as they must be, here or in another process.
    """
    checkpoint = load_on_all_ranks(run, rank, resume)
    precision = resolve_precision(run.precision, rank.device)
    final = fit(
        run.model,
        run.batches(TRAIN),
        run.batches(VALIDATION),
        run.recipe,
        seed=run.seed,
        device=rank.device,
        precision=precision,
        checkpoint_steps=run.checkpoint_steps,
        hooks=hooks,
        resume=checkpoint,
    )
    assert final.best_weights is not None
    assert final.progress.best_epoch is not None
    run.model.load_state_dict(final.best_weights)
    run.end_training()
    started = time.monotonic()
    test = evaluate(run.model, run.batches(TEST), device=rank.device, precision=precision)
    test_s = time.monotonic() - started
    history = final.progress.history
    best = history[final.progress.best_epoch]
    train_s = sum(epoch["train_s"] for epoch in history)
    return {
        "recipe": run.recipe.name,
        "parameters": count_parameters(run.full_model),
        "trainable_parameters": count_parameters(run.full_model, trainable=True),
        "vocabulary": run.tokenizer.vocabulary_size,
        **run.details,
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "validation_loss": best["validation_loss"],
        "validation_accuracy": best["validation_accuracy"],
        **test.named("test_"),
        "rows_per_s": round(sum(epoch["rows_per_s"] * epoch["train_s"] for epoch in history) / train_s),
        "test_rows_per_s": round(test.rows / test_s),
        "workers": rank.world_size,
        "device": rank.device.type,
        "precision": precision,
        "history": history,
    }


def bundle_run(folder: Path, run: Run, metrics: dict[str, Any]) -> Bundle:
    """Write a trained run's model as a bundle.

    Where it was trained in bfloat16, or predicts in it by default on this device, `metrics` get `bf16_error`: how far
    predictions in bfloat16 are from those in float32, on validation rows.

    Args:
        folder: The bundle's.
        run: What was trained.
        metrics: Its figures.
    """
    data, weights = PreparedData(run.data), run.weights()
    config = BundleConfig(recipe=run.recipe.name, model=run.config, max_length=run.recipe.max_length)
    card = model_card(run.recipe, metrics, data.manifest)

    def write() -> Bundle:
        return write_bundle(folder, config=config, weights=weights, tokenizer=run.tokenizer, metrics=metrics, card=card)

    bundle, device = write(), torch.device(metrics["device"])
    if "bf16" not in (metrics["precision"], resolve_precision("auto", device)):
        return bundle
    # Measured on the bundle as users load it, and so written twice.
    texts = data.texts(VALIDATION)[TEXT]
    # From all over: a file often has all rows of one label first.
    indices = np.linspace(0, len(texts) - 1, min(_COMPARED_ROWS, len(texts)), dtype=np.int64)
    texts = texts.take(indices).to_pylist()
    predictors = (
        Predictor.load(bundle.path, use_gpu=device.type == "cuda", precision=precision)
        for precision in ("float32", "bf16")
    )
    exact_N, rough_N = (predictor.forward(predictor.encode(texts)) for predictor in predictors)
    labels = zip(labels_and_scores(exact_N)[0], labels_and_scores(rough_N)[0], strict=True)
    metrics["bf16_error"] = {
        "rows": len(texts),
        "max_p_difference": float(np.abs(exact_N - rough_N).max()),
        "flipped_labels": sum(exact != rough for exact, rough in labels),
    }
    return write()
