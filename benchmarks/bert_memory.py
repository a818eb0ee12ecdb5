"""Peak memory of training a BERT-GRU's head on kept features: what the process holds, at two sizes of the corpus.

Run by `benchmarks/bert_gru.py` in a process for each size: `python benchmarks/bert_memory.py SHARDS STEPS WIDTH`.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import torch

from sentiment.batching import LengthBucketedBatches
from sentiment.devices import resolve_precision
from sentiment.features import EncodedRows, write_shard
from sentiment.models.bert_gru import GruHead
from sentiment.optimisation import Optimisation
from sentiment.training import fit

CPU = torch.device("cpu")
_SHARD_ROWS = 2048
_TOKENS = 20


def write_features(folder: Path, rows: int, width: int) -> None:
    """Made-up features of rows of 20 tokens: memory doesn't ask what they say."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for start in range(0, rows, _SHARD_ROWS):
        count = min(_SHARD_ROWS, rows - start)
        labels = random.integers(0, 2, count).astype(np.int32)
        features_SE = torch.randn(count * _TOKENS, width).bfloat16()
        row_ids = np.arange(start, start + count, dtype=np.int64)
        write_shard(folder / f"{start:09}.safetensors", row_ids, labels, [[0] * _TOKENS] * count, features_SE)


def train(folder: Path, width: int, steps: int) -> dict[str, float]:
    """Train some steps over the whole corpus' order; memory in MB: held at most, before, and of mapped files."""
    seen: dict[str, float] = {}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            for name, value in _memory().items():
                seen[name] = max(seen.get(name, 0.0), value)

    torch.manual_seed(0)
    head = GruHead(width, 256, 2, True, 0.25, "concat")
    before = _memory()["RssAnon"]
    watcher = threading.Thread(target=watch)
    watcher.start()
    rows = EncodedRows(folder)
    batches = LengthBucketedBatches(rows, batch_size=128, pad_id=0, max_length=64)
    settings = Optimisation(1, 1e-3, "constant", 0.0, 0.0, 0.0, seed=1)
    few = _Few(batches, steps)
    fit(head, few, few, settings, device=CPU, precision=resolve_precision("auto", CPU))
    stop.set()
    watcher.join()
    return {"rows": len(rows), "peak_mb": seen["RssAnon"], "before_mb": before, "mapped_files_mb": seen["RssFile"]}


class _Few:
    """The first steps of an epoch: enough to see, also of the large corpus."""

    def __init__(self, batches: LengthBucketedBatches, steps: int) -> None:
        self._batches, self._steps = batches, steps

    def __len__(self) -> int:
        return self._steps

    def epoch(self, epoch: int, start: int = 0):
        for step, batch in enumerate(self._batches.epoch(epoch, start)):
            if step == self._steps:
                return
            yield batch


def _memory() -> dict[str, float]:
    """MB of this process, as Linux counts: anonymous memory, and pages of mapped files, which it can drop."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


if __name__ == "__main__":
    print(json.dumps(train(Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[2]))))
