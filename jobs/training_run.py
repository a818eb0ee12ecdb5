"""One training run of a word-level recipe, wherever it runs: load, train, measure, write the bundle.

The workers of Ray Train (`jobs.train_worker`) and the tasks of `jobs/reproduce.py` both do exactly this.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jobs.pretrained import Pretrained
from jobs.report import model_card
from sentiment.batching import LengthBucketedBatches
from sentiment.bundle import Bundle, BundleConfig, write_bundle
from sentiment.checkpoint import Checkpoint
from sentiment.config import Precision
from sentiment.corpora.prepared import PreparedData
from sentiment.devices import resolve_precision
from sentiment.metrics import Figures
from sentiment.models import build_model, count_parameters
from sentiment.models.bag import BagClassifier
from sentiment.models.head import WordEmbedding
from sentiment.models.rnn import RecurrentClassifier
from sentiment.models.subwords import SubwordEmbedding
from sentiment.recipe import Recipe, WordRecipe
from sentiment.schema import TEST, TRAIN, VALIDATION
from sentiment.shapes import ModelConfig
from sentiment.tokenizers import PAD_ID, WordTokenizer
from sentiment.training import Hooks, Optimisation, evaluate, fit

# Rows of a worker's batch when only measuring: no gradients to keep, so more than a training batch fits.
EVALUATION_BATCH = 256
# Of word vectors where neither the recipe nor pretrained vectors say; the notebooks'.
_DEFAULT_WIDTH = 100


@dataclass(frozen=True)
class Run:
    """What decides a run's result.

    Attributes:
        recipe: Model and optimiser settings.
        data: Folder that `jobs/prepare.py` wrote.
        seed: Everything random follows from it.
        precision: Number format of forward passes.
        checkpoint_steps: As in `Optimisation`.
        pretrained: Word vectors to begin with.
    """

    recipe: WordRecipe
    data: str
    seed: int
    precision: Precision
    checkpoint_steps: int = 0
    pretrained: Pretrained | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common with its checkpoint.

        Workers may differ: the same global batch gives the same losses. So may the vectors' folder: they are in the
        checkpoint's weights by then.
        """
        recipe = self.recipe.model_dump(mode="json", exclude={*Recipe.WORDS} - {"name"})
        if self.recipe.vectors:
            recipe["vectors"] = Path(self.recipe.vectors).name
        data = PreparedData(self.data).digest
        return {"data": data, "recipe": recipe, "seed": self.seed, "precision": self.precision}


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is, and what it computes on."""

    rank: int
    world_size: int
    device: torch.device


@dataclass(frozen=True)
class Trained:
    """What a run ends with.

    Attributes:
        model: With the weights of its best epoch.
        shape: Its shape.
        tokenizer: What its ids mean.
        metrics: Figures, for `metrics.json`.
    """

    model: nn.Module
    shape: ModelConfig
    tokenizer: WordTokenizer
    metrics: dict[str, Any]


def train_run(run: Run, place: Place, *, hooks: Hooks, resume: Checkpoint | None) -> Trained:
    """Train, choose the best epoch, measure it on the test rows.

    Args:
        run: What to train.
        place: This process; with several, their process group is set up.
        hooks: As in `fit`.
        resume: Checkpoint to go on from.

    Raises:
        SentimentError: Data or settings are not as they must be.
    """
    recipe, prepared = run.recipe, PreparedData(run.data)
    tokenizer = prepared.tokenizer()
    precision = resolve_precision(run.precision, place.device)
    model, shape = _build(run, tokenizer)
    final = fit(
        model,
        batches(run, prepared, TRAIN, place),
        batches(run, prepared, VALIDATION, place),
        _optimisation(run),
        device=place.device,
        precision=precision,
        hooks=hooks,
        resume=resume,
    )
    assert final.best_weights is not None
    model.load_state_dict(final.best_weights)
    if isinstance(model.embedding, SubwordEmbedding):
        model.embedding = model.embedding.folded()
    started = time.monotonic()
    test = evaluate(model, batches(run, prepared, TEST, place), device=place.device, precision=precision)
    test_s = time.monotonic() - started
    metrics = {
        "recipe": recipe.name,
        "parameters": count_parameters(model),
        "trainable_parameters": count_parameters(model, trainable=True),
        "vocabulary": tokenizer.vocabulary_size,
        "vectors": run.pretrained.name if run.pretrained else None,
        "token_coverage": run.pretrained.token_coverage if run.pretrained else None,
        **_figures(final, test),
        "test_rows_per_s": round(test.rows / test_s),
        "workers": place.world_size,
        "device": place.device.type,
        "precision": precision,
        "history": final.progress.history,
    }
    return Trained(model, shape, tokenizer, metrics)


def _build(run: Run, tokenizer: WordTokenizer) -> tuple[RecurrentClassifier | BagClassifier, ModelConfig]:
    """The model to be trained, and the shape that it has once n-grams are folded into its word vectors."""
    recipe, table = run.recipe, run.pretrained.table if run.pretrained else None
    embedding_dim = table.matrix_VE.shape[1] if table else recipe.embedding_dim or _DEFAULT_WIDTH
    shape = recipe.model(tokenizer.vocabulary_size, embedding_dim, tokenizer.pad_id, tokenizer.unk_id)
    torch.manual_seed(run.seed)
    model = build_model(shape)
    if table:
        with torch.no_grad():
            model.get_parameter("embedding.weight").copy_(torch.from_numpy(table.matrix_VE))
    if recipe.subwords:
        assert isinstance(model.embedding, WordEmbedding)
        special = (tokenizer.unk_id, tokenizer.pad_id)
        model.embedding = SubwordEmbedding(model.embedding, tokenizer.tokens, recipe.embedding_std, special)
    return model, shape


def bundle_run(folder: Path, run: Run, trained: Trained) -> Bundle:
    """Write a run's model as a bundle."""
    return write_bundle(
        folder,
        config=BundleConfig(recipe=run.recipe.name, model=trained.shape, max_length=run.recipe.max_length),
        weights={name: weight.cpu() for name, weight in trained.model.state_dict().items()},
        tokenizer=trained.tokenizer,
        metrics=trained.metrics,
        card=model_card(run.recipe, trained.metrics, PreparedData(run.data).manifest),
    )


def batches(
    run: Run, prepared: PreparedData, split: str, place: Place, max_length: int | None = None
) -> LengthBucketedBatches:
    """A process's share of a split: shuffled for training, by length for measuring.

    Args:
        run: Recipe and seed.
        prepared: The rows.
        split: "train", "validation" or "test".
        place: The process.
        max_length: Tokens of a text that are read; the recipe's if not given.
    """
    is_train = split == TRAIN
    return LengthBucketedBatches(
        prepared.examples(split),
        batch_size=run.recipe.batch_size if is_train else EVALUATION_BATCH * place.world_size,
        pad_id=PAD_ID,
        max_length=max_length or run.recipe.max_length,
        shuffle=is_train,
        seed=run.seed,
        rank=place.rank,
        world_size=place.world_size,
    )


def _optimisation(run: Run) -> Optimisation:
    recipe = run.recipe
    return Optimisation(
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        schedule=recipe.schedule,
        warmup_share=recipe.warmup_share,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        seed=run.seed,
        checkpoint_steps=run.checkpoint_steps,
        optimizer=recipe.optimizer,
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
