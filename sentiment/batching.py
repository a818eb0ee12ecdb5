"""Batches of a few fixed sizes, bucketed by length: where most of the speed comes from.

Rows are shuffled, sorted by length inside windows of many batches, cut into batches of exactly `batch_size`, and the
batches shuffled. A batch then holds rows of nearly one length (little padding), always in the same few shapes (oneDNN
builds a primitive for each new one), while the order stays random enough to train on. All of it follows from
(seed, epoch), so every rank plans the same batches and takes its own rows, and a run that was stopped goes on in the
middle of an epoch.

Shapes: B rows of a batch, T tokens (padded), N rows of a split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

# Padded tokens of a batch for inference on one process: 256 tweets, or 32 texts of 512 tokens.
TOKEN_BUDGET = 16_384
# Batches in one length-sorted window. 32 leaves about 3 % padding on tweets; more would only make order less random.
WINDOW_BATCHES = 32


@dataclass(frozen=True)
class Examples:
    """Encoded rows of one split, flat: row i is `ids[offsets[i]:offsets[i + 1]]`.

    Attributes:
        ids: Token ids of all rows, one after another.
        offsets: N + 1 positions in `ids`.
        labels_N: 0 negative, 1 positive.
    """

    ids: Int32Array
    offsets: Int64Array
    labels_N: Int32Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths_N(self) -> Int64Array:  # noqa: N802
        """Tokens of each row."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes:
        ids_BT: Token ids, padded on the right, int32.
        lengths_B: Real tokens of each row, at least 1, int64.
        labels_B: float32.
        weights_B: 1 for a row, 0 for the filler of a rank that had none; float32.
        num_global: Rows of the whole batch over all ranks.
    """

    ids_BT: Tensor
    lengths_B: Tensor
    labels_B: Tensor
    weights_B: Tensor
    num_global: int

    def to(self, device: torch.device) -> Batch:
        """Copy to `device` without waiting for it."""
        if device.type == "cpu":
            return self

        def move(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        return Batch(
            move(self.ids_BT), move(self.lengths_B), move(self.labels_B), move(self.weights_B), self.num_global
        )


def padded_length(length: int) -> int:
    """Round a length up so that few shapes occur: to 2 for tweets, to 16 for longer texts (under 12 % padding)."""
    multiple = 2 if length <= 64 else 16
    return -(-length // multiple) * multiple


def pad(rows: Sequence[Any], pad_id: int) -> tuple[Tensor, Tensor]:
    """Lay rows of ids side by side.

    Args:
        rows: Token ids of each row, lists or arrays. An empty row becomes one pad token: every row has a last token.
        pad_id: Fills short rows.

    Returns:
        ids_BT int32 and lengths_B int64.
    """
    lengths = [max(1, len(row)) for row in rows]
    ids_BT = np.full((len(rows), padded_length(max(lengths))), pad_id, dtype=np.int32)
    for filled, row in zip(ids_BT, rows, strict=True):
        filled[: len(row)] = row
    return torch.from_numpy(ids_BT), torch.tensor(lengths)


def length_ordered(lengths_N: Int64Array, batch_size: int, token_budget: int) -> list[Int64Array]:
    """Cut rows into batches for inference: by length, `batch_size` rows each, fewer where texts are long.

    Args:
        lengths_N: Tokens of each row.
        batch_size: Rows of a batch; halved until a batch fits the budget, so only a few sizes occur.
        token_budget: Padded tokens that a batch may hold; bounds memory on long texts.

    Returns:
        Row numbers of each batch, every row once.
    """
    order_N = np.argsort(lengths_N, kind="stable")
    batches: list[Int64Array] = []
    start = 0
    while start < len(order_N):
        size = batch_size
        while size > 1 and padded_length(int(lengths_N[order_N[start : start + size][-1]])) * size > token_budget:
            size //= 2
        batches.append(order_N[start : start + size])
        start += size
    return batches


class LengthBucketedBatches:
    """Batches of one split for one rank; the same plan on every rank, each row once an epoch.

    Every rank gets the same number of batches. Only the last batch can be smaller; if it has fewer rows than there are
    ranks, the others get one filler row of weight 0 so that all of them take the step.

    Args:
        examples: The split, whole, on every rank.
        batch_size: Global rows of a batch, over all ranks.
        pad_id: Fills short rows.
        max_length: Rows are cut to their first tokens.
        shuffle: Random order by (seed, epoch); otherwise by length and in smaller batches where texts are long, for
            evaluation.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        pad_id: int,
        max_length: int,
        shuffle: bool = True,
        seed: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.max_length = max_length
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return math.ceil(len(self.examples) / self.batch_size) if self.shuffle else len(self.plan(0))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of one epoch.

        Args:
            epoch: Picks the order.
            start: Batches to leave out at the beginning, to go on where a run was stopped.
        """
        for rows_N in self.plan(epoch)[start:]:
            # Every world_size-th row: each rank's share has the same spread of lengths.
            yield self._collate(rows_N[self.rank :: self.world_size], len(rows_N))

    def plan(self, epoch: int) -> list[Int64Array]:
        """Row numbers of each global batch of an epoch."""
        lengths_N = np.minimum(self.examples.lengths_N, self.max_length)
        if not self.shuffle:
            return length_ordered(lengths_N, self.batch_size, TOKEN_BUDGET * self.world_size)
        random = np.random.default_rng((self.seed, epoch))
        order_N = random.permutation(len(lengths_N))
        batches: list[Int64Array] = []
        for window in _cut(order_N, self.batch_size * WINDOW_BATCHES):
            batches += _cut(window[np.argsort(lengths_N[window], kind="stable")], self.batch_size)
        return [batches[i] for i in random.permutation(len(batches))]

    def _collate(self, rows: Int64Array, num_global: int) -> Batch:
        ids, offsets = self.examples.ids, self.examples.offsets
        sequences = [ids[offsets[row] : min(offsets[row + 1], offsets[row] + self.max_length)] for row in rows]
        is_filler = not sequences
        ids_BT, lengths_B = pad(sequences or [np.empty(0, np.int32)], self.pad_id)
        labels_B = torch.zeros(1) if is_filler else torch.from_numpy(self.examples.labels_N[rows]).float()
        weights_B = torch.zeros(1) if is_filler else torch.ones(len(rows))
        return Batch(ids_BT, lengths_B, labels_B, weights_B, num_global)


def _cut(rows: Int64Array, size: int) -> list[Int64Array]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
