"""BERT-GRU: a pretrained encoder, a bidirectional GRU over its last hidden states, a linear layer.

After "Transformers for Sentiment Analysis" (bentrevett/pytorch-sentiment-analysis): the encoder is frozen, and what is
trained is the GRU and the linear layer. The notebook leaves the frozen encoder's dropout on while training; here it is
in evaluation mode, so a text's features are the same in every epoch and need to be computed only once.

That is what the two halves are for: `LowerLayers` is never trained and turns token ids into features, once;
`UpperLayers` is what is trained: the GRU and the linear layer, under them the encoder's top layers if some are
unfrozen. The one after the other is the whole model.

Shapes: B batch, T time (tokens, padded), E width of the encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.masking_utils import create_bidirectional_mask

from sentiment.errors import ConfigError
from sentiment.models.config import Pooling, encoder_config
from sentiment.models.layers import Head
from sentiment.models.recurrence import pooled_states, pooled_width

# Where the stack of layers lies in the encoders that can be cut in two. In each of them the layers are called alike,
# and nothing comes after the last one.
_STACKS = {
    "bert": "encoder.layer",
    "camembert": "encoder.layer",
    "distilbert": "transformer.layer",
    "electra": "encoder.layer",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
}
# Encoders whose positions begin behind the padding's id, so that two of 514 are never used.
_COUNT_FROM_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")
# Tokens that an encoder takes through its layers at once on a CPU: so few that what a layer makes of them is still in
# the core's own cache when the next one reads it (MiniLM with plain attention: 11 % faster than with 5,600 tokens).
_CACHED_TOKENS = 1024


class GruHead(nn.Module):
    """GRU over features of a width, pooling, dropout, linear layer; otherwise as `BertGruClassifier`."""

    def __init__(
        self, width: int, hidden_dim: int, num_layers: int, bidirectional: bool, dropout: float, pooling: Pooling
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.rnn = nn.GRU(width, hidden_dim, num_layers, bidirectional=bidirectional)
        self.fc = Head(pooled_width(hidden_dim, bidirectional, pooling), num_logits=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features_BTE: Tensor, lengths_B: Tensor) -> Tensor:
        """Returns logits_B; padding is never read."""
        x_TBE = features_BTE.transpose(0, 1).contiguous()
        if not torch.is_autocast_enabled(x_TBE.device.type):
            x_TBE = x_TBE.to(self.fc.weight.dtype)  # Features may be kept in bfloat16.
        pooled_BH = pooled_states(self.rnn, x_TBE, lengths_B, dropout=self.dropout, pooling=self.pooling)
        logits_B: Tensor = self.fc(self.dropout(pooled_BH))
        return logits_B


class BertGruClassifier(nn.Module):
    """Encoder and GRU; answers with the logit of the positive class.

    The arguments are explained where they are checked, in `sentiment.models.config.BertGruConfig`. The encoder's
    weights are left empty: they always come from a file.
    """

    def __init__(
        self,
        encoder: dict[str, Any],
        hidden_dim: int = 256,
        num_layers: int = 2,
        bidirectional: bool = True,
        dropout: float = 0.25,
        *,
        pooling: Pooling = "last",
    ) -> None:
        super().__init__()
        config = encoder_config(encoder)
        with no_init_weights():
            self.encoder: PreTrainedModel = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        self.encoder.requires_grad_(False)
        self.head = GruHead(config.hidden_size, hidden_dim, num_layers, bidirectional, dropout, pooling)

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Compute the logit of the positive class.

        Args:
            ids_BT: Token ids with the encoder's special tokens, padded on the right, int32 or int64.
            lengths_B: Real tokens of each row, at least 1.

        Returns:
            logits_B, float32 (bfloat16 under autocast).
        """
        logits_B: Tensor = self.head(_encode(self.encoder, ids_BT, lengths_B), lengths_B)
        return logits_B

    def train(self, mode: bool = True) -> BertGruClassifier:
        """Only the head drops out values; layers that are unfrozen are trained by `halves`."""
        super().train(mode)
        self.encoder.eval()  # type: ignore[no-untyped-call]
        return self

    def halves(self, unfreeze_layers: int) -> tuple[LowerLayers, UpperLayers]:
        """Cut the model in two that share its weights: what stays as it is, and what is trained.

        Args:
            unfreeze_layers: Top layers of the encoder to train.

        Raises:
            ConfigError: The encoder has no such layers, or this kind of encoder can't be cut.
        """
        config = self.encoder.config
        check_recipe(config.to_dict(), unfreeze_layers, max_length=1)
        if config.model_type in _STACKS:
            layers = self.encoder.get_submodule(_STACKS[config.model_type])
            assert isinstance(layers, nn.ModuleList)
        else:  # Never run by themselves: only their number counts.
            layers = nn.ModuleList(nn.Identity() for _ in range(config.num_hidden_layers))
        first = len(layers) - unfreeze_layers
        return LowerLayers(self.encoder, layers[:first]), UpperLayers(config, layers[first:], self.head)


