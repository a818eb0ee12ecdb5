"""Recurrent classifiers: embedding → stacked (bi)directional RNN, GRU or LSTM → pooling → dropout → linear.

The weights are an `nn.RNN`'s, `nn.GRU`'s or `nn.LSTM`'s, under its own names, so state dicts are the ones people know;
the forward pass is `sentiment.models.recurrence`'s.

Shapes: B batch, T time (tokens, padded), E embedding, H what the head sees.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sentiment.models.head import Head, WordEmbedding, drop_words
from sentiment.models.recurrence import pooled_states, pooled_width
from sentiment.models.subwords import SubwordEmbedding
from sentiment.shapes import Cell, Pooling

_MODULES: dict[Cell, type[nn.RNN | nn.GRU | nn.LSTM]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentClassifier(nn.Module):
    """Recurrent classifier that answers with the logit of the positive class.

    The defaults are those of the notebook "Upgraded Sentiment Analysis" (bentrevett/pytorch-sentiment-analysis):
    25,002 × 100 embeddings, hidden 256, two LSTM layers, both directions, dropout 0.5; 4,810,857 parameters.

    Args:
        vocabulary_size: Rows of the embedding, special tokens included.
        embedding_dim: Width of a token's vector.
        hidden_dim: Width of one direction's state.
        num_layers: Stacked layers.
        bidirectional: Read the text from both ends.
        dropout: Share of values zeroed on the embeddings, between layers and before the linear layer, in training.
        cell: "rnn" (Elman, tanh), "gru" or "lstm".
        pooling: What the head sees of the last layer: "last", the state after each row's last token, of both
            directions; "max", each unit's maximum over the row's tokens; "concat", last, maximum and mean side by side
            (Howard & Ruder 2018, section 3.3).
        state_layers: With "last": layers from the top whose last states the head sees side by side.
        padded_length: With "last": tokens that every row is filled up to with padding, which is then read like words,
            as the first notebook does. 0: padding is never read.
        embedding_std: Spread of fresh word vectors. PyTorch's default of 1 drowns what an LSTM learns in its first
            epochs; 0.1 is about the size of its own weights.
        frozen_embedding: Keep the word vectors as they are.
        word_dropout: Share of tokens replaced by `unk_id` in training (Iyyer et al. 2015), so that the vector of
            unknown words is trained and no single word is relied on.
        num_logits: 1, or 2 for a head with one output for each class.
        pad_id: Token that fills short rows; its vector is zero and stays so.
        unk_id: Token that stands for unknown words.
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
        embedding_std: float = 1.0,
        frozen_embedding: bool = False,
        word_dropout: float = 0.0,
        num_logits: int = 1,
        pad_id: int = 1,
        unk_id: int = 0,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.state_layers = state_layers
        self.padded_length = padded_length
        self.word_dropout = word_dropout
        self.pad_id = pad_id
        self.unk_id = unk_id
        self.embedding: WordEmbedding | SubwordEmbedding = WordEmbedding(
            vocabulary_size, embedding_dim, pad_id, embedding_std, frozen_embedding
        )
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
        if self.training:
            ids_BT = drop_words(ids_BT, self.word_dropout, unk_id=self.unk_id, pad_id=self.pad_id)
        if self.padded_length:
            ids_BT = pad(ids_BT, (0, self.padded_length - ids_BT.shape[1]), value=self.pad_id)
            lengths_B = torch.full_like(lengths_B, self.padded_length)
        x_TBE = self.dropout(self.embedding(ids_BT.t().contiguous()))
        pooled_BH = pooled_states(
            self.rnn, x_TBE, lengths_B, dropout=self.dropout, pooling=self.pooling, state_layers=self.state_layers
        )
        logits_B: Tensor = self.fc(self.dropout(pooled_BH))
        return logits_B
