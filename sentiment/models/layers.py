"""What word-level models share: word vectors, helped by character n-grams in training, at the bottom; logits on top.

A tweet's words are rare, misspelled and stretched; "loooved" has seen too few labels to have a vector worth the name,
but its n-grams have seen "loved" (Bojanowski et al. 2017). Since the vocabulary is fixed, the sum of both is a plain
table again once training is over: `folded` makes it, and what predicts is as fast as without n-grams.

Shapes: … any, B batch, T tokens, E width of a word vector, H width of what the head sees, V vocabulary, U distinct
tokens of a batch, G n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

# Characters of n-grams. As in fastText, but up to 5 and not 6 characters: a third fewer vectors.
_NGRAM_LENGTHS = (3, 4, 5)


class WordEmbedding(nn.Embedding):
    """A table of word vectors, new ones drawn from a normal; the vector of padding is zero and stays so.

    Args:
        vocabulary_size: Rows, special tokens included.
        embedding_dim: Width.
        pad_id: Token that fills short rows.
        std: Initial standard deviation.
        is_frozen: Never train them.
    """

    def __init__(self, vocabulary_size: int, embedding_dim: int, pad_id: int, std: float, is_frozen: bool) -> None:
        super().__init__(vocabulary_size, embedding_dim, padding_idx=pad_id)
        with torch.no_grad():
            self.weight.mul_(std)
        self.weight.requires_grad_(not is_frozen)


class SubwordEmbedding(nn.Module):
    """A word's vector plus the mean of its n-grams' vectors.

    Args:
        words: The words' own vectors.
        tokens: The words in the order of their ids.
        std: Initial standard deviation of the n-grams' vectors.
        special: Ids that are no words and have no n-grams.
    """

    grams_G: Tensor
    offsets_V: Tensor

    def __init__(self, words: WordEmbedding, tokens: Sequence[str], std: float, special: Sequence[int]) -> None:
        super().__init__()
        self.words = words
        ngrams = [set() if index in special else _ngrams(token) for index, token in enumerate(tokens)]
        # Sorted, so that every process numbers them alike. Those of a single word stay: without them tweets lose 0.1
        # to 0.4 points.
        ids = {ngram: index for index, ngram in enumerate(sorted(set().union(*ngrams)))}
        rows = [sorted(ids[ngram] for ngram in found) for found in ngrams]
        # All words' n-grams one after another, and where each word's begin. Not in state dicts: they follow from the
        # tokenizer.
        grams_G = torch.tensor([gram for row in rows for gram in row], dtype=torch.int64)
        self.register_buffer("grams_G", grams_G, persistent=False)
        self.register_buffer("offsets_V", torch.tensor([0, *map(len, rows)]).cumsum(0), persistent=False)
        self.ngrams = nn.Embedding(max(1, len(ids)), words.embedding_dim)
        with torch.no_grad():
            self.ngrams.weight.mul_(std)

    def forward(self, ids: Tensor) -> Tensor:
        """Look tokens up.

        Args:
            ids: (…) int32 or int64.

        Returns:
            (…, E)
        """
        # A batch has many times the same words: each one's n-grams are added up once.
        distinct_U, inverse = torch.unique(ids, return_inverse=True)
        own: Tensor = self.words(ids)
        return own + self._means(distinct_U.long())[inverse]

    def folded(self) -> WordEmbedding:
        """Add the n-grams to the words' own vectors: a plain table that gives the same. Ends this one's use."""
        with torch.no_grad():
            self.words.weight += self._means(torch.arange(self.words.num_embeddings, device=self.words.weight.device))
        return self.words

    def _means(self, ids_U: Tensor) -> Tensor:
        """Mean of the n-grams' vectors of words; zero for a word without any. Returns (U, E)."""
        starts_U = self.offsets_V[ids_U]
        counts_U = self.offsets_V[ids_U + 1] - starts_U
        bags_U = counts_U.cumsum(0) - counts_U
        indices_G = torch.arange(int(counts_U.sum()), device=ids_U.device)
        indices_G = indices_G + torch.repeat_interleave(starts_U - bags_U, counts_U)
        return embedding_bag(self.grams_G[indices_G], self.ngrams.weight, bags_U, mode="mean")


class WordClassifier(nn.Module):
    """Base of word-level models: their embedding and word dropout.

    The arguments are explained where they are checked, in `sentiment.models.config`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        *,
        embedding_std: float = 1.0,
        frozen_embedding: bool = False,
        word_dropout: float = 0.0,
        pad_id: int = 1,
        unk_id: int = 0,
    ) -> None:
        super().__init__()
        self.word_dropout, self.pad_id, self.unk_id = word_dropout, pad_id, unk_id
        self.embedding: WordEmbedding | SubwordEmbedding = WordEmbedding(
            vocabulary_size, embedding_dim, pad_id, embedding_std, frozen_embedding
        )

    def drop_words(self, ids_BT: Tensor) -> Tensor:
        """In training replace a random share of the tokens by the unknown word; padding stays padding."""
        if not self.training or self.word_dropout == 0:
            return ids_BT
        dropped_BT = torch.rand(ids_BT.shape, device=ids_BT.device) < self.word_dropout
        return ids_BT.masked_fill(dropped_BT & (ids_BT != self.pad_id), self.unk_id)


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


def _ngrams(word: str) -> set[str]:
    marked = f"<{word}>"
    return {marked[i : i + length] for length in _NGRAM_LENGTHS for i in range(len(marked) - length + 1)}