class LowerLayers(nn.Module):
    """What is never trained: an encoder with some of its layers, always in evaluation mode and without gradients."""

    def __init__(self, encoder: PreTrainedModel, layers: nn.ModuleList) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = layers
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Returns features_BTE: the states after the last of the layers. Those of padding mean nothing."""
        if len(self.layers) == self.encoder.config.num_hidden_layers:
            return _encode(self.encoder, ids_BT, lengths_B)
        x_BTE: Tensor = self.encoder.get_submodule("embeddings")(input_ids=ids_BT)
        if hasattr(self.encoder, "embeddings_project"):  # ELECTRA's embeddings may be narrower than its layers
            x_BTE = self.encoder.get_submodule("embeddings_project")(x_BTE)
        return _run_layers(self.layers, x_BTE, lengths_B, self.encoder.config)

    def train(self, mode: bool = True) -> LowerLayers:
        """Stay in evaluation mode whatever is asked."""
        return super().train(False)


class UpperLayers(nn.Module):
    """What is trained: the encoder's top layers, if any, and the head. Takes features as the other models take ids."""

    def __init__(self, config: PretrainedConfig, layers: nn.ModuleList, head: GruHead) -> None:
        super().__init__()
        self.config = config
        self.layers = layers.requires_grad_(True)
        self.head = head

    def forward(self, features_BTE: Tensor, lengths_B: Tensor) -> Tensor:
        """Returns logits_B."""
        if len(self.layers):
            if not torch.is_autocast_enabled(features_BTE.device.type):
                features_BTE = features_BTE.to(self.head.fc.weight.dtype)
            features_BTE = _run_layers(self.layers, features_BTE, lengths_B, self.config)
        logits_B: Tensor = self.head(features_BTE, lengths_B)
        return logits_B


def check_recipe(encoder: dict[str, Any], unfreeze_layers: int, max_length: int) -> None:
    """Refuse what an encoder can't do.

    Args:
        encoder: The encoder's `config.json`.
        unfreeze_layers: Its top layers that are to be trained.
        max_length: Tokens of a text that it is to read.

    Raises:
        ConfigError: There aren't so many layers, or they can't be called one by one; or it has no more positions.
    """
    config = encoder_config(encoder)
    if unfreeze_layers > config.num_hidden_layers:
        raise ConfigError(f"--unfreeze-layers {unfreeze_layers}: the encoder has {config.num_hidden_layers} layers")
    if unfreeze_layers and config.model_type not in _STACKS:
        raise ConfigError(f"--unfreeze-layers: not with {config.model_type} encoders; with {', '.join(_STACKS)}")
    positions = getattr(config, "max_position_embeddings", None) or max_length
    if config.model_type in _COUNT_FROM_PADDING:
        positions -= config.pad_token_id + 1
    if max_length > positions:
        raise ConfigError(f"--max-length {max_length}: the encoder reads {positions} tokens")


def _encode(encoder: PreTrainedModel, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """The encoder's last hidden states, (B, T, E); on a CPU without gradients some rows at a time."""
    mask_BT = _is_token(ids_BT.shape[1], lengths_B)
    rows = max(1, _CACHED_TOKENS // ids_BT.shape[1])
    if ids_BT.device.type != "cpu" or torch.is_grad_enabled():
        rows = len(ids_BT)
    chunks = zip(ids_BT.split(rows), mask_BT.split(rows), strict=True)  # type: ignore[no-untyped-call]
    states = [encoder(input_ids=ids, attention_mask=mask).last_hidden_state for ids, mask in chunks]
    return torch.cat(states) if len(states) > 1 else states[0]


def _run_layers(layers: nn.ModuleList, x_BTE: Tensor, lengths_B: Tensor, config: PretrainedConfig) -> Tensor:
    mask_BT = _is_token(x_BTE.shape[1], lengths_B)
    mask = create_bidirectional_mask(config=config, inputs_embeds=x_BTE, attention_mask=mask_BT)
    for layer in layers:
        x_BTE = layer(x_BTE, attention_mask=mask)
    return x_BTE


def _is_token(length: int, lengths_B: Tensor) -> Tensor:
    """1 for tokens, 0 for padding: (B, T) int64."""
    return (torch.arange(length, device=lengths_B.device) < lengths_B[:, None]).long()
