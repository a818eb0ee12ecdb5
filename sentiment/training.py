"""The training loop, over any batch iterator; torch only, on one process or many.

It knows nothing of Ray: whoever starts it sets up the process group, hands over batches, and keeps the checkpoints that
it offers. Everything random follows from (seed, step, rank), so a run that goes on from a checkpoint ends with the
numbers of one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from sentiment.batching import Batch
from sentiment.checkpoint import Checkpoint, Progress
from sentiment.devices import autocast
from sentiment.errors import ConfigError
from sentiment.metrics import Counts, Figures
from sentiment.optimisation import Optimisation, learning_rate_at, make_optimizer


class Batches(Protocol):
    """What the loop needs of its data: equal numbers of batches on every rank, the same ones for the same epoch."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch for this rank, the first `start` left out; large ones in parts (`Batch.ends_step`)."""
        ...


@dataclass(frozen=True)
class Hooks:
    """What the caller does on the way. Both are called on every rank, equally often.

    Attributes:
        on_checkpoint: Gets the state so far; the epoch's figures when an epoch has just ended, else None.
        on_step: Gets epoch, steps done in it and steps of an epoch.
    """

    on_checkpoint: Callable[[Checkpoint, dict[str, Any] | None], None] = lambda checkpoint, figures: None
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None


def evaluate(
    model: nn.Module, batches: Batches, *, device: torch.device, precision: Literal["bf16", "float32"]
) -> Figures:
    """Measure a model over one pass of `batches`, summed over all ranks.

    Args:
        model: Takes (inputs_BT, lengths_B), returns logits_B. Left in evaluation mode.
        batches: What to measure on; on each rank its own share.
        device: Where the model is.
        precision: Number format of the forward pass.
    """
    model.eval()
    # On the device from the start: a rank without rows takes part in the sum too, and NCCL takes nothing from the CPU.
    counts = Counts(torch.zeros(5, dtype=torch.float64, device=device))
    with torch.inference_mode():
        for loaded in batches.epoch(0):
            batch = loaded.to(device)
            with autocast(precision, device):
                logits_B = model(batch.inputs_BT, batch.lengths_B)
            losses_B = binary_cross_entropy_with_logits(logits_B.float(), batch.labels_B, reduction="none")
            counts.add(logits_B, batch.labels_B, losses_B, batch.weights_B)
    return counts.over_ranks().figures()


def fit(
    model: nn.Module,
    train: Batches,
    validation: Batches,
    settings: Optimisation,
    *,
    device: torch.device,
    precision: Literal["bf16", "float32"],
    hooks: Hooks = Hooks(),
    resume: Checkpoint | None = None,
) -> Checkpoint:
    """Train a model, keeping the weights of the epoch with the lowest validation loss.

    Args:
        model: Takes (inputs_BT, lengths_B), returns logits_B.
        train: Training rows.
        validation: Rows to choose the best epoch by.
        settings: How the weights are fitted.
        device: Where to run; the model is moved there.
        precision: Number format of forward passes; weights and optimiser stay float32.
        hooks: What to do at checkpoints and steps.
        resume: State to go on from; the settings must be those it was made with.

    Returns:
        The state after the last epoch; its `best_weights` are the result.

    Raises:
        ConfigError: The loss is no longer finite.
    """
    return _Run(model, train, validation, settings, device, precision, hooks, resume).run()


