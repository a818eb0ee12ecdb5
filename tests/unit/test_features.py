"""Features that are kept: what is read back is what was computed, in the rows' order, and training is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from rounding import BF16, relative_error

from sentiment.batching import LengthBucketedBatches
from sentiment.errors import DataError
from sentiment.models.bert_gru import BertGruClassifier, UpperLayers
from sentiment.models.encoders import find_encoder, load_encoder, read_config
from sentiment.training.feature_cache import EncodedRows, EncodingBatches, FrozenEncoder, write_shard
from sentiment.training.loop import fit
from sentiment.training.recipes import BERT_TWEETS

CPU = torch.device("cpu")
PAD = 0
ROWS = 120


def halves(
    tiny_encoder: Path, precision: Literal["bf16", "float32"] = "float32", unfreeze: int = 0
) -> tuple[FrozenEncoder, UpperLayers]:
    torch.manual_seed(0)
    source = find_encoder(str(tiny_encoder))
    whole = BertGruClassifier(read_config(source), 8)
    whole.encoder = load_encoder(source)
    lower, upper = whole.halves(unfreeze)
    return FrozenEncoder(lower, CPU, precision), upper


def write_split(folder: Path, encoder: FrozenEncoder | None, rows: int = ROWS) -> list[list[int]]:
    """Shards of uneven sizes, the rows of each in a random order; returns the ids in the order of the row ids."""
    random = np.random.default_rng(0)
    ids = [random.integers(5, 60, random.integers(1, 20)).tolist() for _ in range(rows)]
    folder.mkdir(parents=True)
    order = random.permutation(rows)
    for number, part in enumerate(np.array_split(order, 5)):
        mine = [ids[row] for row in part]
        features_SE = encoder.rows(mine, PAD) if encoder else None
        labels = np.array([ids[row][0] % 2 for row in part], np.int32)
        write_shard(folder / f"part-{number}.safetensors", part.astype(np.int64) + 1000, labels, mine, features_SE)
    return ids


def test_ids_come_back_in_the_order_of_the_rows(tmp_path: Path) -> None:
    ids = write_split(tmp_path / "train", None)
    rows = EncodedRows(tmp_path / "train")
    assert len(rows) == ROWS
    assert rows.width is None
    assert rows.lengths_N.tolist() == [len(row) for row in ids]
    assert rows.labels_N.tolist() == [row[0] % 2 for row in ids]
    ids_BT, lengths_B = rows.collate(np.array([7, 3, 99]), PAD, max_length=9)
    assert lengths_B.tolist() == [min(9, len(ids[row])) for row in (7, 3, 99)]
    assert [row[:length].tolist() for row, length in zip(ids_BT, lengths_B, strict=True)] == [
        ids[row][:9] for row in (7, 3, 99)
    ]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_features_come_back_as_they_were_computed(
    tmp_path: Path, tiny_encoder: Path, precision: Literal["bf16", "float32"]
) -> None:
    """Each row encoded alone, which in bfloat16 may be rounded in other places."""
    encoder, _ = halves(tiny_encoder, precision)
    ids = write_split(tmp_path / "train", encoder)
    rows = EncodedRows(tmp_path / "train")
    assert rows.width == 16
    features_BTE, lengths_B = rows.collate(np.arange(ROWS), PAD, max_length=64)
    assert features_BTE.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    for row, row_ids in enumerate(ids):
        length = len(row_ids)
        assert lengths_B[row] == length
        alone_TE = encoder(torch.tensor([row_ids]), torch.tensor([length]))[0]
        if precision == "bf16":
            assert relative_error(features_BTE[row, :length].float(), alone_TE.float()) < BF16
        else:
            torch.testing.assert_close(features_BTE[row, :length], alone_TE, atol=1e-5, rtol=1e-5)
        assert not features_BTE[row, length:].any()


@pytest.mark.parametrize("unfreeze", [0, 1])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_is_the_same_with_features_kept_and_computed_on_the_way(
    tmp_path: Path, tiny_encoder: Path, precision: Literal["bf16", "float32"], unfreeze: int
) -> None:
    """In float32 to rounding, in bfloat16 to what its last bit makes of the losses: two units in the last place, at
    random on every feature, move them by 1e-4."""
    rates = {"epochs": 2, "learning_rate": 5e-3, "encoder_learning_rate": 1e-3, "encoder_warmup_share": 0.0}
    config = BERT_TWEETS.model_copy(update=rates)
    encoder, _ = halves(tiny_encoder, precision, unfreeze)
    write_split(tmp_path / "kept", encoder)
    write_split(tmp_path / "ids", None)
    losses = []
    for name in ("kept", "ids"):
        encoder, upper = halves(tiny_encoder, precision, unfreeze)
        rows = EncodedRows(tmp_path / name)
        data = [
            LengthBucketedBatches(rows, batch_size=16, pad_id=PAD, max_length=64, shuffle=shuffle, seed=1)
            for shuffle in (True, False)
        ]
        if name == "ids":
            data = [EncodingBatches(batches, encoder) for batches in data]
        final = fit(upper, *data, config, seed=1, device=CPU, precision=precision)
        losses.append([[epoch["train_loss"], epoch["validation_loss"]] for epoch in final.progress.history])
    torch.testing.assert_close(losses[0], losses[1], atol=2e-3 if precision == "bf16" else 1e-6, rtol=0)
    assert abs(losses[0][1][0] - losses[0][0][0]) > 2e-3


@pytest.mark.parametrize("kept", [True, False])
def test_a_rank_without_rows_gets_one_of_no_weight(tmp_path: Path, tiny_encoder: Path, kept: bool) -> None:
    encoder, upper = halves(tiny_encoder)
    write_split(tmp_path / "train", encoder if kept else None, rows=9)
    rows = EncodedRows(tmp_path / "train")
    data = LengthBucketedBatches(rows, batch_size=8, pad_id=PAD, max_length=64, rank=1, world_size=2)
    (batch,) = [batch for batch in data.epoch(0) if not batch.weights_B.any()]
    assert batch.num_global == 1
    inputs = batch.inputs_BT if kept else encoder(batch.inputs_BT, batch.lengths_B)
    assert upper(inputs, batch.lengths_B).shape == (1,)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_split(tmp_path / "train", None)
    shard = tmp_path / "train" / "part-3.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=r"part-3\.safetensors can't be read .* remove it, it will be made again"):
        EncodedRows(tmp_path / "train")


def test_a_split_without_rows(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    rows = EncodedRows(tmp_path / "test")
    assert len(rows) == 0
    data = LengthBucketedBatches(rows, batch_size=8, pad_id=PAD, max_length=64, shuffle=False)
    assert list(data.epoch(0)) == []
