"""A look at the stereotypes that word vectors pick up from their texts, before a model inherits them.

After Bolukbasi et al., "Man is to Computer Programmer as Woman is to Homemaker? Debiasing Word Embeddings" (NeurIPS
2016). It shows associations of the training texts, nothing about people; a lean near 0 doesn't prove a word neutral.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sentiment.vectors.space import Metric, Neighbour, PretrainedVectors

OCCUPATIONS = (
    *("doctor", "nurse", "engineer", "teacher", "scientist", "lawyer", "secretary", "professor"),
    *("manager", "artist", "soldier", "programmer"),
)


@dataclass(frozen=True)
class BiasRow:
    """One word, moved along the line between the pair."""

    word: str
    lean: float
    """cos(word, second) − cos(word, first) of the pair; above 0 it is nearer to the second."""
    toward_second: list[Neighbour]
    """Nearest to word − first + second."""
    toward_first: list[Neighbour]
    """Nearest to word − second + first."""


@dataclass(frozen=True)
class BiasProbe:
    """What `bias_probe` found."""

    pair: tuple[str, str]
    rows: list[BiasRow]
    missing: list[str]
    """Words that have no vector."""


def bias_probe(
    vectors: PretrainedVectors,
    occupations: Sequence[str] = OCCUPATIONS,
    pair: tuple[str, str] = ("man", "woman"),
    count: int = 5,
    metric: Metric = "cosine",
) -> BiasProbe:
    """Moves each word from one of a pair to the other and back, and measures to which it is nearer.

    Unlike an analogy, only the word itself is left out of the nearest: that the pair's own words come up is a finding.

    Args:
        vectors: Where the words are looked up.
        occupations: The words to probe.
        pair: Two words that should not matter for them.
        count: Nearest words for each direction.
        metric: As for `PretrainedVectors.nearest`.

    Returns:
        A row for each word in the order given; the words without a vector apart.

    Raises:
        DataError: A word of the pair has no vector.
    """
    assert not isinstance(occupations, str), "occupations must be a sequence of words, not one word"
    first, second = pair
    step_E = vectors.vector(second) - vectors.vector(first)
    rows = []
    for word in occupations:
        if word not in vectors:
            continue
        word_E = vectors.vector(word)
        rows.append(
            BiasRow(
                word,
                lean=vectors.similarity(word, second).cosine - vectors.similarity(word, first).cosine,
                toward_second=vectors.nearest(word_E + step_E, count, metric, leave_out=(word,)),
                toward_first=vectors.nearest(word_E - step_E, count, metric, leave_out=(word,)),
            )
        )
    return BiasProbe(pair, rows, [word for word in occupations if word not in vectors])
