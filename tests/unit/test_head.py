"""The ends that all word-level models share: two logits are one, frozen vectors, dropped words."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, linear

from sentiment.models.layers import Head, WordClassifier, WordEmbedding


def test_two_logits_train_like_cross_entropy() -> None:
    """Binary cross-entropy of our one logit against the cross-entropy of both outputs, as the source computes it."""
    torch.manual_seed(0)
    head, x_BH, labels_B = Head(16, 2), torch.randn(40, 16, requires_grad=True), torch.randint(0, 2, (40,))
    ours = binary_cross_entropy_with_logits(head(x_BH), labels_B.float())
    theirs = cross_entropy(linear(x_BH, head.weight, head.bias), labels_B)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    inputs = [head.weight, head.bias, x_BH]
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), atol=1e-7, rtol=1e-5
    )


def test_frozen_vectors_get_no_gradient() -> None:
    frozen, trained = (WordEmbedding(10, 4, pad_id=1, std=1.0, is_frozen=is_frozen) for is_frozen in (True, False))
    ids = torch.tensor([2, 3, 1])
    assert not frozen(ids).requires_grad
    (gradient,) = torch.autograd.grad(trained(ids).sum(), [trained.weight])
    assert gradient.sum(dim=1).tolist() == [0, 0, 4, 4, 0, 0, 0, 0, 0, 0]


def test_fresh_vectors_are_spread_as_asked() -> None:
    torch.manual_seed(0)
    weight = WordEmbedding(1000, 50, pad_id=1, std=0.1, is_frozen=False).weight.detach()
    assert weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert not weight[1].any()


def test_word_dropout_spares_padding() -> None:
    torch.manual_seed(0)
    ids_BT = torch.randint(2, 50, (100, 100), dtype=torch.int32)
    ids_BT[:, 60:] = 1
    dropped_BT = WordClassifier(50, 4, word_dropout=0.25).drop_words(ids_BT)
    assert dropped_BT.dtype == ids_BT.dtype
    assert torch.all(dropped_BT[:, 60:] == 1)
    is_unk_BT = dropped_BT[:, :60] == 0
    assert torch.equal(dropped_BT[:, :60][~is_unk_BT], ids_BT[:, :60][~is_unk_BT])
    # 6,000 draws: the standard deviation of their share is 0.6 %.
    assert is_unk_BT.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.all(ids_BT[:, :60] != 0), "the rows given must stay as they were"
