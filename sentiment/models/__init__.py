"""Models, and the one place that builds them from their shapes."""

from __future__ import annotations

from torch import nn

from sentiment.models.rnn import RecurrentClassifier
from sentiment.shapes import ModelConfig, RecurrentConfig


def build_model(config: ModelConfig) -> nn.Module:
    """Build the model that a config describes, with fresh weights.

    Args:
        config: Its shape.

    Returns:
        A module that takes (ids_BT, lengths_B) and returns logits_B of the positive class.
    """
    match config:
        case RecurrentConfig():
            return RecurrentClassifier(**config.model_dump(exclude={"kind"}))


def count_parameters(model: nn.Module) -> int:
    """Number of weights, frozen ones included."""
    return sum(weight.numel() for weight in model.parameters())
