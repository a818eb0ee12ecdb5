"""The two ends that all word-level models share: word vectors at the bottom, one or two logits on top.

Shapes: B batch, T tokens, H width of what the head sees.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WordEmbedding(nn.Embedding):
    """A table of word vectors, fresh ones drawn from a normal; the vector of padding is zero and stays so.

    Args:
        vocabulary_size: Rows, special tokens included.
        embedding_dim: Width.
        pad_id: Token that fills short rows.
        std: Spread of fresh vectors.
        is_frozen: Never train them.
    """

    def __init__(self, vocabulary_size: int, embedding_dim: int, pad_id: int, std: float, is_frozen: bool) -> None:
        super().__init__(vocabulary_size, embedding_dim, padding_idx=pad_id)
        with torch.no_grad():
            self.weight.mul_(std)
        self.weight.requires_grad_(not is_frozen)


class Head(nn.Linear):
    """Linear layer that ends in the logit of the positive class, from one output or from one for each class.

    With two outputs the cross-entropy of their softmax is the binary cross-entropy of their difference, and so are the
    gradients; a two-logit model is therefore trained and read like a one-logit model.

    Args:
        width: Values that it sees of a row.
        num_logits: 1 or 2.
    """

    def __init__(self, width: int, num_logits: int) -> None:
        super().__init__(width, num_logits)

    def forward(self, pooled_BH: Tensor) -> Tensor:
        """Returns logits_B."""
        outputs_BC = super().forward(pooled_BH)
        if self.out_features == 1:
            return outputs_BC.squeeze(1)
        return outputs_BC[:, 1] - outputs_BC[:, 0]


def drop_words(ids_BT: Tensor, share: float, *, unk_id: int, pad_id: int) -> Tensor:
    """Replace a random share of the tokens by the unknown word; padding stays padding."""
    if share == 0:
        return ids_BT
    dropped_BT = torch.rand(ids_BT.shape, device=ids_BT.device) < share
    return ids_BT.masked_fill(dropped_BT & (ids_BT != pad_id), unk_id)