@dataclass
class _Run:
    """One call of `fit`: what its steps share."""

    model: nn.Module
    train: Batches
    validation: Batches
    settings: Optimisation
    device: torch.device
    precision: Literal["bf16", "float32"]
    hooks: Hooks
    resume: Checkpoint | None
    progress: Progress = field(default_factory=Progress)
    best_weights: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if distributed else 0
        self.world_size = dist.get_world_size() if distributed else 1
        self.model.to(self.device)
        if self.resume is not None:
            self.model.load_state_dict(self.resume.weights)
            self.progress, self.best_weights = self.resume.progress, self.resume.best_weights
        # DDP broadcasts rank 0's weights, so all ranks start alike. Our buffers are constants: not sent at each step.
        self.wrapped = (
            DistributedDataParallel(self.model, gradient_as_bucket_view=True, broadcast_buffers=False)
            if self.world_size > 1
            else self.model
        )
        self.trainable = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = make_optimizer(self.model, self.settings)
        if self.resume is not None:
            self.optimizer.load_state_dict(self.resume.optimizer)

    def run(self) -> Checkpoint:
        while self.progress.epoch < self.settings.epochs:
            self._epoch()
        return self._checkpoint()

    def _epoch(self) -> None:
        """Train one epoch from where it stands, validate, and offer a checkpoint."""
        progress, started = self.progress, time.monotonic() - self.progress.elapsed_s
        counts = Counts(torch.tensor(progress.sums, dtype=torch.float64)) if progress.sums else Counts()
        if self.rank != 0 and progress.sums:
            counts = Counts()  # The sums so far are over all ranks: one of them carries on with them.
        self.wrapped.train()
        begins_step = True
        for batch in self.train.epoch(progress.epoch, start=progress.step):
            if begins_step:
                self._begin_step()
            self._add_gradients(batch.to(self.device), counts)
            begins_step = batch.ends_step
            if not batch.ends_step:
                continue
            self._update()
            progress.step += 1
            self.hooks.on_step(progress.epoch, progress.step, len(self.train))
            every = self.settings.checkpoint_steps
            if every and progress.step % every == 0 and progress.step < len(self.train):
                progress.sums = counts.over_ranks().sums.tolist()
                progress.elapsed_s = time.monotonic() - started
                counts = Counts(torch.tensor(progress.sums, dtype=torch.float64)) if self.rank == 0 else Counts()
                self.hooks.on_checkpoint(self._checkpoint(), None)
        self._end_epoch(counts.over_ranks().figures(), time.monotonic() - started)

    def _end_epoch(self, trained: Figures, train_s: float) -> None:
        """Validate, keep the weights if they are the best so far, and offer a checkpoint."""
        progress = self.progress
        validated = evaluate(self.model, self.validation, device=self.device, precision=self.precision)
        if not (math.isfinite(trained.loss) and math.isfinite(validated.loss)):
            raise ConfigError(
                f"the loss is no longer finite in epoch {progress.epoch + 1} (train {trained.loss}, validation "
                f"{validated.loss}): lower --learning-rate or use --precision float32"
            )
        figures = {
            "epoch": progress.epoch + 1,
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "validation_loss": validated.loss,
            "validation_accuracy": validated.accuracy,
            "validation_macro_f1": validated.macro_f1,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_s": train_s,
            "rows_per_s": trained.rows / train_s,
        }
        is_best = progress.best_validation_loss is None or validated.loss < progress.best_validation_loss
        if is_best:
            progress.best_epoch, progress.best_validation_loss = progress.epoch, validated.loss
            self.best_weights = None
        self.progress = Progress(
            epoch=progress.epoch + 1,
            best_epoch=progress.best_epoch,
            best_validation_loss=progress.best_validation_loss,
            history=[*progress.history, figures],
        )
        checkpoint = self._checkpoint()
        if is_best:
            self.best_weights = checkpoint.best_weights = checkpoint.weights
        self.hooks.on_checkpoint(checkpoint, figures)

    def _begin_step(self) -> None:
        step = self.progress.epoch * len(self.train) + self.progress.step
        # Dropout of this step, the same whenever it is run; ranks differ, as their rows do.
        torch.manual_seed(_mix(self.settings.seed, step, self.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(
                step, self.settings.epochs * len(self.train), self.settings, finetuned=group.get("finetuned", False)
            )
        self.optimizer.zero_grad(set_to_none=True)

    def _add_gradients(self, batch: Batch, counts: Counts) -> None:
        with self._exchange(batch.ends_step):
            with autocast(self.precision, self.device):
                logits_B = self.wrapped(batch.inputs_BT, batch.lengths_B)
            losses_B = binary_cross_entropy_with_logits(logits_B.float(), batch.labels_B, reduction="none")
            # DDP averages gradients over ranks; this makes that average the mean over the whole batch's rows, also
            # where ranks hold different numbers of them.
            loss = (losses_B * batch.weights_B).sum() * self.world_size / batch.num_global
            loss.backward()
        counts.add(logits_B.detach(), batch.labels_B, losses_B, batch.weights_B)

    def _exchange(self, ends_step: bool) -> AbstractContextManager[None]:
        """Ranks may have different numbers of parts: they exchange gradients with the last one only."""
        if isinstance(self.wrapped, DistributedDataParallel) and not ends_step:
            return self.wrapped.no_sync()
        return nullcontext()

    def _update(self) -> None:
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.trainable, self.settings.clip_norm)
        self.optimizer.step()

    def _checkpoint(self) -> Checkpoint:
        """Copy the state to the CPU."""
        weights = {name: weight.detach().to("cpu", copy=True) for name, weight in self.model.state_dict().items()}
        return Checkpoint(self.progress, weights, self.best_weights, self.optimizer.state_dict())


def _mix(*numbers: int) -> int:
    """Combine numbers into one 63-bit seed (splitmix64's finaliser on each)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1
