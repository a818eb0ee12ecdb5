"""Pretrained vectors for the words of prepared data, and what they cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sentiment.corpora.prepared import PreparedData
from sentiment.errors import DataError
from sentiment.recipe import WordRecipe
from sentiment.schema import TRAIN
from sentiment.vectors.loading import load_vectors
from sentiment.vectors.space import EmbeddingTable, PretrainedVectors


@dataclass(frozen=True)
class Pretrained:
    """Rows of pretrained vectors for a tokenizer's words, and what they cover.

    Attributes:
        name: File or name that they come from.
        table: Rows for the embedding.
        word_coverage: Share of the vocabulary that has a vector.
        token_coverage: Share of the training rows' tokens that have one.
    """

    name: str
    table: EmbeddingTable
    word_coverage: float
    token_coverage: float

    @property
    def line(self) -> str:
        """For people."""
        words, known = len(self.table.is_known_V), int(self.table.is_known_V.sum())
        return (
            f"{self.name}: vectors for {known:,} of {words:,} words ({self.word_coverage:.1%}), "
            f"{self.token_coverage:.1%} of all tokens"
        )


def load_pretrained(
    recipe: WordRecipe,
    prepared: PreparedData,
    seed: int,
    load: Callable[[str], PretrainedVectors] = load_vectors,
) -> Pretrained | None:
    """Look the vocabulary's words up in the recipe's vectors.

    Args:
        recipe: Names the vectors, and how the vectors of other words are drawn.
        prepared: Vocabulary and training rows.
        seed: Of those draws.
        load: Reads vectors; a caller with many runs keeps them.

    Returns:
        None if the recipe takes no vectors.

    Raises:
        DataError: The vectors can't be read or fetched.
    """
    if recipe.vectors is None:
        return None
    vectors = load(recipe.vectors)
    width = max(vectors.dim, recipe.embedding_dim or 0)
    table = vectors.table(
        prepared.tokenizer().tokens, std=recipe.embedding_std, seed=seed, width=width, scale=recipe.vector_scale
    )
    if not table.is_known_V.any():
        raise DataError(f"vectors {recipe.vectors} know none of the words of {prepared.uri}: another language or file?")
    counts_V = np.bincount(prepared.examples(TRAIN).ids, minlength=len(table.is_known_V))
    return Pretrained(
        name=Path(recipe.vectors).name,
        table=table,
        word_coverage=float(table.is_known_V.mean()),
        token_coverage=float(counts_V[table.is_known_V].sum() / counts_V.sum()),
    )
