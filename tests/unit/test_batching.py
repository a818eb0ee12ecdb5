"""Batches: each row once, equal steps on every rank, few shapes, an order that follows from the seed."""

from __future__ import annotations

import numpy as np
import pytest

from sentiment.batching import Examples, LengthBucketedBatches, length_ordered, pad, padded_length, padded_rows


def examples(num_rows: int, seed: int = 0, longest: int = 40) -> Examples:
    """Rows whose first token is their own number, so that a batch says which rows it holds."""
    lengths = np.random.default_rng(seed).integers(1, longest, num_rows)
    rows = [np.full(length, row + 2, dtype=np.int32) for row, length in enumerate(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Examples(np.concatenate(rows), offsets, (np.arange(num_rows) % 2).astype(np.int32))


def rows_of(batches: LengthBucketedBatches, epoch: int, start: int = 0) -> list[list[int]]:
    return [(batch.inputs_BT[batch.weights_B > 0, 0] - 2).tolist() for batch in batches.epoch(epoch, start=start)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [1, 64, 1000, 1025])
def test_each_row_once_an_epoch_with_equal_steps(num_rows: int, world_size: int) -> None:
    data = examples(num_rows)
    ranks = [
        LengthBucketedBatches(data, batch_size=64, pad_id=1, max_length=256, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    planned = [rows_of(rank, epoch=3) for rank in ranks]
    assert {len(steps) for steps in planned} == {len(ranks[0])}
    assert sorted(row for steps in planned for step in steps for row in step) == list(range(num_rows))


def test_ranks_share_each_global_batch() -> None:
    data = examples(1000)
    whole = rows_of(LengthBucketedBatches(data, batch_size=64, pad_id=1, max_length=256), epoch=0)
    halves = [
        rows_of(LengthBucketedBatches(data, batch_size=64, pad_id=1, max_length=256, rank=r, world_size=2), epoch=0)
        for r in range(2)
    ]
    for step, rows in enumerate(whole):
        assert sorted(rows) == sorted(halves[0][step] + halves[1][step])


def test_order_follows_from_seed_and_epoch() -> None:
    data = examples(1000)
    first = LengthBucketedBatches(data, batch_size=64, pad_id=1, max_length=256, seed=5)
    again = LengthBucketedBatches(data, batch_size=64, pad_id=1, max_length=256, seed=5)
    other = LengthBucketedBatches(data, batch_size=64, pad_id=1, max_length=256, seed=6)
    assert rows_of(first, 0) == rows_of(again, 0)
    assert rows_of(first, 0) != rows_of(first, 1)
    assert rows_of(first, 0) != rows_of(other, 0)
    assert rows_of(first, 0)[5:] == rows_of(first, 0, start=5)


def test_little_padding_and_few_sizes() -> None:
    data = examples(20_000)
    batches = list(LengthBucketedBatches(data, batch_size=128, pad_id=1, max_length=256).epoch(0))
    tokens = sum(int(batch.lengths_B.sum()) for batch in batches)
    padded = sum(batch.inputs_BT.numel() for batch in batches)
    assert tokens / padded > 0.94
    assert len({batch.inputs_BT.shape[0] for batch in batches}) <= 2
    assert len({batch.inputs_BT.shape for batch in batches}) <= 21


def test_max_length_cuts_rows() -> None:
    batches = LengthBucketedBatches(examples(100), batch_size=32, pad_id=1, max_length=7)
    assert max(batch.inputs_BT.shape[1] for batch in batches.epoch(0)) == padded_length(7)
    assert max(int(batch.lengths_B.max()) for batch in batches.epoch(0)) == 7


def test_pad_gives_an_empty_row_a_last_token() -> None:
    ids_BT, lengths_B = pad([[5, 6, 7], []], pad_id=1)
    assert ids_BT.tolist() == [[5, 6, 7, 1], [1, 1, 1, 1]]
    assert lengths_B.tolist() == [3, 1]


def test_length_ordered_keeps_each_row_and_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 700, 3000)
    batches = length_ordered(lengths, batch_size=256, token_budget=16_384)
    assert sorted(np.concatenate(batches).tolist()) == list(range(3000))
    for rows in batches:
        assert padded_length(int(lengths[rows].max())) * len(rows) <= 16_384
    assert len({len(rows) for rows in batches}) <= 7


def test_few_numbers_of_rows_occur_and_little_is_filled_up() -> None:
    rounded = [padded_rows(count) for count in range(1, 257)]
    assert rounded == sorted(rounded)
    assert all(count <= size <= max(count + 3, 1.25 * count) for count, size in enumerate(rounded, start=1))
    assert rounded[-1] == 256
    assert len(set(rounded)) <= 24


def test_length_ordered_of_nothing_is_nothing() -> None:
    assert length_ordered(np.empty(0, dtype=np.int64), 256, 16_384) == []
