"""How weights are fitted: optimiser, learning rates, clipping. What `sentiment.training`'s loop is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Optimisation:
    """How the weights are fitted.

    Attributes:
        epochs: Passes over the training rows.
        learning_rate: The optimiser's; the peak where a schedule is on.
        schedule: "constant", or "one-cycle": linear warm-up over the first `warmup_share` of all steps, then cosine
            decay to a hundredth (after Smith & Topin 2018).
        warmup_share: Share of all steps.
        weight_decay: Decoupled with AdamW (Loshchilov & Hutter 2019), L2 with SGD.
        clip_norm: Gradients are scaled down to this 2-norm; 0 leaves them as they are.
        seed: Everything random follows from it.
        checkpoint_steps: A checkpoint every so many steps beside the one after each epoch; 0 for none.
        optimizer: "adamw" (without weight decay it is Adam), or "sgd", plain.
        finetuned: Pretrained weights whose names begin so are fitted by the next two; empty for none.
        finetuned_learning_rate: Their (peak) learning rate.
        finetuned_warmup_share: Share of all steps; they warm up with a constant schedule too.
    """

    epochs: int
    learning_rate: float
    schedule: Literal["constant", "one-cycle"]
    warmup_share: float
    weight_decay: float
    clip_norm: float
    seed: int
    checkpoint_steps: int = 0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    finetuned: str = ""
    finetuned_learning_rate: float = 0.0
    finetuned_warmup_share: float = 0.0


def learning_rate_at(step: int, total_steps: int, settings: Optimisation, *, finetuned: bool = False) -> float:
    """Learning rate of a step (0-based) out of `total_steps`, of the weights that are finetuned or of all others."""
    peak = settings.finetuned_learning_rate if finetuned else settings.learning_rate
    warmup_share = settings.finetuned_warmup_share if finetuned else settings.warmup_share
    is_constant = settings.schedule == "constant"
    warmup_steps = 0 if is_constant and not finetuned else max(1, round(total_steps * warmup_share))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if is_constant:
        return peak
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def make_optimizer(model: nn.Module, settings: Optimisation) -> torch.optim.Optimizer:
    """Optimiser of a model's trainable weights; each group says in `finetuned` which learning rate it follows."""
    trainable = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    prefix = settings.finetuned
    fresh = [weight for name, weight in trainable if not (prefix and name.startswith(prefix))]
    pretrained = [weight for name, weight in trainable if prefix and name.startswith(prefix)]
    groups = [{"params": fresh, "finetuned": False}, {"params": pretrained, "finetuned": True}]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
