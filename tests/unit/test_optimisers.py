"""Optimizers of the training loop against the plain rules and PyTorch's own, on a model without dropout."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sentiment.batching import Examples, LengthBucketedBatches
from sentiment.models.bag import BagClassifier
from sentiment.models.rnn import RecurrentClassifier
from sentiment.training.checkpoint import Checkpoint
from sentiment.training.loop import Hooks, fit
from sentiment.training.recipes import OptimizerConfig

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY = 12
SGD = OptimizerConfig(optimizer="sgd", epochs=2, learning_rate=0.05, clip_norm=0.0)
ADAM = SGD.model_copy(update={"optimizer": "adamw", "learning_rate": 0.01})
Step = Callable[[Sequence[Tensor], Sequence[Tensor]], None]


def batches(num_rows: int = 40) -> LengthBucketedBatches:
    """Of 16 rows; the last of 40 is smaller."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 9, num_rows)
    examples = Examples(
        random.integers(2, VOCABULARY, lengths.sum()).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        random.integers(0, 2, num_rows).astype(np.int32),
    )
    return LengthBucketedBatches(examples, batch_size=16, pad_id=1, max_length=64, seed=3)


def bag(**more: Any) -> BagClassifier:
    torch.manual_seed(0)
    return BagClassifier(VOCABULARY, 5, (4,), **more)


def train(model: torch.nn.Module, config: OptimizerConfig, num_rows: int = 40, **more: Any) -> Checkpoint:
    data = batches(num_rows)
    return fit(model, data, data, config, seed=3, device=torch.device("cpu"), precision="float32", **more)


def by_hand(model: BagClassifier, step: Step, epochs: int = 2) -> dict[str, Tensor]:
    """Train a copy, one `step(weights, gradients)` for each batch; returns its state dict."""
    trained = copy.deepcopy(model)
    weights = list(trained.parameters())
    for epoch in range(epochs):
        for batch in batches().epoch(epoch):
            loss = binary_cross_entropy_with_logits(trained(batch.inputs_BT, batch.lengths_B), batch.labels_B)
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                step(weights, gradients)
    return trained.state_dict()


def distance(weights: dict[str, Tensor], model: torch.nn.Module) -> float:
    """2-norm of how far weights lie from a model's."""
    before = model.state_dict()
    return float(torch.cat([(weights[name] - before[name]).flatten() for name in before]).norm())


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_sgd_takes_plain_steps(weight_decay: float) -> None:
    """No momentum; weight decay is L2, as SGD's always is."""

    def step(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.sub_(0.05 * (gradient + weight_decay * weight))

    final = train(bag(), SGD.model_copy(update={"weight_decay": weight_decay}))
    torch.testing.assert_close(final.weights, by_hand(bag(), step), atol=1e-6, rtol=0)
    assert distance(final.weights, bag()) > 0.01


def test_adamw_without_decay_is_adam() -> None:
    model = bag()
    reference = copy.deepcopy(model)
    adam = torch.optim.Adam(reference.parameters(), lr=0.01)
    for epoch in range(2):
        for batch in batches().epoch(epoch):
            loss = binary_cross_entropy_with_logits(reference(batch.inputs_BT, batch.lengths_B), batch.labels_B)
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
    torch.testing.assert_close(train(model, ADAM).weights, reference.state_dict(), atol=1e-6, rtol=0)


def test_weight_decay_is_decoupled() -> None:
    """It shrinks the weights by learning rate × decay a step and stays out of Adam's moments. With one step the two
    runs have the same gradients, so that's all they differ by."""
    one_epoch = ADAM.model_copy(update={"epochs": 1})
    plain = train(bag(), one_epoch, num_rows=16).weights
    decayed = train(bag(), one_epoch.model_copy(update={"weight_decay": 0.5}), num_rows=16).weights
    expected = {name: plain[name] - 0.01 * 0.5 * before for name, before in bag().state_dict().items()}
    torch.testing.assert_close(decayed, expected, atol=1e-6, rtol=0)


def test_clip_norm_bounds_a_step_and_zero_does_not() -> None:
    """One batch of one epoch is one step; the gradient's norm is what the unclipped one moved by."""
    one_step = SGD.model_copy(update={"epochs": 1, "learning_rate": 0.5})
    free = distance(train(bag(embedding_std=3.0), one_step, num_rows=16).weights, bag(embedding_std=3.0))
    norm = free / 0.5
    assert norm > 1, "an ordinary clipping would not show"
    for clip_norm, expected in ((0.01, 0.01), (norm / 2, norm / 2), (norm * 2, norm)):
        config = one_step.model_copy(update={"clip_norm": clip_norm})
        moved = distance(train(bag(embedding_std=3.0), config, num_rows=16).weights, bag(embedding_std=3.0))
        assert moved == pytest.approx(0.5 * expected, rel=1e-3)


@pytest.mark.parametrize("config", [SGD, ADAM.model_copy(update={"weight_decay": 0.1})], ids=["sgd", "adamw"])
def test_frozen_vectors_stay_as_they_are(config: OptimizerConfig) -> None:
    final, fresh = train(bag(frozen_embedding=True), config), bag(frozen_embedding=True).state_dict()
    assert torch.equal(final.weights["embedding.weight"], fresh["embedding.weight"])
    assert all(not torch.equal(final.weights[name], fresh[name]) for name in fresh if name != "embedding.weight")


def test_a_resumed_sgd_run_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    """Stopped inside the second epoch. Dropout is on; the model that goes on had other weights."""

    def recurrent(seed: int) -> RecurrentClassifier:
        torch.manual_seed(seed)
        return RecurrentClassifier(VOCABULARY, 4, 4, 1, True, 0.3, word_dropout=0.1)

    def save(checkpoint: Checkpoint, figures: dict[str, Any] | None) -> None:
        if (checkpoint.progress.epoch, checkpoint.progress.step) == (1, 2):
            checkpoint.save(tmp_path)

    config = SGD.model_copy(update={"schedule": "one-cycle", "learning_rate": 0.5, "clip_norm": 1.0})
    whole = train(recurrent(0), config, checkpoint_steps=2, hooks=Hooks(on_checkpoint=save))
    resumed = train(recurrent(1), config, checkpoint_steps=2, resume=Checkpoint.load(tmp_path))
    torch.testing.assert_close(resumed.weights, whole.weights, atol=1e-6, rtol=0)
    stopped = Checkpoint.load(tmp_path).weights
    assert distance(stopped, recurrent(0)) > 0.01
    assert any(not torch.equal(stopped[name], whole.weights[name]) for name in stopped)
