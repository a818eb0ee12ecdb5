"""The bag of word vectors: a sum over the real tokens through an MLP, whatever their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sentiment.models.bag import BagClassifier
from sentiment.models.build import build_model, count_parameters
from sentiment.models.config import BagConfig


def small(**more: Any) -> BagClassifier:
    torch.manual_seed(0)
    return BagClassifier(50, 12, (8, 6), **more).eval()


@pytest.mark.parametrize("num_logits", [1, 2])
def test_equals_a_sum_over_real_tokens_through_an_mlp(num_logits: int, ragged_batch: tuple[Tensor, Tensor]) -> None:
    model = small(num_logits=num_logits)
    table_VE = model.get_parameter("embedding.weight")
    mlp = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, num_logits))
    mlp.load_state_dict(dict(zip(mlp.state_dict(), list(model.state_dict().values())[1:], strict=True)))
    ids_BT, lengths_B = ragged_batch
    for ids_T, length, logit in zip(ids_BT, lengths_B.tolist(), model(ids_BT, lengths_B), strict=True):
        outputs_C = mlp(sum(table_VE[token] for token in ids_T[:length].tolist()))
        expected = outputs_C[0] if num_logits == 1 else outputs_C[1] - outputs_C[0]
        torch.testing.assert_close(logit, expected, atol=1e-6, rtol=1e-5)


def test_neither_padding_nor_order_nor_the_batch_matter(ragged_batch: tuple[Tensor, Tensor]) -> None:
    model = small()
    ids_BT, lengths_B = ragged_batch
    logits_B = model(ids_BT, lengths_B)
    for row, length in enumerate(lengths_B.tolist()):
        alone = model(ids_BT[row : row + 1, :length].flip(1), lengths_B[row : row + 1])
        torch.testing.assert_close(alone, logits_B[row : row + 1], atol=1e-6, rtol=1e-5)
    assert logits_B.std() > 0.01, "all rows score alike: the test would show nothing"


def test_word_dropout_and_dropout_only_in_training(ragged_batch: tuple[Tensor, Tensor]) -> None:
    for how in ({"word_dropout": 0.5}, {"dropout": 0.5}):
        model = small(**how).train()
        assert not torch.equal(model(*ragged_batch), model(*ragged_batch))
        model.eval()
        assert torch.equal(model(*ragged_batch), model(*ragged_batch))


def shape(hidden_dims: Any) -> BagConfig:
    return BagConfig(
        vocabulary_size=20,
        embedding_dim=50,
        embedding_std=0.5,
        frozen_embedding=True,
        hidden_dims=hidden_dims,
        dropout=0.25,
        word_dropout=0.1,
        num_logits=2,
        pad_id=3,
        unk_id=5,
    )


def test_build_model_takes_every_field_of_the_config() -> None:
    model = build_model(shape((30, 10)))
    assert isinstance(model, BagClassifier)
    trained = 50 * 30 + 30 + 30 * 10 + 10 + 10 * 2 + 2
    assert count_parameters(model, trainable=True) == trained
    assert count_parameters(model) == 20 * 50 + trained
    assert (model.dropout.p, model.word_dropout, model.pad_id, model.unk_id) == (0.25, 0.1, 3, 5)
    assert not model.get_parameter("embedding.weight")[3].any()


def test_layers_have_a_width() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        shape((30, 0))
