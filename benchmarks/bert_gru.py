#!/usr/bin/env python
"""Measure the BERT-GRU: speed against the notebook's way, memory, quality on real data; each lane by itself or all.

  python benchmarks/bert_gru.py speed --data runs/sentiment140
  python benchmarks/bert_gru.py memory
  python benchmarks/bert_gru.py quality --data runs/sentiment140 --recipes bert-tweets bert-tweets-tuned --seeds 1 2 3
  python benchmarks/bert_gru.py quality --data runs/imdb --recipes bert-reviews --seeds 1
  python benchmarks/bert_gru.py gpu                                  # bert-base's shape on a CUDA GPU

Writes docs/results/bert_gru.json (raw) and docs/results/bert_gru.md; lanes that aren't run keep their figures.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import bert_cuda
import bert_memory
import bert_speed
import torch

from jobs.report import machine, machine_line
from sentiment.bert_recipes import BERT_RECIPES
from sentiment.encoders import find_encoder

ROOT = Path(__file__).resolve().parent.parent
JSON, PAGE = ROOT / "docs/results/bert_gru.json", ROOT / "docs/results/bert_gru.md"
_PACKAGES = ("torch", "transformers")


def main() -> None:
    """Run a lane and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lane", choices=["speed", "memory", "quality", "gpu", "page"], help="page: only write it anew")
    parser.add_argument("--data", help="folder that jobs/prepare.py wrote")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--rows", type=int, default=8192, help="training rows of a speed epoch")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text (speed)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each contender is measured")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (speed)")
    parser.add_argument("--recipes", nargs="+", default=["bert-tweets"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "bench-bert", help="folder for runs and features"
    )
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(JSON.read_text()) if JSON.exists() else {}
    if args.lane != "page":
        lane = {"speed": _speed, "memory": _memory, "quality": _quality, "gpu": _gpu}[args.lane]
        when = {"machine": machine(*_PACKAGES), "created": datetime.now(UTC).isoformat(timespec="seconds")}
        for name, figures in lane(args).items():
            results[name] = {**when, **figures}
            JSON.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(_page(results))


def _speed(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    source, scratch = find_encoder(args.encoder), args.output / "speed"
    lengths = {"rows": args.rows, "max_length": args.max_length, "rounds": args.rounds}
    return {"speed": bert_speed.measure(source, args.data, scratch, **lengths)}


def _memory(args: argparse.Namespace) -> dict[str, Any]:
    width, sizes = 384, [20_000, 160_000]
    runs = []
    for rows in sizes:
        folder = args.output / f"memory-{rows}"
        bert_memory.write_features(folder, rows, width)
        command = [sys.executable, "benchmarks/bert_memory.py", str(folder), "150", str(width)]
        runs.append(json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout))
    return {"memory": {"steps": 150, "width": width, "runs": runs}}


def _quality(args: argparse.Namespace) -> dict[str, Any]:
    runs = {}
    for recipe in args.recipes:
        for seed in args.seeds:
            flags = ["--data", args.data, "--recipe", recipe, "--seed", str(seed), "--encoder", args.encoder]
            flags += ["--output", str(args.output / f"{recipe}-{seed}"), "--resume"]
            command = [sys.executable, "jobs/train_bert.py", *flags, "--features", str(args.output / "features")]
            print("$", shlex.join(command[1:]), file=sys.stderr, flush=True)
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            for place in ("bundle", "curve", "output"):
                figures.pop(place)
            runs[f"quality {recipe} {seed}"] = {"seed": seed, **figures}
    return runs


def _gpu(args: argparse.Namespace) -> dict[str, Any]:
    return {"gpu": bert_cuda.measure(args.rounds)}


def _page(results: dict[str, Any]) -> str:
    parts = [
        "# BERT-GRU, measured\n\nMade with `benchmarks/bert_gru.py`, whose `--help` has the commands; raw numbers in "
        "[bert_gru.json](bert_gru.json). Encoder `minilm` is all-MiniLM-L6-v2: 22.7 million parameters, 6 layers, 384 "
        "wide.\n",
        _quality_part({name: run for name, run in results.items() if name.startswith("quality ")}),
        _speed_part(results.get("speed")),
        _memory_part(results.get("memory")),
        _gpu_part(results.get("gpu")),
    ]
    return "\n".join(part for part in parts if part)


def _quality_part(runs: dict[str, Any]) -> str:
    if not runs:
        return ""
    rows = []
    for recipe in dict.fromkeys(run["recipe"] for run in runs.values()):
        mine = [run for run in runs.values() if run["recipe"] == recipe]
        tests = [100 * run["test_accuracy"] for run in mine]
        spread = f" ± {stdev(tests):.2f}" if len(tests) > 1 else ""
        first = mine[0]
        rows.append(
            f"| `{recipe}` | **{mean(tests):.2f}{spread} %** | {', '.join(str(run['seed']) for run in mine)} | "
            f"{_settings(recipe)} | {first['parameters']:,} | {first['trainable_parameters']:,} | "
            f"{mean(run['rows_per_s'] for run in mine):,.0f} | {mean(run['duration_s'] for run in mine):,.0f} |"
        )
    where = machine_line(next(iter(runs.values()))["machine"])
    return f"""## Quality

Test accuracy of the epoch with the lowest validation loss, mean ± standard deviation over seeds. The time is the job's
from Ray's start to the bundle; seeds after the first find the features that it kept. Training rows/s counts training
steps, on two workers. On {where}.

| recipe | test accuracy | seeds | settings | parameters | of them trained | training rows/s | time, s |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def _settings(name: str) -> str:
    recipe = BERT_RECIPES[name]
    layers = f"top {recipe.unfreeze_layers} layers at {recipe.encoder_learning_rate:g}, " * bool(recipe.unfreeze_layers)
    return (
        f"{recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.schedule} {recipe.learning_rate:g}, {layers}"
        f"{recipe.max_length} tokens, {recipe.truncation}"
    )


def _speed_part(run: dict[str, Any] | None) -> str:
    if not run:
        return ""
    turns = len(run["rows_per_s"]["notebook"])
    rows = [f"| {name} | {rate:,.1f} | {run['ratio'][name]:.1f} |" for name, rate in run["median"].items()]
    return f"""## Speed of training

Rows/s of an epoch on tweets, frozen `{run["encoder"]}`, batch 128; medians of {turns} turns in one process with
{run["threads"]} thread(s). *notebook*: every batch encoded anew, in random order, padded, float32. *first epoch*:
tokenise, encode in bf16 by length, keep, train. *later epoch*: train from what was kept. On
{machine_line(run["machine"])}.

| | rows/s | × notebook |
|---|---|---|
{chr(10).join(rows)}
"""


def _memory_part(run: dict[str, Any] | None) -> str:
    if not run:
        return ""
    rows = [
        f"| {one['rows']:,} | {one['peak_mb']:,.0f} | {one['peak_mb'] - one['before_mb']:,.0f} | "
        f"{one['mapped_files_mb']:,.0f} |"
        for one in run["runs"]
    ]
    return f"""## Memory of training

{run["steps"]} steps of batch 128 over kept features {run["width"]} wide, a process for each corpus. Features are
memory-mapped: pages that were read are the system's to drop, and count apart. On {machine_line(run["machine"])}.

| rows of the corpus | peak memory, MB | of it for training | mapped pages at the peak, MB |
|---|---|---|---|
{chr(10).join(rows)}
"""


def _gpu_part(run: dict[str, Any] | None) -> str:
    if not run:
        return "## On a GPU\n\nNot measured yet: `python benchmarks/bert_gru.py gpu`.\n"
    rows = [f"| {name} | {value:,.1f} |" for name, value in run["figures"].items()]
    return f"""## On a GPU

bert-base's shape, bf16, tweets of 24 tokens. On {machine_line(run["machine"])}.

| | |
|---|---|
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    main()
