"""Builds models from their configs, with or without memory for their weights."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from sentiment.models.config import ModelConfig
from sentiment.untrusted import weightless


def build_model(config: ModelConfig) -> nn.Module:
    """Build the model that a config describes, with fresh weights.

    Args:
        config: Its hyperparameters and sizes.

    Returns:
        A module that takes (ids_BT, lengths_B) and returns logits_B of the positive class.
    """
    module, _, name = config.module.partition(":")
    model: nn.Module = getattr(import_module(module), name)(**config.arguments)
    return model


def build_weightless(config: ModelConfig) -> nn.Module:
    """Build the model that a config describes on the meta device: at no cost, whatever its size."""
    with weightless():
        return build_model(config)


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Number of weights.

    Args:
        model: Any module.
        trainable: Leave frozen ones out.
    """
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trainable)
