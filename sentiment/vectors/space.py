"""Queries on word vectors: nearest words, similarity, analogies, the rows of a model's embedding, a probe for bias.

Names of tensors end in their shape: W words of the vectors, E width of a vector, V entries of a model's vocabulary.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sentiment.errors import ConfigError, DataError, unknown

Metric = Literal["cosine", "euclid"]
OCCUPATIONS = (
    *("doctor", "nurse", "engineer", "teacher", "scientist", "lawyer", "secretary", "professor"),
    *("manager", "artist", "soldier", "programmer"),
)

# Words that a misspelled one is compared with. The files go from frequent to rare; all 400,000 would take seconds.
_COMPARED_WORDS = 20_000


@dataclass(frozen=True)
class Similarity:
    """How near two words are: cosine (1 is the same direction, 0 for a zero vector) and Euclidean distance."""

    cosine: float
    distance: float


@dataclass(frozen=True)
class Neighbor:
    """A word and how near it is to what was asked."""

    word: str
    cosine: float
    distance: float


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """Where a model's embedding starts from."""

    matrix_VE: npt.NDArray[np.float32]
    is_known_V: npt.NDArray[np.bool_]
    """Which rows come from the vectors; the others are random, or zero for special tokens."""


@dataclass(frozen=True, eq=False)
class PretrainedVectors:
    """Words and their vectors. Immutable, so threads may share it.

    Words are looked up as given, then in lower case, for GloVe 6B knows no capitals.
    """

    name: str
    words: list[str] = field(repr=False)
    matrix_WE: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        assert self.matrix_WE.dtype == torch.float32
        assert self.matrix_WE.ndim == 2
        assert len(self.words) == len(self.matrix_WE)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.matrix_WE.shape[1]

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self._row(word) is not None

    @cached_property
    def unit_WE(self) -> Tensor:  # noqa: N802
        """The vectors scaled to length 1; a zero vector stays zero."""
        return _unit(self.matrix_WE)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.words)}

    def _row(self, word: str) -> int | None:
        row = self._row_of.get(word)
        return self._row_of.get(word.lower()) if row is None else row

    def vector(self, word: str) -> Tensor:
        """Look a word up.

        Args:
            word: As given, or else in lower case.

        Returns:
            A copy of its vector, of shape (E,).

        Raises:
            DataError: The word has no vector; names near ones.
        """
        row = self._row(word)
        if row is None:
            near = difflib.get_close_matches(word.lower(), self.words[:_COMPARED_WORDS], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "try a more common word"
            raise DataError(f"no vector for the word {word!r} among the {len(self):,} words of {self.name}: {hint}")
        return self.matrix_WE[row].clone()

    def similarity(self, a: str, b: str) -> Similarity:
        """Compare two words by cosine and Euclidean distance.

        Args:
            a: One word.
            b: The other.

        Raises:
            DataError: A word has no vector.
        """
        a_E, b_E = self.vector(a), self.vector(b)
        cosine = float(_unit(a_E) @ _unit(b_E))
        # Rounding may lead just past 1, where acos has no value.
        return Similarity(max(-1.0, min(1.0, cosine)), float(torch.dist(a_E, b_E)))

    def nearest(
        self, query: str | Tensor, count: int = 10, metric: Metric = "cosine", leave_out: Iterable[str] = ()
    ) -> list[Neighbor]:
        """Find the words nearest to a word or a point.

        Args:
            query: A word, which is left out itself, or a vector of shape (E,).
            count: Words to return; fewer if there aren't as many.
            metric: What near means: a small angle ("cosine") or a small distance ("euclid").
            leave_out: Words that are not to be returned.

        Returns:
            The nearest first, each with cosine and distance to the query.

        Raises:
            DataError: The word has no vector.
            ConfigError: There is no such metric.
        """
        assert count > 0, count
        if metric not in get_args(Metric):
            raise unknown("metric", metric, get_args(Metric), "nearest words")
        left_out = set(leave_out)
        if isinstance(query, str):
            left_out.add(query)
            query = self.vector(query)
        assert query.shape == (self.dim,), f"a query has shape ({self.dim},), not {tuple(query.shape)}"
        query_E = query.to(self.matrix_WE)

        cosine_W = (self.unit_WE @ _unit(query_E)).clamp(-1, 1)
        # Differences one by one: by way of the dot product, nearly equal vectors would cancel to noise.
        distance_W = torch.cdist(query_E[None], self.matrix_WE, compute_mode="donot_use_mm_for_euclid_dist")[0]
        score_W = cosine_W.clone() if metric == "cosine" else -distance_W
        rows = {row for word in left_out if (row := self._row(word)) is not None}
        score_W[list(rows)] = -torch.inf
        best = torch.topk(score_W, min(count, len(self) - len(rows))).indices
        return [
            Neighbor(self.words[row], cosine, distance)
            for row, cosine, distance in zip(
                best.tolist(), cosine_W[best].tolist(), distance_W[best].tolist(), strict=True
            )
        ]

    def analogy(self, a: str, b: str, c: str, count: int = 10, metric: Metric = "cosine") -> list[Neighbor]:
        """Find what is to `c` as `a` is to `b`: the words nearest to a − b + c (king − man + woman ≈ queen).

        The three words themselves are left out, as Mikolov, Yih and Zweig do ("Linguistic regularities in continuous
        space word representations", NAACL 2013); otherwise `a` or `c` is mostly the nearest.

        Args:
            a: Where to start.
            b: What is subtracted.
            c: What is added.
            count: As for `nearest`, like the rest.
            metric: What near means.

        Raises:
            DataError: A word has no vector.
        """
        point_E = self.vector(a) - self.vector(b) + self.vector(c)
        return self.nearest(point_E, count, metric, leave_out=(a, b, c))

    def midpoint(self, a: str, b: str, count: int = 10, metric: Metric = "cosine") -> list[Neighbor]:
        """Find what lies between two words: the words nearest to their mean, the two left out.

        Args:
            a: One word.
            b: The other.
            count: As for `nearest`, like the rest.
            metric: What near means.

        Raises:
            DataError: A word has no vector.
        """
        return self.nearest((self.vector(a) + self.vector(b)) / 2, count, metric, leave_out=(a, b))

    def table(
        self,
        tokens: Sequence[str],
        *,
        std: float,
        seed: int,
        width: int | None = None,
        scale: float = 1.0,
        special: Collection[str] = ("<unk>", "<pad>"),
    ) -> EmbeddingTable:
        """Put together the rows that a model's embedding starts from.

        Args:
            tokens: The model's vocabulary in the order of its ids.
            std: Of the normal distribution that what these vectors don't fill is drawn from; 0 makes it zero.
            seed: The same seed, tokens and width give the same rows.
            width: E; theirs if not given. In wider rows they fill the first columns.
            scale: Factor on these vectors.
            special: Tokens that stand for no word; their rows are zero.

        Returns:
            The matrix, of shape (V, E), and which of its rows come from these vectors.

        Raises:
            ConfigError: The vectors are wider than `width`.
        """
        width = width or self.dim
        if width < self.dim:
            raise ConfigError(f"{self.name} has vectors of {self.dim} numbers, a width of {width} would cut them")
        assert std >= 0, std
        assert not isinstance(special, str), "special must be a collection of tokens, not one token"
        rows = [None if token in special else self._row(token) for token in tokens]
        is_known_V = np.array([row is not None for row in rows], dtype=np.bool_)
        # Drawn for all rows, so that a word's own doesn't depend on which others have vectors.
        matrix_VE = np.random.default_rng(seed).standard_normal((len(tokens), width), dtype=np.float32)
        matrix_VE *= std
        matrix_VE[[token in special for token in tokens]] = 0
        matrix_VE[is_known_V, : self.dim] = self.matrix_WE.numpy()[[row for row in rows if row is not None]] * scale
        return EmbeddingTable(matrix_VE, is_known_V)


@dataclass(frozen=True)
class BiasRow:
    """One word, moved along the line between the pair."""

    word: str
    lean: float
    """cos(word, second) − cos(word, first) of the pair; above 0 it is nearer to the second."""
    toward_second: list[Neighbor]
    """Nearest to word − first + second."""
    toward_first: list[Neighbor]
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
    """Move each word from one of a pair to the other and back, and measure to which it is nearer.

    It shows the stereotypes that word vectors pick up from their texts, before a model inherits them (after Bolukbasi
    et al., "Man is to Computer Programmer as Woman is to Homemaker? Debiasing Word Embeddings", NeurIPS 2016). It says
    nothing about people, and a lean near 0 doesn't prove a word neutral. Unlike in an analogy, only the word itself is
    left out of the nearest: that the pair's own words come up is a finding.

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


def _unit(vectors: Tensor) -> Tensor:
    """Scale vectors (..., E) to length 1; zero stays zero instead of becoming NaN."""
    return torch.nn.functional.normalize(vectors, dim=-1)
