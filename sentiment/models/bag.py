"""A bag of word vectors: their sum through a small MLP. It doesn't know the order of words; it is what order is worth.

Shapes: B batch, T tokens, E width of a word vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from sentiment.models.head import Head, WordEmbedding, drop_words
from sentiment.models.subwords import SubwordEmbedding


class BagClassifier(nn.Module):
    """Sum of word vectors → linear layers with ReLU → the logit of the positive class.

    Args:
        vocabulary_size: Rows of the embedding, special tokens included.
        embedding_dim: Width of a token's vector.
        hidden_dims: Widths of the layers between the sum and the head.
        dropout: Share of values zeroed before each layer, in training.
        embedding_std: Spread of fresh word vectors.
        frozen_embedding: Keep the word vectors as they are.
        word_dropout: Share of tokens replaced by `unk_id` in training.
        num_logits: 1, or 2 for a head with one output for each class.
        pad_id: Token that fills short rows; its vector is zero and stays so.
        unk_id: Token that stands for unknown words.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        hidden_dims: Sequence[int],
        *,
        dropout: float = 0.0,
        embedding_std: float = 1.0,
        frozen_embedding: bool = False,
        word_dropout: float = 0.0,
        num_logits: int = 1,
        pad_id: int = 1,
        unk_id: int = 0,
    ) -> None:
        super().__init__()
        self.word_dropout = word_dropout
        self.pad_id = pad_id
        self.unk_id = unk_id
        self.embedding: WordEmbedding | SubwordEmbedding = WordEmbedding(
            vocabulary_size, embedding_dim, pad_id, embedding_std, frozen_embedding
        )
        widths = [embedding_dim, *hidden_dims]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.fc = Head(widths[-1], num_logits)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Compute the logit of the positive class.

        Args:
            ids_BT: Token ids, padded on the right, int32 or int64.
            lengths_B: Not needed: the vector of padding is zero and adds nothing to a sum.

        Returns:
            logits_B, float32 (bfloat16 under autocast).
        """
        if self.training:
            ids_BT = drop_words(ids_BT, self.word_dropout, unk_id=self.unk_id, pad_id=self.pad_id)
        x_BE = self.embedding(ids_BT).sum(dim=1)
        for layer in self.hidden:
            x_BE = layer(self.dropout(x_BE)).relu()
        logits_B: Tensor = self.fc(self.dropout(x_BE))
        return logits_B
