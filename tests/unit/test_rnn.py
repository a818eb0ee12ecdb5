"""The recurrent model: the notebook's size, an `nn.LSTM`'s weights, and exactness without packing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from sentiment.models import build_model, count_parameters
from sentiment.models.rnn import RecurrentClassifier
from sentiment.shapes import RecurrentConfig


def batch(num_rows: int = 9, longest: int = 17, vocabulary: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    lengths_B = torch.randint(1, longest + 1, (num_rows,), generator=generator)
    ids_BT = torch.randint(2, vocabulary, (num_rows, longest + 3), generator=generator)
    ids_BT[torch.arange(ids_BT.shape[1])[None] >= lengths_B[:, None]] = 1
    return ids_BT.int(), lengths_B


def small(bidirectional: bool = True, num_layers: int = 2) -> RecurrentClassifier:
    torch.manual_seed(0)
    return RecurrentClassifier(50, 12, 16, num_layers, bidirectional).eval()


def test_default_has_the_notebooks_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count_parameters(RecurrentClassifier()) == 4_810_857


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_equals_packed_lstm(num_layers: int, bidirectional: bool) -> None:
    """Float32 sums in another order: 1e-6 covers it; a padding token let in moves states by 1e-2."""
    model = small(bidirectional, num_layers)
    ids_BT, lengths_B = batch()
    reference = nn.LSTM(12, 16, num_layers, bidirectional=bidirectional, batch_first=True)
    reference.load_state_dict(model.rnn.state_dict())
    packed = pack_padded_sequence(model.embedding(ids_BT), lengths_B, batch_first=True, enforce_sorted=False)
    hidden_LBH = reference(packed)[1][0]
    last_BH = torch.cat([hidden_LBH[-2], hidden_LBH[-1]], dim=1) if bidirectional else hidden_LBH[-1]
    torch.testing.assert_close(model(ids_BT, lengths_B), model.fc(last_BH), atol=1e-6, rtol=0)


def test_score_is_the_same_alone_in_any_batch_and_order() -> None:
    model = small()
    ids_BT, lengths_B = batch()
    logits_B = model(ids_BT, lengths_B)
    order = torch.randperm(len(ids_BT), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(ids_BT[order], lengths_B[order]), logits_B[order], atol=1e-6, rtol=0)
    for row in range(len(ids_BT)):
        alone = model(ids_BT[row : row + 1, : lengths_B[row]], lengths_B[row : row + 1])
        torch.testing.assert_close(alone, logits_B[row : row + 1], atol=1e-6, rtol=0)


def test_bf16_stays_near_float32() -> None:
    """bfloat16 has 8 bits of mantissa: two layers of it stay within 2e-2 of a probability."""
    model = small()
    ids_BT, lengths_B = batch()
    with torch.autocast("cpu", torch.bfloat16):
        rough = torch.sigmoid(model(ids_BT, lengths_B).float())
    torch.testing.assert_close(rough, torch.sigmoid(model(ids_BT, lengths_B)), atol=2e-2, rtol=0)


def test_gradients_equal_packed_lstms() -> None:
    model = small()
    ids_BT, lengths_B = batch()
    model(ids_BT, lengths_B).sum().backward()
    reference = nn.LSTM(12, 16, 2, bidirectional=True, batch_first=True)
    reference.load_state_dict(model.rnn.state_dict())
    packed = pack_padded_sequence(model.embedding(ids_BT), lengths_B, batch_first=True, enforce_sorted=False)
    hidden_LBH = reference(packed)[1][0]
    nn.functional.linear(torch.cat([hidden_LBH[-2], hidden_LBH[-1]], dim=1), model.fc.weight).sum().backward()
    for name, weight in reference.named_parameters():
        torch.testing.assert_close(model.rnn.get_parameter(name).grad, weight.grad, atol=1e-5, rtol=1e-4)


def test_padding_vector_is_zero_and_gets_no_gradient() -> None:
    model = small()
    ids_BT, lengths_B = batch()
    model(ids_BT, lengths_B).sum().backward()
    assert model.embedding.weight[1].abs().sum() == 0
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad[1].abs().sum() == 0


def test_word_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    model = RecurrentClassifier(50, 12, 16, dropout=0.0, word_dropout=0.5)
    ids_BT, lengths_B = batch()
    assert not torch.equal(model(ids_BT, lengths_B), model(ids_BT, lengths_B))
    model.eval()
    assert torch.equal(model(ids_BT, lengths_B), model(ids_BT, lengths_B))


def test_build_model_takes_every_field_of_the_config() -> None:
    config = RecurrentConfig(
        vocabulary_size=30,
        embedding_dim=8,
        embedding_std=0.5,
        hidden_dim=4,
        num_layers=1,
        bidirectional=False,
        dropout=0.25,
        word_dropout=0.1,
        pad_id=1,
        unk_id=0,
    )
    model = build_model(config)
    assert isinstance(model, RecurrentClassifier)
    assert model.rnn.bidirectional is False
    assert model.dropout.p == 0.25
    assert count_parameters(model) == 30 * 8 + 4 * (4 * 8 + 4 * 4 + 8) + 4 + 1
