"""The features that a frozen encoder computes from texts, cached on disk: they are the same in every epoch.

A split is a folder of shards, each a safetensors file of up to some thousand rows, one after another:

    row_ids_N    int64
    labels_N     int32
    lengths_N    int32, tokens of each row
    ids_S        int32, the token ids of all rows; or
    features_SE  bfloat16 (float32 for training in float32), the encoder's states of the same tokens

Shards are memory-mapped: a process itself holds a row's label and position, 24 bytes.

Shapes: N rows, S tokens of all rows, E width of the encoder, B batch, T time (tokens, padded).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sentiment.batching import (
    TOKEN_BUDGET,
    Batch,
    Int32Array,
    Int64Array,
    length_ordered,
    pad,
    padded_length,
)
from sentiment.devices import autocast
from sentiment.errors import DataError
from sentiment.training.loop import Batches

# Rows of a batch that is only encoded, fewer where texts are long (`TOKEN_BUDGET`).
_ENCODING_BATCH = 512
FEATURE_DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class FrozenEncoder:
    """Computes features from token ids, with nothing to train.

    Attributes:
        layers: A `sentiment.models.bert_gru.LowerLayers` on `device`.
        device: Where it computes.
        precision: Number format of the pass, and of the features.
    """

    layers: nn.Module
    device: torch.device
    precision: Literal["bf16", "float32"]

    def __call__(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Returns features_BTE, on the device."""
        with torch.no_grad(), autocast(self.precision, self.device):
            features_BTE: Tensor = self.layers(ids_BT.to(self.device), lengths_B.to(self.device))
        return features_BTE.to(FEATURE_DTYPES[self.precision])

    def rows(self, ids: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """Encode rows in batches of similar length.

        Args:
            ids: Token ids of each row.
            pad_id: Fills short rows while they are encoded.

        Returns:
            features_SE of all rows' tokens, one row after another, on the CPU.
        """
        lengths_N = np.fromiter((len(row) for row in ids), np.int64, len(ids))
        starts_N = np.cumsum(lengths_N) - lengths_N
        features_SE = torch.empty(0)
        for rows_B in length_ordered(lengths_N, _ENCODING_BATCH, TOKEN_BUDGET):
            batch_BTE = self(*pad([ids[row] for row in rows_B], pad_id)).cpu()
            if not len(features_SE):
                features_SE = batch_BTE.new_empty(int(lengths_N.sum()), batch_BTE.shape[2])
            for row, row_TE in zip(rows_B, batch_BTE, strict=True):
                features_SE[starts_N[row] : starts_N[row] + lengths_N[row]] = row_TE[: lengths_N[row]]
        return features_SE


@dataclass(frozen=True)
class Slice:
    """Rows of one prepared Parquet file, and the shard that they become."""

    split: str
    file: str
    start: int
    rows: int

    def shard(self, folder: str | Path) -> Path:
        """Where it is written."""
        return Path(folder, self.split, f"{Path(self.file).stem}-{self.start:09}.safetensors")


def write_shard(
    path: Path, row_ids_N: Int64Array, labels_N: Int32Array, ids: Sequence[Sequence[int]], features_SE: Tensor | None
) -> None:
    """Write a shard and rename it when it is complete.

    Args:
        path: The file.
        row_ids_N: Ids of its rows.
        labels_N: Their labels.
        ids: Their token ids; not kept if features are.
        features_SE: The encoder's states of their tokens.
    """
    tensors = {
        # Copies: Arrow's arrays can't be written to, which torch warns of.
        "row_ids_N": torch.tensor(row_ids_N),
        "labels_N": torch.tensor(labels_N),
        "lengths_N": torch.tensor([len(row) for row in ids], dtype=torch.int32),
    }
    if features_SE is None:
        tensors["ids_S"] = torch.tensor([token for row in ids for token in row], dtype=torch.int32)
    else:
        tensors["features_SE"] = features_SE
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: another run may be writing the same shard.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    save_file(tensors, unfinished)
    unfinished.chmod(0o644)  # safetensors makes files that only their owner reads
    unfinished.replace(path)


class EncodedRows:
    """A split's shards as rows for batches, in the order of their row ids.

    Args:
        folder: The split's.

    Attributes:
        dtype: Number format of features; None without any rows.
        width: E of the features; None if these are token ids.
        lengths_N: Tokens of each row.
        labels_N: 0 negative, 1 positive.
    """

    def __init__(self, folder: Path) -> None:
        """Open the shards.

        Raises:
            DataError: One of them is damaged, or they don't go together.
        """
        shards: list[dict[str, Tensor]] = []
        for path in sorted(folder.glob("*.safetensors")):
            try:
                shards.append(load_file(path))
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path} can't be read ({error}): remove it, it will be made again") from error

        def joined(name: str, dtype: type[np.signedinteger]) -> np.ndarray:
            return np.concatenate([np.empty(0, dtype), *(shard[name].numpy().astype(dtype) for shard in shards)])

        self._tokens = [shard["features_SE" if "features_SE" in shard else "ids_S"] for shard in shards]
        row_ids_N = joined("row_ids_N", np.int64)
        order_N = np.argsort(row_ids_N)
        if (np.diff(row_ids_N[order_N]) == 0).any() or len({tokens.dtype for tokens in self._tokens}) > 1:
            raise DataError(f"the shards in {folder} don't go together: remove the folder, they will be made again")
        self.dtype = self._tokens[0].dtype if shards else None
        self.width = self._tokens[0].shape[1] if shards and self._tokens[0].dim() == 2 else None
        rows = [len(shard["row_ids_N"]) for shard in shards]
        lengths_N = joined("lengths_N", np.int64)
        self._shards_N = np.repeat(np.arange(len(shards), dtype=np.int32), rows)[order_N]
        # A row's first token within its shard; the shards' tokens lie one after another.
        shard_starts = np.cumsum([0, *map(len, self._tokens)])[:-1]
        self._starts_N = (np.cumsum(lengths_N) - lengths_N - np.repeat(shard_starts, rows))[order_N]
        self.lengths_N: Int64Array = lengths_N[order_N]
        self.labels_N: Int32Array = joined("labels_N", np.int32)[order_N]

    def __len__(self) -> int:
        return len(self.labels_N)

    def collate(self, rows_B: Int64Array, pad_id: int, max_length: int) -> tuple[Tensor, Tensor]:
        """Lay rows side by side.

        Args:
            rows_B: Which; none at all make one row of padding.
            pad_id: Fills short rows of ids; features are filled with zeros.
            max_length: Rows are cut to their first tokens.

        Returns:
            ids_BT int32 or features_BTE, and lengths_B int64.
        """
        rows = []
        for row in rows_B:
            start, length = int(self._starts_N[row]), min(int(self.lengths_N[row]), max_length)
            rows.append(self._tokens[self._shards_N[row]][start : start + length])
        if self.width is None:
            return pad([row.numpy() for row in rows], pad_id)
        rows = rows or [self._tokens[0][:0]]
        lengths_B = torch.tensor([max(1, len(row)) for row in rows])
        features_BTE = rows[0].new_zeros(len(rows), padded_length(int(lengths_B.max())), self.width)
        for filled_TE, row_TE in zip(features_BTE, rows, strict=True):
            filled_TE[: len(row_TE)] = row_TE
        return features_BTE, lengths_B


@dataclass(frozen=True)
class EncodingBatches:
    """Batches of token ids whose features are computed each time they are needed."""

    batches: Batches
    encoder: FrozenEncoder

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of one epoch, as features."""
        for batch in self.batches.epoch(epoch, start):
            yield replace(batch, inputs_BT=self.encoder(batch.inputs_BT, batch.lengths_B))
