"""Batches of a few fixed sizes, bucketed by length: where most of the speed comes from.

Rows are shuffled, sorted by length inside windows of many batches, cut into batches of exactly `batch_size`, and the
batches shuffled. A batch then holds rows of nearly one length (little padding), always in the same few shapes (oneDNN
builds a primitive for each new one), while the order stays random enough to train on. All of it follows from
(seed, epoch), so every rank plans the same batches and takes its own rows, and a run can resume in the middle of an
epoch.

Shapes: B rows of a batch, T tokens (padded), N rows of a split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Protocol

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
# What a step over a batch costs beside its rows, in rows (LSTM and MiniLM on a CPU: 16 and 32 are equally fast, 4 and
# 64 slower).
_STEP_ROWS = 24
# Rows of the smallest batch that is worth having a kernel set up for it.
_MIN_BATCH = 8


@dataclass(frozen=True)
class Examples:
    """`Rows` of encoded texts, flat: row i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: Int32Array
    offsets: Int64Array
    labels_N: Int32Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths_N(self) -> Int64Array:  # noqa: N802
        """Tokens of each row."""
        return np.diff(self.offsets)

    def collate(self, rows_B: Int64Array, pad_id: int, max_length: int) -> tuple[Tensor, Tensor]:
        """Lay rows side by side; as `pad` does."""
        ids, offsets = self.ids, self.offsets
        return pad([ids[offsets[row] : min(offsets[row + 1], offsets[row] + max_length)] for row in rows_B], pad_id)


class Rows(Protocol):
    """What batches are made of: encoded texts, or an encoder's features of them."""

    @property
    def labels_N(self) -> Int32Array:  # noqa: N802
        """0 negative, 1 positive."""
        ...

    @property
    def lengths_N(self) -> Int64Array:  # noqa: N802
        """Tokens of each row."""
        ...

    def __len__(self) -> int: ...

    def collate(self, rows_B: Int64Array, pad_id: int, max_length: int) -> tuple[Tensor, Tensor]:
        """Lay rows side by side: inputs, and lengths_B of at least 1; no rows at all make one row of one token."""
        ...


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch, or a micro-batch of that where it is too large for one pass.

    Attributes:
        inputs_BT: Token ids, padded on the right, int32; or an encoder's features of them, (B, T, E).
        lengths_B: Real tokens of each row, at least 1, int64.
        labels_B: float32.
        weights_B: 1 for a row, 0 for the filler of a rank that had none; float32.
        num_global: Rows of the whole batch over all ranks.
        ends_step: It is the last micro-batch: the weights are to be updated.
    """

    inputs_BT: Tensor
    lengths_B: Tensor
    labels_B: Tensor
    weights_B: Tensor
    num_global: int
    ends_step: bool = True

    def to(self, device: torch.device) -> Batch:
        """Copy what isn't there already to `device`, without waiting for it."""
        tensors = {name: getattr(self, name) for name in ("inputs_BT", "lengths_B", "labels_B", "weights_B")}
        moved = {
            name: tensor.pin_memory().to(device, non_blocking=True)
            for name, tensor in tensors.items()
            if tensor.device.type != device.type
        }
        return replace(self, **moved) if moved else self


