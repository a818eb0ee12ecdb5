"""Word vectors that are helped by their character n-grams while they are trained (Bojanowski et al. 2017).

A tweet's words are rare, misspelt and stretched; "loooved" has seen too few labels to have a vector worth the name, but
its n-grams have seen "loved". Since the vocabulary is fixed, the sum of both is a plain table again once training is
over: `folded` makes it, and what predicts knows nothing of n-grams and is as fast as without.

Shapes: … any, E width, U distinct tokens of a batch, G n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from sentiment.models.head import WordEmbedding

# As in fastText, but up to 5 and not 6 characters: a third fewer vectors.
_LENGTHS = (3, 4, 5)


class SubwordEmbedding(nn.Module):
    """A word's vector plus the mean of its n-grams' vectors.

    Args:
        words: The words' own vectors.
        tokens: The words in the order of their ids.
        std: Spread of fresh n-gram vectors.
        special: Ids that are no words and have no n-grams.
    """

    grams_G: Tensor
    offsets_V: Tensor

    def __init__(self, words: WordEmbedding, tokens: Sequence[str], std: float, special: Sequence[int]) -> None:
        super().__init__()
        self.words = words
        grams, offsets, num_grams = _table(tokens, special)
        # Not in state dicts: they follow from the tokenizer.
        self.register_buffer("grams_G", grams, persistent=False)
        self.register_buffer("offsets_V", offsets, persistent=False)
        self.ngrams = nn.Embedding(max(1, num_grams), words.embedding_dim)
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
        distinct_U, places = torch.unique(ids, return_inverse=True)
        own: Tensor = self.words(ids)
        return own + self._means(distinct_U.long())[places]

    def folded(self) -> WordEmbedding:
        """Add the n-grams to the words' own vectors: a plain table that gives the same. Ends this one's use."""
        with torch.no_grad():
            self.words.weight += self._means(torch.arange(self.words.num_embeddings, device=self.words.weight.device))
        return self.words

    def _means(self, ids_U: Tensor) -> Tensor:
        """Mean of the n-grams' vectors of words; zero for a word without any. Returns (U, E)."""
        starts_U = self.offsets_V[ids_U]
        counts_U = self.offsets_V[ids_U + 1] - starts_U
        begins_U = counts_U.cumsum(0) - counts_U
        places_G = torch.arange(int(counts_U.sum()), device=ids_U.device)
        places_G = places_G + torch.repeat_interleave(starts_U - begins_U, counts_U)
        return embedding_bag(self.grams_G[places_G], self.ngrams.weight, begins_U, mode="mean")


def _table(tokens: Sequence[str], special: Sequence[int]) -> tuple[Tensor, Tensor, int]:
    """N-gram ids of all words, one after another; V + 1 positions where each word's begin; number of n-grams."""
    grams = [set() if number in special else _ngrams(token) for number, token in enumerate(tokens)]
    # Sorted, so that every process numbers them alike. Those of a single word stay: without them tweets lose 0.1 to 0.4
    # points.
    ids = {gram: number for number, gram in enumerate(sorted(set().union(*grams)))}
    rows = [sorted(ids[gram] for gram in found) for found in grams]
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return torch.tensor([gram for row in rows for gram in row], dtype=torch.int64), offsets, len(ids)


def _ngrams(word: str) -> set[str]:
    marked = f"<{word}>"
    return {marked[at : at + length] for length in _LENGTHS for at in range(len(marked) - length + 1)}
