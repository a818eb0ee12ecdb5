"""What the head sees of the recurrent layers: each pooling against its definition, and the same in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sentiment.models.config import RecurrentConfig
from sentiment.models.rnn import RecurrentClassifier

HIDDEN = 16


def small(**more: Any) -> RecurrentClassifier:
    torch.manual_seed(0)
    return RecurrentClassifier(50, 12, HIDDEN, **more).eval()


def packed_outputs(model: RecurrentClassifier, ids_BT: Tensor, lengths_B: Tensor) -> list[Tensor]:
    """The last layer's outputs of each row, without padding, from PyTorch's own LSTM."""
    rnn = model.rnn
    reference = nn.LSTM(12, HIDDEN, rnn.num_layers, bidirectional=rnn.bidirectional, batch_first=True)
    reference.load_state_dict(rnn.state_dict())
    packed = pack_padded_sequence(model.embedding(ids_BT), lengths_B, batch_first=True, enforce_sorted=False)
    out_BTH, _ = pad_packed_sequence(reference(packed)[0], batch_first=True)
    return [out_TH[:length] for out_TH, length in zip(out_BTH, lengths_B, strict=True)]


@pytest.mark.parametrize("pooling", ["max", "concat"])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_pooling_is_over_each_rows_own_tokens(
    num_layers: int, bidirectional: bool, pooling: str, ragged_batch: tuple[Tensor, Tensor]
) -> None:
    model = small(num_layers=num_layers, bidirectional=bidirectional, pooling=pooling)
    rows = []
    for out_TH in packed_outputs(model, *ragged_batch):
        # The backward direction ends at the first token.
        last_H = torch.cat([out_TH[-1, :HIDDEN], out_TH[0, HIDDEN:]])
        maximum_H = out_TH.max(dim=0).values
        rows.append(maximum_H if pooling == "max" else torch.cat([last_H, maximum_H, out_TH.mean(dim=0)]))
    torch.testing.assert_close(model(*ragged_batch), model.fc(torch.stack(rows)), atol=1e-6, rtol=0)


def test_two_state_layers_are_the_notebooks_head(ragged_batch: tuple[Tensor, Tensor]) -> None:
    """It feeds `cat(hidden[-2], hidden[-1])` to the linear layer: in one direction, the states of both layers."""
    model = small(bidirectional=False, state_layers=2)
    ids_BT, lengths_B = ragged_batch
    reference = nn.LSTM(12, HIDDEN, 2, batch_first=True)
    reference.load_state_dict(model.rnn.state_dict())
    packed = pack_padded_sequence(model.embedding(ids_BT), lengths_B, batch_first=True, enforce_sorted=False)
    _, (hidden_LBH, _) = reference(packed)
    expected_B = model.fc(torch.cat([hidden_LBH[-2], hidden_LBH[-1]], dim=1))
    torch.testing.assert_close(model(ids_BT, lengths_B), expected_B, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "how",
    [
        {"pooling": "last"},
        {"pooling": "max"},
        {"pooling": "concat"},
        {"state_layers": 2},
        {"cell": "rnn", "bidirectional": False, "num_layers": 1, "padded_length": 25},
    ],
    ids=lambda how: " ".join(f"{name}={value}" for name, value in how.items()),
)
def test_score_is_the_same_alone_in_any_batch_and_order(
    how: dict[str, Any], ragged_batch: tuple[Tensor, Tensor]
) -> None:
    model = small(**how)
    ids_BT, lengths_B = ragged_batch
    logits_B = model(ids_BT, lengths_B)
    order = torch.randperm(len(ids_BT), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(ids_BT[order], lengths_B[order]), logits_B[order], atol=1e-6, rtol=0)
    for row in range(len(ids_BT)):
        alone = model(ids_BT[row : row + 1, : lengths_B[row]], lengths_B[row : row + 1])
        torch.testing.assert_close(alone, logits_B[row : row + 1], atol=1e-6, rtol=0)


def test_padded_length_reads_the_padding(ragged_batch: tuple[Tensor, Tensor]) -> None:
    model = small(cell="rnn", num_layers=1, bidirectional=False, padded_length=25)
    ids_BT, lengths_B = ragged_batch
    reference = nn.RNN(12, HIDDEN, batch_first=True)
    reference.load_state_dict(model.rnn.state_dict())
    _, hidden_1BH = reference(model.embedding(pad(ids_BT, (0, 25 - ids_BT.shape[1]), value=1)))
    torch.testing.assert_close(model(ids_BT, lengths_B), model.fc(hidden_1BH[0]), atol=1e-6, rtol=0)


def test_what_is_longer_than_padded_length_is_cut() -> None:
    model = small(cell="rnn", num_layers=1, bidirectional=False, padded_length=25)
    ids_BT = torch.randint(2, 50, (3, 40), generator=torch.Generator().manual_seed(1))
    whole_B, cut_B = model(ids_BT, torch.tensor([40, 40, 30])), model(ids_BT[:, :25], torch.tensor([25, 25, 25]))
    torch.testing.assert_close(whole_B, cut_B, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 1, "state_layers": 2}, "the head can't read 2 layers of 1"),
        ({"pooling": "max", "padded_length": 64}, "state_layers and padded_length go with pooling last"),
        ({"pooling": "concat", "state_layers": 2}, "state_layers and padded_length go with pooling last"),
        ({"pooling": "mean"}, "'last', 'max' or 'concat'"),
        ({"hidden": 3}, "Extra inputs are not permitted"),
    ],
)
def test_shapes_that_no_model_has(fields: dict[str, Any], message: str) -> None:
    shape = {
        **{"vocabulary_size": 50, "embedding_dim": 12, "embedding_std": 1.0, "dropout": 0.0, "word_dropout": 0.0},
        **{"hidden_dim": HIDDEN, "num_layers": 2, "bidirectional": True, "pad_id": 1, "unk_id": 0},
    }
    RecurrentConfig.model_validate(shape)
    with pytest.raises(ValidationError, match=message):
        RecurrentConfig.model_validate({**shape, **fields})