def padded_length(length: int) -> int:
    """Round a length up so that few shapes occur: to 2 for tweets, to 16 for longer texts (under 12 % padding)."""
    multiple = 2 if length <= 64 else 16
    return -(-length // multiple) * multiple


def padded_rows(count: int) -> int:
    """Round a number of rows up so that few shapes occur: to a multiple of 4 from 5 on, of 8 from 33 on, and so on.

    A service sees batches of any size; oneDNN sets up kernels for each new shape, which takes as long as a short text
    and some 100 kB of memory that it keeps.
    """
    if count <= 4:
        return count
    multiple = max(4, 2 ** (count - 1).bit_length() // 8)
    return int(-(-count // multiple) * multiple)


def pad(rows: Sequence[Any], pad_id: int, num_rows: int = 1) -> tuple[Tensor, Tensor]:
    """Lay rows of ids side by side, as ids_BT int32 and lengths_B int64.

    An empty row becomes one pad token, since every row has a last token; so do rows that are missing to `num_rows`.
    """
    lengths = [max(1, len(row)) for row in rows] + [1] * (num_rows - len(rows))
    ids_BT = np.full((len(lengths), padded_length(max(lengths))), pad_id, dtype=np.int32)
    for filled, row in zip(ids_BT, rows, strict=False):
        filled[: len(row)] = row
    return torch.from_numpy(ids_BT), torch.tensor(lengths)


def length_ordered(lengths_N: Int64Array, batch_size: int, token_budget: int) -> list[Int64Array]:
    """Cut rows into batches for inference, by row number: rows of about one length together, the longest first.

    Lengths have a long tail, so equal batches of sorted rows would be a fifth padding: the few longest rows of a shard
    of tweets are ten times the median. The cut with the least work is found by dynamic programming over the sorted
    rows, where a batch's work is its padded tokens and, for each of its steps, that of `_STEP_ROWS` rows more.

    Args:
        lengths_N: Tokens of each row.
        batch_size: Rows of the largest batch; the others are it halved some times, so only a few sizes occur.
        token_budget: Padded tokens that a batch may hold; bounds memory on long texts.
    """
    if not len(lengths_N):
        return []
    order_N = np.argsort(-lengths_N, kind="stable")
    grain = batch_size
    while grain > 1 and (grain > _MIN_BATCH or padded_length(int(lengths_N[order_N[0]])) * grain > token_budget):
        grain //= 2
    lengths = [padded_length(max(1, length)) for length in lengths_N[order_N[::grain]].tolist()]
    sizes = [2**k for k in range((batch_size // grain).bit_length())]
    # From the shortest rows on: the least work for the grains from i on, and the size of the first batch among them.
    work, first = [0] * (len(lengths) + 1), [1] * len(lengths)
    for i in reversed(range(len(lengths))):
        fitting = [size for size in sizes if size == 1 or lengths[i] * size * grain <= token_budget]
        work[i], first[i] = min(
            (lengths[i] * (size * grain + _STEP_ROWS) + work[min(i + size, len(lengths))], size) for size in fitting
        )
    batches, start = [], 0
    while start < len(lengths):
        batches.append(order_N[start * grain : (start + first[start]) * grain])
        start += first[start]
    return batches


@dataclass
class LengthBucketedBatches:
    """Batches of one split for one rank; the same plan on every rank, each row once an epoch.

    Every rank gets the same number of batches. Only the last batch can be smaller; if it has fewer rows than there are
    ranks, the others get one filler row of weight 0 so that all of them take the step.

    Args:
        rows: All rows of the split, on every rank.
        batch_size: Global rows of a batch, over all ranks.
        pad_id: Fills short rows.
        max_length: Rows are cut to their first tokens.
        shuffle: Random order by (seed, epoch); otherwise by length and in smaller batches where texts are long, for
            evaluation.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.
        max_micro_batch_tokens: Padded tokens that a pass in training may hold; a rank's share of a batch that holds
            more comes as micro-batches, over which gradients accumulate. None: always in one.
    """

    rows: Rows
    _: KW_ONLY
    batch_size: int
    pad_id: int
    max_length: int
    shuffle: bool = True
    seed: int = 1
    rank: int = 0
    world_size: int = 1
    max_micro_batch_tokens: int | None = None

    def __len__(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return math.ceil(len(self.rows) / self.batch_size) if self.shuffle else len(self.plan(0))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of one epoch but for the first `start`, to resume where a run was stopped."""
        lengths_N = np.minimum(self.rows.lengths_N, self.max_length)
        for rows_N in self.plan(epoch)[start:]:
            # Every world_size-th row: each rank's share has the same spread of lengths.
            share_B = rows_N[self.rank :: self.world_size]
            micro_batches = [share_B]
            if self.max_micro_batch_tokens is not None and self.shuffle and len(share_B):
                cut = length_ordered(lengths_N[share_B], len(share_B), self.max_micro_batch_tokens)
                micro_batches = [share_B[rows] for rows in cut]
            for index, rows_B in enumerate(micro_batches, start=1):
                inputs_BT, lengths_B = self.rows.collate(rows_B, self.pad_id, self.max_length)
                is_filler = not len(rows_B)
                labels_B = torch.zeros(1) if is_filler else torch.from_numpy(self.rows.labels_N[rows_B]).float()
                weights_B = torch.zeros(1) if is_filler else torch.ones(len(rows_B))
                yield Batch(inputs_BT, lengths_B, labels_B, weights_B, len(rows_N), index == len(micro_batches))

    def plan(self, epoch: int) -> list[Int64Array]:
        """Row numbers of each global batch of an epoch."""
        lengths_N = np.minimum(self.rows.lengths_N, self.max_length)
        if not self.shuffle:
            return length_ordered(lengths_N, self.batch_size, TOKEN_BUDGET * self.world_size)

        def cut(rows: Int64Array, size: int) -> list[Int64Array]:
            return [rows[start : start + size] for start in range(0, len(rows), size)]

        random = np.random.default_rng((self.seed, epoch))
        order_N = random.permutation(len(lengths_N))
        batches: list[Int64Array] = []
        for window in cut(order_N, self.batch_size * WINDOW_BATCHES):
            batches += cut(window[np.argsort(lengths_N[window], kind="stable")], self.batch_size)
        return [batches[i] for i in random.permutation(len(batches))]
