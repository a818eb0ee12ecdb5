#!/usr/bin/env python
"""Measure the BERT-GRU: speed against the notebook's way, memory, quality on real data, and speed on a GPU.

  python benchmarks/bert_gru.py speed --data runs/sentiment140
  python benchmarks/bert_gru.py memory
  python benchmarks/bert_gru.py quality --data runs/sentiment140 --recipes bert-tweets bert-tweets-tuned --seeds 1 2 3
  python benchmarks/bert_gru.py quality --data runs/imdb --recipes bert-reviews --seeds 1
  python benchmarks/bert_gru.py gpu                                  # bert-base's shape on a CUDA GPU
  python benchmarks/bert_gru.py page                                 # only write the page again

speed    an epoch of training: the notebook's (every batch encoded anew, rows in random order, padded, float32, torch's
         GRU over padding and all; its texts tokenized beforehand), our first (tokenize, encode rows of similar length
         in bf16, keep, train the head) and our later ones (train from what was kept).
memory   peak of a process that trains on kept features, at two sizes of the corpus.
quality  test accuracy of jobs/train_bert.py, for each recipe and seed.
gpu      scoring, encoding and training in bf16 with random weights, as shares of the card's measured matrix rate.

Contenders take turns, --repeats times after one that warms up. --data is a folder of jobs/prepare.py. Writes
bert_gru.json (raw) and bert_gru.md into --results; lanes that aren't run keep their figures.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median

import numpy as np
import psutil
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # The code lies beside it, installed or not.

from benchmarks import harness
from benchmarks.harness import Figures, table
from benchmarks.reproduction.page import mean_and_deviation
from sentiment.batching import Batch, LengthBucketedBatches
from sentiment.data.prepared import PreparedData
from sentiment.devices import pick_device, resolve_precision
from sentiment.models.bert_gru import BertGruClassifier, GruHead
from sentiment.models.encoders import EncoderSource, find_encoder, load_encoder, read_config
from sentiment.schema import LABEL, TEXT, TRAIN
from sentiment.tokenizers import EncoderTokenizer
from sentiment.training.feature_cache import EncodedRows, FrozenEncoder, write_shard
from sentiment.training.loop import fit
from sentiment.training.recipes import BERT_RECIPES, OptimizerConfig

BATCH_SIZE, SHARD_ROWS = 128, 2048
MEMORY_ROWS, MEMORY_STEPS, MEMORY_WIDTH, MEMORY_TOKENS = (20_000, 160_000), 150, 384, 20
GPU_ROWS, GPU_TOKENS = 2048, 24
# Multiply-adds of a token: 12 layers of 4 E² + 2·E·4E, and two layers of a bidirectional GRU; attention adds under 1 %.
ENCODER_FLOPS = 2 * 12 * 12 * 768**2
HEAD_FLOPS = 2 * 2 * 3 * 256 * (768 + 256 + 512 + 256)


class Notebook(nn.Module):
    """The notebook's model: the encoder inside, frozen by `no_grad`."""

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
        logits: Tensor = self.out(self.dropout(torch.cat((hidden[-2], hidden[-1]), dim=1)))
        return logits.squeeze(1)


def _train_epoch(rows: EncodedRows, head: nn.Module, max_length: int, steps: int | None = None) -> float:
    """Train a head on kept features for an epoch or its first steps; gives training rows/s."""
    device = pick_device()
    train, validation = (
        LengthBucketedBatches(rows, batch_size=BATCH_SIZE, pad_id=0, max_length=max_length, shuffle=shuffle)
        for shuffle in (True, False)
    )
    config = OptimizerConfig(epochs=1, learning_rate=1e-3, clip_norm=0.0)
    precision = resolve_precision("auto", device)
    if steps is None:
        final = fit(head, train, validation, config, seed=1, device=device, precision=precision)
    else:
        few = _FirstSteps(train, steps)
        final = fit(head, few, few, config, seed=1, device=device, precision=precision)
    return float(final.progress.history[0]["rows_per_s"])


