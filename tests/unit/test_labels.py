"""Labels: what is understood, and that a scale never passes for positive and negative."""

from __future__ import annotations

import pytest

from sentiment.corpora.labels import NEUTRAL, read_label, refuse_scale
from sentiment.errors import DataError


@pytest.mark.parametrize("value", [0, "0", 0.0, "neg", "Negative", False, " 0 "])
def test_negative(value: object) -> None:
    assert read_label(value, has_neutral=False) == (0, None)


@pytest.mark.parametrize("value", [1, "1", 1.0, "pos", "POSITIVE", True, 4, "4"])
def test_positive(value: object) -> None:
    assert read_label(value, has_neutral=False) == (1, None)


def test_two_is_neutral_in_sentiment140_alone() -> None:
    assert read_label("2", has_neutral=True) == (None, NEUTRAL)
    label, reason = read_label("2", has_neutral=False)
    assert label is None
    assert reason is not None and reason.startswith("unknown label '2'")


def stars(counts: dict[int, int]) -> tuple[dict[str, int], int]:
    reasons: dict[str, int] = {}
    for star, count in counts.items():
        reason = read_label(star, has_neutral=False)[1]
        if reason is not None:
            reasons[reason] = count
    return reasons, sum(counts.values())


def test_a_column_of_stars_is_refused() -> None:
    """Its 1 would be read as positive, its 4 too: the worst that can happen to a training set, and it runs through."""
    reasons, rows = stars({1: 20, 2: 10, 3: 10, 4: 20, 5: 40})
    with pytest.raises(DataError, match=r"scale \(it also holds 2, 3, 5\).*--label-column"):
        refuse_scale(reasons, rows)


def test_a_few_odd_numbers_are_only_rejected() -> None:
    reasons, rows = stars({0: 40, 1: 40, 7: 3})
    refuse_scale(reasons, rows)
    refuse_scale({"unknown label 'mixed'; accepted: …": 80, "no text": 3}, 100)
