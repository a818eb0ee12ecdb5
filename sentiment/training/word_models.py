"""Training runs of models on word vectors, and the pretrained vectors that they start from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sentiment.batching import Examples
from sentiment.data.prepared import PreparedData
from sentiment.errors import DataError
from sentiment.models.build import build_model
from sentiment.models.layers import SubwordEmbedding, WordClassifier, WordEmbedding
from sentiment.schema import TRAIN
from sentiment.training.recipes import WordRecipe
from sentiment.training.run import Rank, Run
from sentiment.vectors.loading import load_vectors
from sentiment.vectors.space import EmbeddingTable, PretrainedVectors

_log = logging.getLogger(__name__)

# Of word vectors where neither the recipe nor pretrained vectors say; the notebooks'.
_DEFAULT_WIDTH = 100


@dataclass(frozen=True)
class InitialVectors:
    """Pretrained vectors for a tokenizer's words, and what they cover.

    Attributes:
        name: File or name that they come from.
        table: Rows for the embedding.
        token_coverage: Share of the training rows' tokens that have a vector.
    """

    name: str
    table: EmbeddingTable
    token_coverage: float

    @property
    def summary(self) -> str:
        """For people."""
        words, known = len(self.table.is_known_V), int(self.table.is_known_V.sum())
        return (
            f"{self.name}: vectors for {known:,} of {words:,} words ({known / words:.1%}), "
            f"{self.token_coverage:.1%} of all tokens"
        )


def load_initial_vectors(
    recipe: WordRecipe, data: str, seed: int, load: Callable[[str], PretrainedVectors] = load_vectors
) -> InitialVectors | None:
    """Look the vocabulary's words up in the recipe's vectors.

    Args:
        recipe: Names the vectors, and how the vectors of other words are drawn.
        data: Prepared folder with vocabulary and training rows.
        seed: Of those draws.
        load: Reads vectors; a caller with many runs keeps them.

    Returns:
        None if the recipe takes no vectors.

    Raises:
        DataError: The vectors can't be read or fetched, or know none of the words.
    """
    if recipe.vectors is None:
        return None
    prepared, vectors = PreparedData(data), load(recipe.vectors)
    width = max(vectors.dim, recipe.embedding_dim or 0)
    table = vectors.table(
        prepared.tokenizer().tokens, std=recipe.embedding_std, seed=seed, width=width, scale=recipe.vector_scale
    )
    if not table.is_known_V.any():
        raise DataError(f"vectors {recipe.vectors} know none of the words of {prepared.uri}: another language or file?")
    counts_V = np.bincount(prepared.examples(TRAIN).ids, minlength=len(table.is_known_V))
    coverage = float(counts_V[table.is_known_V].sum() / counts_V.sum())
    return InitialVectors(Path(recipe.vectors).name, table, coverage)


@dataclass(kw_only=True, eq=False, repr=False)
class WordRun(Run):
    """A run of a word-level recipe.

    Attributes:
        recipe: Model and optimizer settings.
        vectors: Word vectors to start from.
    """

    recipe: WordRecipe
    vectors: InitialVectors | None = None

    @property
    def digests(self) -> dict[str, Any]:
        """The vectors' folder may differ: they are in the checkpoint's weights by then."""
        return {"vectors": Path(self.recipe.vectors).name} if self.recipe.vectors else {}

    def find_inputs(self) -> None:
        """Load the vectors that the recipe asks for, and say what they cover.

        Raises:
            DataError: They can't be read or fetched.
        """
        self.vectors = load_initial_vectors(self.recipe, self.data, self.seed)
        if self.vectors is not None:
            _log.info(self.vectors.summary)

    def load(self, rank: Rank) -> None:
        """Read the tokenizer and build the model, with pretrained vectors if there are any."""
        recipe, vectors = self.recipe, self.vectors
        tokenizer = PreparedData(self.data).tokenizer()
        width = vectors.table.matrix_VE.shape[1] if vectors else recipe.embedding_dim or _DEFAULT_WIDTH
        config = recipe.config(tokenizer.vocabulary_size, width, tokenizer.pad_id, tokenizer.unk_id)
        torch.manual_seed(self.seed)
        model = build_model(config)
        assert isinstance(model, WordClassifier)
        assert isinstance(model.embedding, WordEmbedding)
        if vectors:
            with torch.no_grad():
                model.embedding.weight.copy_(torch.from_numpy(vectors.table.matrix_VE))
        if recipe.subwords:
            special = (tokenizer.unk_id, tokenizer.pad_id)
            model.embedding = SubwordEmbedding(model.embedding, tokenizer.tokens, recipe.embedding_std, special)
        self.rank, self.tokenizer, self.config = rank, tokenizer, config
        self.model = self.full_model = model
        self.details = {
            "vectors": vectors.name if vectors else None,
            "token_coverage": vectors.token_coverage if vectors else None,
        }

    def rows(self, split: str) -> Examples:
        """Token ids of a split."""
        return PreparedData(self.data).examples(split)

    def end_training(self) -> None:
        """Fold n-grams into the word vectors: what is measured is the model of the bundle."""
        assert isinstance(self.model, WordClassifier)
        if isinstance(self.model.embedding, SubwordEmbedding):
            self.model.embedding = self.model.embedding.folded()
