"""A bag of word vectors: their sum through a small MLP. It ignores the order of words; it is what order is worth.

Shapes: B batch, T tokens, E width of a word vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from sentiment.models.layers import Head, WordClassifier


class BagClassifier(WordClassifier):
    """Sum of word vectors → linear layers with ReLU → the logit of the positive class.

    The arguments are explained where they are checked, in `sentiment.models.config.BagConfig`; `embedding` are those of
    `WordClassifier`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        hidden_dims: Sequence[int],
        *,
        dropout: float = 0.0,
        num_logits: int = 1,
        **embedding: Any,
    ) -> None:
        super().__init__(vocabulary_size, embedding_dim, **embedding)
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
        x_BE = self.embedding(self.drop_words(ids_BT)).sum(dim=1)
        for layer in self.hidden:
            x_BE = layer(self.dropout(x_BE)).relu()
        logits_B: Tensor = self.fc(self.dropout(x_BE))
        return logits_B
