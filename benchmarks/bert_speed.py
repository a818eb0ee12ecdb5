"""Training a BERT-GRU on features that are kept, against the notebook's way: contenders in turns, in one process.

The notebook encodes every batch anew: rows in random order, padded to the longest of their 128, float32, the encoder's
dropout on, PyTorch's own GRU over padding and all. Ours encodes rows of one length in bf16, once, and trains the head
on what was kept. Texts are tokenised beforehand for the notebook, on the clock for us.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sentiment.batching import LengthBucketedBatches
from sentiment.corpora.prepared import PreparedData
from sentiment.devices import pick_device, resolve_precision
from sentiment.encoder_tokenizer import EncoderTokenizer
from sentiment.encoders import EncoderSource, load_encoder, read_config
from sentiment.features import EncodedRows, FrozenEncoder, write_shard
from sentiment.models.bert_gru import BertGruClassifier
from sentiment.optimisation import Optimisation
from sentiment.schema import LABEL, TEXT, TRAIN
from sentiment.training import fit

BATCH_SIZE = 128
_SHARD_ROWS = 2048


class Notebook(nn.Module):
    """The source's model: the encoder inside, frozen by `no_grad`."""

    def __init__(self, source: EncoderSource) -> None:
        super().__init__()
        self.bert = load_encoder(source).requires_grad_(False)
        width = self.bert.config.hidden_size
        self.rnn = nn.GRU(width, 256, num_layers=2, bidirectional=True, batch_first=True, dropout=0.25)
        self.out = nn.Linear(512, 1)
        self.dropout = nn.Dropout(0.25)

    def forward(self, text: Tensor) -> Tensor:
        """Returns a logit for each row."""
        with torch.no_grad():
            embedded = self.bert(text)[0]
        _, hidden = self.rnn(embedded)
        return self.out(self.dropout(torch.cat((hidden[-2], hidden[-1]), dim=1)))


def measure(
    source: EncoderSource, data: str, scratch: Path, *, rows: int, max_length: int, rounds: int
) -> dict[str, Any]:
    """Rows a second of the notebook's epoch, of our first and of our later ones.

    Args:
        source: The encoder.
        data: Prepared folder.
        scratch: For features; emptied.
        rows: Training rows that our epochs take; the notebook's take a quarter of them.
        max_length: Tokens of a text that are read.
        rounds: Each contender is measured so often.
    """
    device = pick_device()
    table = PreparedData(data).texts(TRAIN).slice(0, rows)
    texts, labels = table[TEXT].to_pylist(), table[LABEL].to_numpy().astype(np.int32)
    tokenizer = EncoderTokenizer.from_pretrained(source.path)
    theirs, ours = Notebook(source).to(device), _Ours(source, tokenizer, scratch, max_length, device)
    few = rows // 4
    encoded = tokenizer.encode(texts[:few], max_length)
    contenders: dict[str, Callable[[], float]] = {
        "notebook": lambda: _notebook_epoch(theirs, encoded, labels[:few], tokenizer.pad_id, device),
        "first epoch": lambda: ours.first_epoch(texts, labels),
        "later epoch": ours.epoch,
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, rows_per_s in contenders.items():
            rate = rows_per_s()
            if number:  # The first round warms up.
                rates[name].append(rate)
    medians = {name: median(found) for name, found in rates.items()}
    return {
        "encoder": source.name,
        "rows": rows,
        "max_length": max_length,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "rows_per_s": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        "median": {name: round(rate, 1) for name, rate in medians.items()},
        "ratio": {name: round(rate / medians["notebook"], 2) for name, rate in medians.items()},
    }


class _Ours:
    def __init__(
        self, source: EncoderSource, tokenizer: EncoderTokenizer, scratch: Path, max_length: int, device: torch.device
    ) -> None:
        self.tokenizer, self.scratch, self.max_length, self.device = tokenizer, scratch, max_length, device
        self.precision = resolve_precision("auto", device)
        model = BertGruClassifier(read_config(source))
        model.encoder = load_encoder(source)
        lower, self.upper = model.halves(0)
        self.encoder = FrozenEncoder(lower.to(device), device, self.precision)

    def first_epoch(self, texts: list[str], labels: np.ndarray[Any, Any]) -> float:
        """Tokenise, encode, write, train. Returns rows/s."""
        started = time.perf_counter()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        for start in range(0, len(texts), _SHARD_ROWS):
            part = slice(start, start + _SHARD_ROWS)
            ids = self.tokenizer.encode(texts[part], self.max_length)
            path = self.scratch / f"{start:09}.safetensors"
            row_ids = np.arange(start, start + len(ids), dtype=np.int64)
            write_shard(path, row_ids, labels[part], ids, self.encoder.rows(ids, self.tokenizer.pad_id))
        encoding_s = time.perf_counter() - started
        return len(texts) / (encoding_s + len(texts) / self.epoch())

    def epoch(self) -> float:
        """Train the head for an epoch on the features that are there. Returns rows/s, validation not counted."""
        rows = EncodedRows(self.scratch)
        train, validation = (
            LengthBucketedBatches(rows, batch_size=BATCH_SIZE, pad_id=0, max_length=self.max_length, shuffle=shuffle)
            for shuffle in (True, False)
        )
        settings = Optimisation(1, 1e-3, "constant", 0.0, 0.0, 0.0, seed=1)
        final = fit(self.upper, train, validation, settings, device=self.device, precision=self.precision)
        return float(final.progress.history[0]["rows_per_s"])


def _notebook_epoch(
    model: Notebook, ids: list[list[int]], labels: np.ndarray[Any, Any], pad_id: int, device: torch.device
) -> float:
    """The notebook's loop over batches in random order. Returns rows/s."""
    order = np.random.default_rng(0).permutation(len(ids))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, criterion = torch.optim.Adam(trained), nn.BCEWithLogitsLoss()
    model.train()
    started = time.perf_counter()
    for start in range(0, len(order), BATCH_SIZE):
        rows = order[start : start + BATCH_SIZE]
        text = nn.utils.rnn.pad_sequence([torch.tensor(ids[row]) for row in rows], True, pad_id).to(device)
        optimizer.zero_grad()
        loss = criterion(model(text).squeeze(1), torch.tensor(labels[rows], dtype=torch.float32, device=device))
        loss.backward()
        optimizer.step()
        loss.item()  # As the notebook's, which adds it up.
    return len(ids) / (time.perf_counter() - started)
