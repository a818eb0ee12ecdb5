"""Labels: what is understood, and that a scale never passes for positive and negative."""

from __future__ import annotations

import pytest

from sentiment.errors import DataError
from sentiment.labels import NEUTRAL, read_label, refuse_labels, refuse_one_class, unknown_labels


@pytest.mark.parametrize("value", [0, "0", 0.0, "0.00", "neg", "Negative", False, "False", " 0 "])
def test_negative(value: object) -> None:
    assert read_label(value, has_neutral=False) == (0, None)


@pytest.mark.parametrize("value", [1, "1", 1.0, "1.00", "pos", "POSITIVE", True, "true", 4, "4", "4.0"])
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
        refuse_labels(reasons, rows, rows - sum(reasons.values()))


def test_a_few_odd_numbers_are_only_rejected() -> None:
    reasons, rows = stars({0: 40, 1: 40, 7: 3})
    refuse_labels(reasons, rows, rows - sum(reasons.values()))
    refuse_labels({"unknown label 'mixed'; accepted: …": 80, "no text": 3}, 100, 17)


def classes(counts: dict[str, int]) -> dict[str, int]:
    reasons = {read_label(word, has_neutral=False)[1]: count for word, count in counts.items()}
    return {reason: count for reason, count in reasons.items() if reason is not None}


def test_words_that_are_not_understood_are_named_with_their_rows() -> None:
    reasons = classes({"good": 900, "mixed": 1_200, "bad": 800})
    words = "labels that aren't understood: 'mixed' 1,200, 'good' 900, 'bad' 800; accepted: 0/1, false/true"
    assert unknown_labels(reasons).startswith(words)
    with pytest.raises(DataError, match=rf"^{words}.*Map them to 0 and 1 first.*--label-column$"):
        refuse_labels(reasons, 2_900, 0)
    # Three classes of which two are ours: the third is left out and told.
    refuse_labels(classes({"neutral": 40}), 100, 60)
    assert unknown_labels(classes({"neutral": 40, "positive": 60})).startswith(
        "labels that aren't understood: 'neutral' 40;"
    )
    assert unknown_labels({"no text": 3}) == ""


def test_a_column_of_texts_is_not_repeated() -> None:
    reasons = classes({f"my secret {number}": 1 for number in range(50)})
    assert unknown_labels(reasons).startswith("labels that aren't understood: 50 values in 50 rows; accepted")
    assert "secret" not in unknown_labels(classes({"my secret": 1}))


def test_rows_of_one_label_are_refused() -> None:
    """Whatever always gives that label would be right about all of them."""
    for counts in ((0, 0), (1, 1), (1, 2000)):
        refuse_one_class(counts, "rows")
    with pytest.raises(DataError, match=r"^all 2,000 evaluated rows are labeled NEGATIVE.*--label-column"):
        refuse_one_class((2000, 0), "evaluated rows")
