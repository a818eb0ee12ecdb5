"""The training loop, over any batch iterator; torch only, on one process or many.

It knows nothing of Ray: whoever starts it sets up the process group, hands over batches, and keeps the checkpoints that
it offers. Everything random follows from (seed, step, rank), so a run that resumes from a checkpoint ends with the
numbers of one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from sentiment.batching import Batch
from sentiment.devices import autocast
from sentiment.errors import ConfigError
from sentiment.metrics import Counts, Figures
from sentiment.training.checkpoint import Checkpoint, Progress
from sentiment.training.recipes import OptimizerConfig


class Batches(Protocol):
    """What the loop needs of its data: equal numbers of batches on every rank, the same ones for the same epoch."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch for this rank, the first `start` left out; large ones as micro-batches."""
        ...


@dataclass(frozen=True)
class Hooks:
    """What the caller does during training. Both are called on every rank, equally often.

    Attributes:
        on_checkpoint: Gets the state so far; the epoch's figures when an epoch has just ended, else None.
        on_step: Gets epoch, steps done in it and steps of an epoch.
    """

    on_checkpoint: Callable[[Checkpoint, dict[str, Any] | None], None] = lambda checkpoint, figures: None
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None


def learning_rate_at(step: int, total_steps: int, config: OptimizerConfig, *, finetuned: bool = False) -> float:
    """Learning rate of a step (0-based) out of `total_steps`, of the weights that are fine-tuned or of all others.

    One-cycle: linear warm-up, then cosine decay to a hundredth of the peak (after Smith & Topin 2018).
    """
    peak, warmup_share = config.peak_and_warmup(finetuned=finetuned)
    is_constant = config.schedule == "constant"
    warmup_steps = 0 if is_constant and not finetuned else max(1, round(total_steps * warmup_share))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if is_constant:
        return peak
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


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
    counts = Counts(Counts().sums.to(device))
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
    config: OptimizerConfig,
    *,
    seed: int,
    device: torch.device,
    precision: Literal["bf16", "float32"],
    checkpoint_steps: int = 0,
    hooks: Hooks = Hooks(),
    resume: Checkpoint | None = None,
) -> Checkpoint:
    """Train a model, keeping the weights of the epoch with the lowest validation loss.

    Args:
        model: Takes (inputs_BT, lengths_B), returns logits_B.
        train: Training rows.
        validation: Rows to choose the best epoch by.
        config: How the weights are fitted.
        seed: Everything random follows from it.
        device: Where to run; the model is moved there.
        precision: Number format of forward passes; weights and optimizer stay float32.
        checkpoint_steps: A checkpoint every so many steps beside the one after each epoch; 0 for none.
        hooks: What to do at checkpoints and steps.
        resume: State to resume from; the config must be the one it was made with.

    Returns:
        The state after the last epoch; its `best_weights` are the result.

    Raises:
        ConfigError: The loss is no longer finite.
    """
    loop = _Loop(model, train, validation, config, seed, device, precision, checkpoint_steps, hooks, resume)
    while loop.progress.epoch < config.epochs:
        started = time.monotonic() - loop.progress.elapsed_s
        loop.validate(loop.train_epoch(started), started)
    return loop.checkpoint()


@dataclass
class _Loop:
    """State of one call of `fit`."""

    model: nn.Module
    train: Batches
    validation: Batches
    config: OptimizerConfig
    seed: int
    device: torch.device
    precision: Literal["bf16", "float32"]
    checkpoint_steps: int
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
        prefix = self.config.finetuned_prefix
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                groups[bool(prefix) and name.startswith(prefix)].append(weight)
        self.optimizer = (torch.optim.SGD if self.config.optimizer == "sgd" else torch.optim.AdamW)(
            [{"params": weights, "finetuned": finetuned} for finetuned, weights in groups.items() if weights],
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        if self.resume is not None:
            self.optimizer.load_state_dict(self.resume.optimizer)

    def train_epoch(self, started: float) -> Figures:
        """Train one epoch, or the rest of it."""
        progress, steps = self.progress, len(self.train)
        # Sums that were kept are over all ranks: one of them continues with them.
        kept = torch.tensor(progress.sums, dtype=torch.float64)
        counts = Counts(kept) if progress.sums and self.rank == 0 else Counts()
        self.wrapped.train()
        begins_step = True
        for loaded in self.train.epoch(progress.epoch, start=progress.step):
            if begins_step:
                self._begin_step(progress.epoch * steps + progress.step, self.config.epochs * steps)
            batch, begins_step = loaded.to(self.device), loaded.ends_step
            # Ranks may have different numbers of micro-batches: they exchange gradients with the last one only.
            ddp = self.wrapped if isinstance(self.wrapped, DistributedDataParallel) else None
            with ddp.no_sync() if ddp and not batch.ends_step else nullcontext():
                with autocast(self.precision, self.device):
                    logits_B = self.wrapped(batch.inputs_BT, batch.lengths_B)
                losses_B = binary_cross_entropy_with_logits(logits_B.float(), batch.labels_B, reduction="none")
                # DDP averages gradients over ranks; this makes that average the mean over the whole batch's rows, also
                # where ranks hold different numbers of them.
                loss = (losses_B * batch.weights_B).sum() * self.world_size / batch.num_global
                loss.backward()  # type: ignore[no-untyped-call]
            counts.add(logits_B.detach(), batch.labels_B, losses_B, batch.weights_B)
            if not batch.ends_step:
                continue
            if self.config.clip_norm:
                nn.utils.clip_grad_norm_(self.trainable, self.config.clip_norm)
            self.optimizer.step()
            progress.step += 1
            self.hooks.on_step(progress.epoch, progress.step, steps)
            if self.checkpoint_steps and progress.step % self.checkpoint_steps == 0 and progress.step < steps:
                progress.sums = counts.over_ranks().sums.tolist()
                progress.elapsed_s = time.monotonic() - started
                counts = Counts(torch.tensor(progress.sums, dtype=torch.float64)) if self.rank == 0 else Counts()
                self.hooks.on_checkpoint(self.checkpoint(), None)
        return counts.over_ranks().figures()

    def _begin_step(self, step: int, total_steps: int) -> None:
        # Dropout of this step, the same whenever it is run; ranks differ, as their rows do.
        torch.manual_seed(_mix(self.seed, step, self.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, total_steps, self.config, finetuned=group["finetuned"])
        self.optimizer.zero_grad(set_to_none=True)

    def validate(self, trained: Figures, started: float) -> None:
        """Validate, keep the weights if they are the best so far, and offer a checkpoint."""
        progress, train_s = self.progress, time.monotonic() - started
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
        self.progress = Progress(
            epoch=progress.epoch + 1,
            best_epoch=progress.epoch if is_best else progress.best_epoch,
            best_validation_loss=validated.loss if is_best else progress.best_validation_loss,
            history=[*progress.history, figures],
        )
        if is_best:
            self.best_weights = None  # Not held twice while they are copied.
        checkpoint = self.checkpoint()
        if is_best:
            self.best_weights = checkpoint.best_weights = checkpoint.weights
        self.hooks.on_checkpoint(checkpoint, figures)

    def checkpoint(self) -> Checkpoint:
        """Copy the state to the CPU."""
        weights = {name: weight.detach().to("cpu", copy=True) for name, weight in self.model.state_dict().items()}
        return Checkpoint(self.progress, weights, self.best_weights, self.optimizer.state_dict())


def _mix(*numbers: int) -> int:
    """Combine numbers into one 63-bit seed (splitmix64's finalizer on each)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1
