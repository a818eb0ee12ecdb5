"""Figures: the formulas are torchmetrics', and counts add up however the rows were dealt out."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sentiment.metrics import Counts, Figures


def draw(rows: int, seed: int = 0, positive_share: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels, losses; the labels lean to the logits so that all cells are filled."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(rows, generator=generator) < positive_share).float()
    logits = torch.randn(rows, generator=generator) + labels - 0.5
    return logits, labels, binary_cross_entropy_with_logits(logits, labels, reduction="none")


def count(logits: Tensor, labels: Tensor, losses: Tensor, weights: Tensor | None = None) -> Counts:
    counts = Counts()
    counts.add(logits, labels, losses, weights)
    return counts


@pytest.mark.parametrize("positive_share", [0.5, 0.05, 0.0, 1.0])
def test_equal_to_torchmetrics(positive_share: float) -> None:
    """1e-6: torchmetrics works in float32, we in float64."""
    from torchmetrics.classification import BinaryAccuracy, BinaryConfusionMatrix, MulticlassF1Score

    logits, labels, losses = draw(2000, positive_share=positive_share)
    figures = count(logits, labels, losses).figures()
    predicted, truth = (logits > 0).long(), labels.long()
    assert figures.rows == 2000
    assert figures.accuracy == pytest.approx(BinaryAccuracy()(predicted, truth).item(), abs=1e-6)
    macro_f1 = MulticlassF1Score(num_classes=2, average="macro")(predicted, truth).item()
    assert figures.macro_f1 == pytest.approx(macro_f1, abs=1e-6)
    assert [list(row) for row in figures.confusion] == BinaryConfusionMatrix()(predicted, truth).tolist()
    assert figures.loss == pytest.approx(binary_cross_entropy_with_logits(logits, labels).item(), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_counts_add_up_over_any_split(rows: list[tuple[bool, bool]], cuts: list[int]) -> None:
    labels = torch.tensor([float(label) for label, _ in rows])
    logits = torch.tensor([1.0 if predicted else -1.0 for _, predicted in rows])
    losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
    parts = Counts()
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for start, stop in itertools.pairwise(edges):
        parts.add(logits[start:stop], labels[start:stop], losses[start:stop])
    whole = count(logits, labels, losses)
    # Cells are whole numbers in float64; the loss is a sum in another order.
    assert torch.equal(parts.sums[1:], whole.sums[1:])
    torch.testing.assert_close(parts.sums[0], whole.sums[0], atol=1e-9, rtol=0)
    assert int(whole.sums[1:].sum()) == len(rows) == whole.figures().rows


def test_rows_of_weight_zero_are_left_out() -> None:
    """A rank with no row of its own takes part with a filler."""
    logits, labels, losses = draw(50)
    weights = (torch.arange(50) % 3 > 0).float()
    kept = weights > 0
    assert count(logits, labels, losses, weights).figures() == count(logits[kept], labels[kept], losses[kept]).figures()
    assert count(logits, labels, losses, torch.zeros(50)).figures().rows == 0


def test_millions_of_rows_lose_nothing() -> None:
    """Float32 sums stop counting at 16.8 million."""
    counts = Counts(torch.tensor([0.0, 2.0**25, 0, 0, 0], dtype=torch.float64))
    counts.add(*draw(1, positive_share=0.0))
    assert counts.figures().rows == 2**25 + 1


def test_bfloat16_logits_count_as_they_are() -> None:
    logits, labels, losses = draw(300)
    rough = logits.bfloat16()
    assert count(rough, labels, losses).figures() == count(rough.float(), labels, losses).figures()


def test_empty_set_has_no_figures() -> None:
    for figures in (Counts().figures(), count(*draw(0)).figures()):
        assert figures.rows == 0
        assert all(math.isnan(value) for value in (figures.loss, figures.accuracy, figures.macro_f1))
        assert figures.confusion == ((0, 0), (0, 0))


def test_worked_example() -> None:
    """By hand: tn 1, fp 2, fn 1, tp 2."""
    logits = torch.tensor([-1.0, 1, 1, -1, 1, 1])
    labels = torch.tensor([0.0, 0, 0, 1, 1, 1])
    f1_positive, f1_negative = 2 * 2 / (2 * 2 + 2 + 1), 2 * 1 / (2 * 1 + 2 + 1)
    assert count(logits, labels, torch.ones(6)).figures() == Figures(
        rows=6, loss=1.0, accuracy=0.5, macro_f1=(f1_positive + f1_negative) / 2, confusion=((1, 2), (1, 2))
    )


def test_without_a_group_the_sum_over_ranks_is_a_copy() -> None:
    counts = count(*draw(10))
    copy = counts.over_ranks()
    counts.add(*draw(10, seed=1))
    assert copy.figures().rows == 10


def test_figures_by_name_have_none_where_there_are_no_rows() -> None:
    none = dict.fromkeys(("test_loss", "test_accuracy", "test_macro_f1"))
    assert Counts().figures().named("test_") == {"test_rows": 0, **none, "test_confusion": ((0, 0), (0, 0))}
    figures = count(*draw(20)).figures()
    assert figures.named("") == dataclasses.asdict(figures)