class _FirstSteps:
    """The first steps of an epoch: enough to see what memory does, also of a large corpus."""

    def __init__(self, batches: LengthBucketedBatches, steps: int) -> None:
        self._batches, self._steps = batches, steps

    def __len__(self) -> int:
        return self._steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for _, batch in zip(range(self._steps), self._batches.epoch(epoch, start), strict=False):
            yield batch


def _speed(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    torch.set_num_threads(args.threads)
    source, device, max_length = find_encoder(args.encoder), pick_device(), args.max_length
    rows = PreparedData(args.data).texts(TRAIN).slice(0, args.rows or 8192)
    texts, labels = rows[TEXT].to_pylist(), rows[LABEL].to_numpy().astype(np.int32)
    tokenizer = EncoderTokenizer.from_pretrained(source.path)
    theirs, model = Notebook(source).to(device), BertGruClassifier(read_config(source))
    model.encoder = load_encoder(source)
    lower, upper = model.halves(0)
    encoder = FrozenEncoder(lower.to(device), device, resolve_precision("auto", device))
    few = tokenizer.encode(texts[: len(texts) // 4], max_length)  # The notebook's way takes long enough with a quarter.

    def notebook() -> float:
        order = np.random.default_rng(0).permutation(len(few))
        optimizer = torch.optim.Adam(weight for weight in theirs.parameters() if weight.requires_grad)
        theirs.train()
        started = time.perf_counter()
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            ids_BT = nn.utils.rnn.pad_sequence([torch.tensor(few[row]) for row in rows], True, tokenizer.pad_id)
            labels_B = torch.tensor(labels[rows], dtype=torch.float32, device=device)
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(theirs(ids_BT.to(device)), labels_B)
            torch.autograd.backward(loss)
            optimizer.step()
            loss.item()  # As the notebook's, which adds it up.
        return len(few) / (time.perf_counter() - started)

    def first_epoch() -> float:
        started = time.perf_counter()
        shutil.rmtree(scratch / "features", ignore_errors=True)
        (scratch / "features").mkdir()
        for start in range(0, len(texts), SHARD_ROWS):
            rows = slice(start, start + SHARD_ROWS)
            ids = tokenizer.encode(texts[rows], max_length)
            row_ids, path = np.arange(start, start + len(ids)), scratch / "features" / f"{start:09}.safetensors"
            write_shard(path, row_ids, labels[rows], ids, encoder.rows(ids, tokenizer.pad_id))
        encoding_s = time.perf_counter() - started
        return len(texts) / (encoding_s + len(texts) / later_epoch())

    def later_epoch() -> float:
        return _train_epoch(EncodedRows(scratch / "features"), upper, max_length)

    ways = {"notebook": notebook, "first epoch": first_epoch, "later epoch": later_epoch}
    measures = {name: lambda way=way: {"rows_per_s": round(way(), 1)} for name, way in ways.items()}
    turns = harness.take_turns(args.repeats + 1, measures)  # The first turn warms up.
    rates = {name: [one["rows_per_s"] for one in found[1:]] for name, found in turns.items()}
    medians = {name: round(median(found), 1) for name, found in rates.items()}
    ratio = {name: round(rate / medians["notebook"], 2) for name, rate in medians.items()}
    conditions = {"encoder": source.name, "rows": len(texts), "max_length": max_length, "threads": args.threads}
    yield "speed", {**conditions, "device": device.type, "rows_per_s": rates, "median": medians, "ratio": ratio}


def _memory(_: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    runs = []
    for rows in MEMORY_ROWS:
        folder, random = scratch / str(rows), np.random.default_rng(0)
        folder.mkdir()
        for start in range(0, rows, SHARD_ROWS):
            row_ids = np.arange(start, min(rows, start + SHARD_ROWS))
            features_SE = torch.randn(len(row_ids) * MEMORY_TOKENS, MEMORY_WIDTH).bfloat16()
            labels, ids = random.integers(0, 2, len(row_ids)).astype(np.int32), [[0] * MEMORY_TOKENS] * len(row_ids)
            write_shard(folder / f"{start:09}.safetensors", row_ids, labels, ids, features_SE)
        runs.append({"rows": rows, **harness.in_process(train_on_features, folder)})
    yield "memory", {"steps": MEMORY_STEPS, "width": MEMORY_WIDTH, "runs": runs}


def train_on_features(folder: Path) -> Figures:
    """Train some steps; memory of this process in MB: before, held at most, and of mapped files at most."""
    torch.manual_seed(0)
    head = GruHead(MEMORY_WIDTH, 256, 2, True, 0.25, "concat")
    with harness.MemoryWatch(lambda: [psutil.Process()]) as memory:
        _train_epoch(EncodedRows(folder), head, 64, MEMORY_STEPS)
    held_mb = [(sample["rss"] - sample["shared"]) / 1e6 for sample in memory.samples]
    before_mb, peak_mb = round(held_mb[0]), round(max(held_mb))
    return {"peak_mb": peak_mb, "before_mb": before_mb, "mapped_files_mb": memory.peak_mb("shared")}


def _quality(args: argparse.Namespace, _: Path) -> Iterator[tuple[str, Figures]]:
    for recipe in args.recipes:
        for seed in args.seeds:
            places = ["--output", args.output / f"{recipe}-{seed}", "--features", args.output / "features", "--resume"]
            flags = ["--data", args.data, "--recipe", recipe, "--seed", seed, "--encoder", args.encoder, *places]
            figures = harness.job("train_bert", *flags)
            for place in ("bundle", "curve", "output"):
                figures.pop(place)
            yield f"quality {recipe} {seed}", {"seed": seed, **figures}


def _gpu(args: argparse.Namespace, _: Path) -> Iterator[tuple[str, Figures]]:
    from transformers import BertConfig

    if not torch.cuda.is_available():
        raise SystemExit("the lane gpu needs a CUDA GPU")
    device = torch.device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = True
    model = BertGruClassifier(BertConfig().to_dict())
    for weight in model.encoder.parameters():
        nn.init.normal_(weight, std=0.02)
    model.to(device).eval()
    lower, upper = model.halves(0)
    encoder = FrozenEncoder(lower, device, "bf16")
    ids_BT = torch.randint(1000, 30_000, (GPU_ROWS, GPU_TOKENS), device=device)
    lengths_B = torch.full((GPU_ROWS,), GPU_TOKENS, device=device)
    labels_B = torch.randint(0, 2, (GPU_ROWS,), device=device).float()
    features_BTE = encoder(ids_BT, lengths_B)
    optimizer = torch.optim.AdamW(upper.parameters(), lr=1e-3, fused=True)

    def score() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            model(ids_BT, lengths_B)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits_B = upper(features_BTE, lengths_B)
        torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(logits_B.float(), labels_B))
        optimizer.step()

    def seconds(run: Callable[[], object]) -> float:
        taken = []
        for _ in range(args.repeats + 1):  # The first warms up.
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(10):
                run()
            torch.cuda.synchronize()
            taken.append((time.perf_counter() - started) / 10)
        return median(taken[1:])

    square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    peak = 2 * 8192**3 / seconds(lambda: square @ square)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "scoring": (score, ENCODER_FLOPS + HEAD_FLOPS),
        "encoding": (lambda: encoder(ids_BT, lengths_B), ENCODER_FLOPS),
        "training steps of the head on features in GPU memory": (train, 3 * HEAD_FLOPS),
    }
    figures = {"matrix rate of the card, bf16, TFLOP/s": peak / 1e12}
    for name, (way, flops) in ways.items():
        figures[f"{name}, tweets/s"] = rate = GPU_ROWS / seconds(way)
        figures[f"{name}, share of the matrix rate, %"] = 100 * rate * GPU_TOKENS * flops / peak
    yield "gpu", {"gpu_name": torch.cuda.get_device_name(), "rows": GPU_ROWS, "tokens": GPU_TOKENS, "figures": figures}


def _quality_table(*runs: Figures) -> str:
    rows = []
    for name in dict.fromkeys(run["recipe"] for run in runs):
        mine, recipe = [run for run in runs if run["recipe"] == name], BERT_RECIPES[name]
        settings = [f"{recipe.epochs} epochs", f"batch {recipe.batch_size}"]
        settings += [f"{recipe.schedule} {recipe.learning_rate:g}"]
        if recipe.unfreeze_layers:
            settings.append(f"top {recipe.unfreeze_layers} layers at {recipe.encoder_learning_rate:g}")
        settings += [f"{recipe.max_length} tokens", recipe.truncation]
        accuracy = mean_and_deviation(run["test_accuracy"] for run in mine)
        row = [f"`{name}`", f"**{accuracy}**", ", ".join(str(run["seed"]) for run in mine), ", ".join(settings)]
        row += [f"{mine[0][count]:,}" for count in ("parameters", "trainable_parameters")]
        rows.append([*row, *(f"{mean(run[kind] for run in mine):,.0f}" for kind in ("rows_per_s", "duration_s"))])
    head = ["recipe", "test accuracy", "seeds", "settings", "parameters", "of them trained", "training rows/s"]
    return table([*head, "time, s"], rows)


def _speed_table(run: Figures) -> str:
    rows = [[name, f"{rate:,.1f}", f"{run['ratio'][name]:.1f}"] for name, rate in run["median"].items()]
    conditions = (
        f"{len(run['rows_per_s']['notebook'])} turns over {run['rows']:,} rows with {run['threads']} torch thread(s),"
    )
    return f"{table(['', 'rows/s', '× notebook'], rows)}\n{conditions} encoder `{run['encoder']}`, batch 128."


def _memory_table(run: Figures) -> str:
    rows = []
    for one in run["runs"]:
        figures = (one["rows"], one["peak_mb"], one["peak_mb"] - one["before_mb"], one["mapped_files_mb"])
        rows.append([f"{figure:,.0f}" for figure in figures])
    head = ["rows of the corpus", "peak memory, MB", "of it for training", "mapped pages at the peak, MB"]
    return f"{table(head, rows)}\n{run['steps']} steps of batch 128, features {run['width']} wide."


def _gpu_table(run: Figures) -> str:
    rows = [[name, f"{value:,.1f}"] for name, value in run["figures"].items()]
    return table(["bert-base's shape, bf16, tweets of 24 tokens", run["gpu_name"]], rows)


SECTIONS: harness.Sections = {
    "quality": _quality_table,
    "speed": _speed_table,
    "memory": _memory_table,
    "gpu": _gpu_table,
}

LANES: dict[str, harness.Lane] = {"speed": _speed, "memory": _memory, "quality": _quality, "gpu": _gpu}
PARSER = harness.parser_of(__doc__, LANES)
PARSER.add_argument("--data", type=harness.absolute, help="folder that jobs/prepare.py wrote (speed, quality)")
PARSER.add_argument("--encoder", default="minilm")
PARSER.add_argument("--max-length", type=int, default=128, help="tokens of a text (speed)")
PARSER.add_argument("--threads", type=int, default=1, help="torch threads (speed)")
PARSER.add_argument("--recipes", nargs="+", default=["bert-tweets"])
PARSER.add_argument("--seeds", nargs="+", type=int, default=[1])
PARSER.add_argument("--output", type=harness.absolute, default=harness.ROOT / "runs/bench-bert", help="runs (quality)")

if __name__ == "__main__":
    harness.run(PARSER, "bert_gru", LANES, SECTIONS, packages=("torch", "transformers"), needs=())
