"""Models, and the one place that builds them from their shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from sentiment.models.bag import BagClassifier
from sentiment.models.rnn import RecurrentClassifier
from sentiment.shapes import BagConfig, BertGruConfig, ModelConfig, RecurrentConfig

if TYPE_CHECKING:
    from sentiment.models.bert_gru import BertGruClassifier


def build_model(config: ModelConfig) -> RecurrentClassifier | BagClassifier | BertGruClassifier:
    """Build the model that a config describes, with fresh weights.

    Args:
        config: Its shape.

    Returns:
        A module that takes (ids_BT, lengths_B) and returns logits_B of the positive class.
    """
    fields = config.model_dump(exclude={"kind"})
    match config:
        case RecurrentConfig():
            return RecurrentClassifier(**fields)
        case BagConfig():
            return BagClassifier(**fields)
        case BertGruConfig():
            # transformers takes seconds to import, which word-level models needn't pay.
            from sentiment.models.bert_gru import BertGruClassifier  # noqa: PLC0415

            return BertGruClassifier(
                **config.model_dump(
                    include={"encoder", "hidden_dim", "num_layers", "bidirectional", "dropout", "pooling"}
                )
            )


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Number of weights.

    Args:
        model: Any module.
        trainable: Leave frozen ones out.
    """
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trainable)
