"""The recurrent model: the notebook's size, PyTorch's own weights, and exactness without packing."""

from __future__ import annotations

import pytest
import torch
from rounding import BF16, relative_error
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from sentiment.models.build import build_model, count_parameters
from sentiment.models.config import Cell, RecurrentConfig
from sentiment.models.rnn import RecurrentClassifier

MODULES: dict[Cell, type[nn.RNN | nn.GRU | nn.LSTM]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def small(cell: Cell = "lstm", num_layers: int = 2, bidirectional: bool = True) -> RecurrentClassifier:
    torch.manual_seed(0)
    return RecurrentClassifier(50, 12, 16, num_layers, bidirectional, cell=cell).eval()


def test_default_has_the_notebooks_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count_parameters(RecurrentClassifier()) == 4_810_857


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("cell", MODULES)
def test_equals_packed_sequences(
    cell: Cell, num_layers: int, bidirectional: bool, ragged_batch: tuple[Tensor, Tensor]
) -> None:
    """Float32 sums in another order: 1e-6 covers scores, 1e-5 gradients; a padding token let in moves them by 1e-2."""
    model = small(cell, num_layers, bidirectional)
    ids_BT, lengths_B = ragged_batch
    reference = MODULES[cell](12, 16, num_layers, bidirectional=bidirectional, batch_first=True)
    reference.load_state_dict(model.rnn.state_dict())
    packed = pack_padded_sequence(model.embedding(ids_BT), lengths_B, batch_first=True, enforce_sorted=False)
    state = reference(packed)[1]
    hidden_LBH = state[0] if cell == "lstm" else state
    expected_B = model.fc(torch.cat([hidden_LBH[-2], hidden_LBH[-1]], dim=1) if bidirectional else hidden_LBH[-1])
    logits_B = model(ids_BT, lengths_B)
    torch.testing.assert_close(logits_B, expected_B, atol=1e-6, rtol=0)

    table = model.get_parameter("embedding.weight")
    # Squared, so that each row's gradient has another size.
    ours = torch.autograd.grad((logits_B**2).sum(), [*model.rnn.parameters(), table])
    theirs = torch.autograd.grad((expected_B**2).sum(), [*reference.parameters(), table])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cell", MODULES)
def test_bf16_trains_and_stays_near_float32(cell: Cell, ragged_batch: tuple[Tensor, Tensor]) -> None:
    """Also an LSTM on a CPU below AVX-512, for which oneDNN has no kernel."""
    model = small(cell)
    with torch.autocast("cpu", torch.bfloat16):
        rough_B = model(*ragged_batch)
    assert 0 < relative_error(rough_B.detach().float(), model(*ragged_batch).detach()) < BF16
    rough_B.float().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_padding_vector_is_zero_and_gets_no_gradient(ragged_batch: tuple[Tensor, Tensor]) -> None:
    model = small()
    table = model.get_parameter("embedding.weight")
    (gradient,) = torch.autograd.grad(model(*ragged_batch).sum(), [table])
    assert table[1].abs().sum() == 0
    assert gradient[1].abs().sum() == 0
    assert gradient.abs().sum() > 0


def test_word_dropout_only_in_training(ragged_batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = RecurrentClassifier(50, 12, 16, dropout=0.0, word_dropout=0.5)
    assert not torch.equal(model(*ragged_batch), model(*ragged_batch))
    model.eval()
    assert torch.equal(model(*ragged_batch), model(*ragged_batch))


def test_build_model_takes_every_field_of_the_config() -> None:
    config = RecurrentConfig(
        vocabulary_size=30,
        embedding_dim=8,
        embedding_std=0.0,
        frozen_embedding=True,
        cell="gru",
        hidden_dim=4,
        num_layers=2,
        bidirectional=False,
        state_layers=2,
        padded_length=7,
        dropout=0.25,
        word_dropout=0.1,
        num_logits=2,
        pad_id=3,
        unk_id=5,
    )
    model = build_model(config)
    assert isinstance(model, RecurrentClassifier)
    assert (model.rnn.mode, model.rnn.bidirectional, model.state_layers, model.padded_length) == ("GRU", False, 2, 7)
    assert (model.dropout.p, model.word_dropout, model.pad_id, model.unk_id) == (0.25, 0.1, 3, 5)
    assert not model.get_parameter("embedding.weight").any()
    weights = 3 * (4 * 8 + 4 * 4 + 8) + 3 * (4 * 4 + 4 * 4 + 8) + 2 * (2 * 4) + 2
    assert count_parameters(model) == 30 * 8 + weights
    assert count_parameters(model, trainable=True) == weights
