"""Recurrent classifiers: embedding → stacked (bi)directional RNN, GRU or LSTM → pooling → dropout → linear.

The weights are an `nn.RNN`'s, `nn.GRU`'s or `nn.LSTM`'s, under its own names, so state dicts are the ones people know;
the forward pass is `sentiment.models.recurrence`'s.

Shapes: B batch, T time (tokens, padded), E embedding, H what the head sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sentiment.models.config import Cell, Pooling
from sentiment.models.layers import Head, WordClassifier
from sentiment.models.recurrence import pooled_states, pooled_width

_MODULES: dict[Cell, type[nn.RNN | nn.GRU | nn.LSTM]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentClassifier(WordClassifier):
    """Recurrent classifier that answers with the logit of the positive class.

    The defaults are those of the notebook "Upgraded Sentiment Analysis" (bentrevett/pytorch-sentiment-analysis):
    25,002 × 100 embeddings, hidden 256, two LSTM layers, both directions, dropout 0.5; 4,810,857 parameters.

    The arguments are explained where they are checked, in `sentiment.models.config.RecurrentConfig`; `embedding` are
    those of `WordClassifier`.
    """

    def __init__(
        self,
        vocabulary_size: int = 25_002,
        embedding_dim: int = 100,
        hidden_dim: int = 256,
        num_layers: int = 2,
        bidirectional: bool = True,
        dropout: float = 0.5,
        *,
        cell: Cell = "lstm",
        pooling: Pooling = "last",
        state_layers: int = 1,
        padded_length: int = 0,
        num_logits: int = 1,
        **embedding: Any,
    ) -> None:
        super().__init__(vocabulary_size, embedding_dim, **embedding)
        self.pooling = pooling
        self.state_layers = state_layers
        self.padded_length = padded_length
        # Holds the weights; its own forward is not called.
        self.rnn = _MODULES[cell](embedding_dim, hidden_dim, num_layers, bidirectional=bidirectional)
        self.fc = Head(pooled_width(hidden_dim, bidirectional, pooling, state_layers), num_logits)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Compute the logit of the positive class.

        Args:
            ids_BT: Token ids, padded on the right, int32 or int64.
            lengths_B: Real tokens of each row, at least 1.

        Returns:
            logits_B, float32 (bfloat16 under autocast).
        """
        ids_BT = self.drop_words(ids_BT)
        if self.padded_length:
            ids_BT = pad(ids_BT, (0, self.padded_length - ids_BT.shape[1]), value=self.pad_id)
            lengths_B = torch.full_like(lengths_B, self.padded_length)
        x_TBE = self.dropout(self.embedding(ids_BT.t().contiguous()))
        pooled_BH = pooled_states(
            self.rnn, x_TBE, lengths_B, dropout=self.dropout, pooling=self.pooling, state_layers=self.state_layers
        )
        logits_B: Tensor = self.fc(self.dropout(pooled_BH))
        return logits_B
