#!/usr/bin/env python
"""Measure batch scoring: jobs/score.py from file to Parquet against other ways, at two sizes, and after a kill.

  python benchmarks/scoring.py bilstm --model runs/sentiment140/bundle --input sentiment140.parquet --rows 163840
  python benchmarks/scoring.py minilm --model runs/bert/bundle --input sentiment140.parquet --rows 32768
  python benchmarks/scoring.py size   --model runs/sentiment140/bundle --input sentiment140.parquet --repeats 1
  python benchmarks/scoring.py resume --model runs/sentiment140/bundle --input sentiment140.parquet --rows 320000
  python benchmarks/scoring.py page                                      # only write the page again

bilstm  the job; the notebooks' loop (batches of 64 in file order, float32, words split in Python) with the same model;
        the model's forward pass alone. Needs a bundle of a word-level model.
minilm  the job with a BERT-GRU; Hugging Face's text-classification pipeline with the same encoder, at the batch size
        that is best for it. Needs a bundle trained with --encoder minilm.
size    the input's rows repeated under fresh ids, --small and --large of them: rates, and peak memory of all processes.
resume  a run killed with SIGKILL at half its files and started again, against the work that was left.

Contenders take turns, each in a process of its own, --repeats times; ratios are of medians. Nothing else should run
meanwhile. A shard has 4,096 rows or more: of few rows the last shards keep one core busy while the others wait. Writes
scoring.json (raw) and scoring.md into --results; lanes that aren't run keep their figures. Temporary files: in TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # The code lies beside it, installed or not.

from benchmarks import harness
from benchmarks.harness import CORES, Figures, Turns, sample_of, say, table, target, texts_of
from sentiment.bundle import Bundle
from sentiment.devices import limit_threads
from sentiment.models.build import build_model
from sentiment.models.config import BertGruConfig
from sentiment.models.encoders import find_encoder
from sentiment.predictor import Predictor
from sentiment.tokenizers import WordTokenizer

NOTEBOOK_BATCH = 64
PIPELINE_BATCHES = (1, 8, 16, 32, 64, 128)
# Rows on which the pipeline's batch size is chosen, rows before the clock starts, rows of a run that measures a start.
SEARCH_ROWS, WARM_UP_ROWS, FEW_ROWS = 512, 256, 200
# Rows of a Parquet row group: the smallest archive has a few of them, so that its readers hold as much as any other's.
GROUP_ROWS = 32_768
# Texts that the forward pass alone sorts by length together, as many as the job does by default.
SLICE_ROWS = 4_096
SCHEMA = pa.schema([pa.field("id", pa.int64()), pa.field("text", pa.string())])
# Addresses and mentions stay whole, as with spaCy; one pattern is far less work than spaCy's rules.
WORD = re.compile(r"https?://\S+|@\w+|\w+(?:'\w+)?|[^\w\s]+")


def archive_of(source: Path, rows: int | None, folder: Path) -> Path:
    """Give an archive a number of rows: those of a file, again and again under fresh ids; None for the file itself."""
    if rows is None:
        return source
    path, texts = folder / f"{rows}.parquet", cycle(texts_of(source))
    # Written group by group: an archive of any size needs no more memory than the real file.
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as file:
        for start in range(0, rows, GROUP_ROWS):
            ids = range(start, min(rows, start + GROUP_ROWS))
            file.write_table(pa.table([pa.array(ids), pa.array(islice(texts, len(ids)), pa.string())], schema=SCHEMA))
    return path


def score(
    model: Path,
    archive: Path,
    output: Path,
    *,
    kill_at: int | None = None,
    memory: bool = False,
    checkout: Path = harness.ROOT,
) -> Figures:
    """Score an archive with jobs/score.py, or what is left of it, on an embedded Ray of its own.

    Args:
        model: Bundle.
        archive: The file.
        output: Folder that the job writes.
        kill_at: Files in scored/ at which the job's process group is killed with SIGKILL.
        memory: Sample the memory of all its processes.
        checkout: Whose code it runs.

    Returns:
        Rows, the manifest's rate, the wall time of the whole command, peaks of memory; of a killed run the rows and
        files that were written when all its processes were gone, and how long after the kill that was.
    """
    flags = ["--model", str(model), "--input", str(archive), "--output", str(output), "--num-cpus", str(CORES)]
    command = [sys.executable, "jobs/score.py", *flags]
    say(f"$ {shlex.join(command[1:])}")
    started = time.perf_counter()
    with harness.session(command, checkout=checkout) as job:
        if kill_at is not None:
            while scored_files(output) < kill_at:
                if job.poll() is not None:
                    raise SystemExit(f"the job ended before it had written {kill_at} files; score more rows")
                time.sleep(harness.POLL_S)
            os.killpg(job.pid, signal.SIGKILL)
        with harness.MemoryWatch(lambda: harness.members(job.pid) if memory else []) as watch:
            job.wait()
        ended = time.perf_counter()
    if kill_at is not None:
        # Actors may have finished a shard after the driver's death, so rows are counted only now.
        gone_s = round(time.perf_counter() - ended, 2)
        rows = pyarrow.dataset.dataset(output / "scored", format="parquet").count_rows()
        return {"rows_done": rows, "shards_done": scored_files(output), "gone_s": gone_s}
    if job.returncode:
        raise SystemExit("jobs/score.py failed; see above")
    manifest, wall_s = json.loads((output / "manifest.json").read_text()), ended - started
    kept = ("model_id", "rows_in", "rows_rejected", "rows_per_s", "files", "attempts")
    figures = {name: manifest[name] for name in kept} | {"wall_s": round(wall_s, 2)}
    figures["command_rows_per_s"] = round(manifest["rows_in"] / wall_s, 1)
    if memory:
        figures |= {f"peak_{kind}_mb": watch.peak_mb(kind) for kind in ("pss", "uss", "rss")}
        figures["pss_mb_at_peak"] = {name: round(size / 1e6) for name, size in watch.at_peak.most_common()}
    return figures


def scored_files(output: Path) -> int:
    """Files in a run's folder scored/, one for each shard that is done."""
    return sum(not path.name.startswith((".", "_")) for path in (output / "scored").glob("*.parquet"))


def score_anew(model: Path, archive: Path, output: Path, **options: Any) -> Figures:
    """Score an archive from the start, without leaving anything behind."""
    shutil.rmtree(output, ignore_errors=True)
    figures = score(model, archive, output, **options)
    shutil.rmtree(output, ignore_errors=True)
    return figures


def notebook(model: Path, archive: Path, rows: int, output: Path) -> Figures:
    """Score a sample to Parquet as the notebooks do: words split in Python, batches in file order, padded, float32."""
    bundle = Bundle.open(model)
    tokenizer = bundle.tokenizer()
    if not isinstance(tokenizer, WordTokenizer):
        raise SystemExit(f"{bundle.model_id} isn't a word-level model; the lane minilm is for the others")
    module = build_model(bundle.config.model).eval()
    module.load_state_dict(bundle.weights())
    numbers = {token: number for number, token in enumerate(tokenizer.tokens)}

    def ids(text: str) -> Tensor:
        found = [numbers.get(word, tokenizer.unk_id) for word in WORD.findall(text.lower())]
        return torch.tensor(found[: bundle.config.max_length] or [tokenizer.unk_id])

    @torch.inference_mode()
    def probabilities(texts: list[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(texts), NOTEBOOK_BATCH):
            rows = [ids(text) for text in texts[start : start + NOTEBOOK_BATCH]]
            ids_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_id)
            scores += torch.sigmoid(module(ids_BT, torch.tensor([len(row) for row in rows]))).tolist()
        return scores

    texts = sample_of(archive, rows)
    probabilities(texts[:WARM_UP_ROWS])
    started = time.perf_counter()
    scores = probabilities(texts)
    pq.write_table(pa.table({"text": texts, "p_positive": scores}), output)
    figures = harness.rate_of(len(texts), time.perf_counter() - started)
    # That it is the same model: its labels against ours, whose tokens are a little different.
    ours = Predictor.load(model, use_gpu=False, precision="float32")
    agreement = ((np.array(scores[:1000]) >= 0.5) == (ours.forward(ours.encode(texts[:1000])) >= 0.5)).mean()
    return {**figures, "threads": torch.get_num_threads(), "labels_as_ours": round(float(agreement), 4)}


def forward(model: Path, archive: Path) -> Figures:
    """Run the model alone, from tokens to probabilities, on as many processes as the job has actors, a thread each."""
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(CORES, context) as pool:
        barrier = manager.Barrier(CORES)  # Nobody begins before all are ready.
        shares = [pool.submit(forward_share, model, archive, share, barrier) for share in range(CORES)]
        found = [share.result() for share in shares]
    seconds = max(ended for _, ended, _ in found) - min(began for began, _, _ in found)
    return {**harness.rate_of(sum(rows for _, _, rows in found), seconds), "processes": CORES}


def forward_share(model: Path, archive: Path, share: int, barrier: Any) -> tuple[float, float, int]:
    """One process's slices: when it began and ended, and its rows."""
    try:
        limit_threads(1)
        predictor, texts = Predictor.load(model, use_gpu=False), texts_of(archive)
        starts = range(share * SLICE_ROWS, len(texts), CORES * SLICE_ROWS)
        slices = [predictor.encode(texts[start : start + SLICE_ROWS]) for start in starts]
        predictor.warm_up()
    except BaseException:
        barrier.abort()
        raise
    barrier.wait()
    began = time.time()
    for ids in slices:
        predictor.forward(ids)
    return began, time.time(), sum(map(len, slices))


def pipeline(model: Path, archive: Path, rows: int, batch_sizes: tuple[int, ...]) -> Figures:
    """Hugging Face's text-classification pipeline: the bundle's encoder under a fresh head of two labels, float32.

    Returns:
        Figures of the batch size that is best for a sample of so many rows, and the rate of each.
    """
    import transformers

    messages: Any = transformers.utils.logging
    messages.set_verbosity_error()  # It says that the head is fresh: it is.
    messages.disable_progress_bar()
    config = Bundle.open(model).config
    if not isinstance(config.model, BertGruConfig):
        raise SystemExit("the lane minilm needs a bundle of a BERT-GRU")
    path = find_encoder("minilm").path
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=2, dtype="float32")
    shape = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size")
    if any(getattr(classifier.config, name) != config.model.encoder[name] for name in shape):
        raise SystemExit("the bundle's encoder isn't minilm; train one with --encoder minilm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    classify = transformers.pipeline("text-classification", model=classifier.eval(), tokenizer=tokenizer, device="cpu")
    texts, found = sample_of(archive, rows), {}
    for batch_size in batch_sizes:
        options = {"batch_size": batch_size, "truncation": True, "max_length": config.max_length}
        classify(texts[: max(WARM_UP_ROWS, batch_size)], **options)
        started = time.perf_counter()
        classify(texts, **options)
        found[batch_size] = harness.rate_of(len(texts), time.perf_counter() - started)
    best = max(found, key=lambda size: float(found[size]["rows_per_s"]))
    rates = {str(size): one["rows_per_s"] for size, one in found.items()}
    return {**found[best], "threads": torch.get_num_threads(), "batch_size": best, "rates": rates}


def _bilstm(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    archive = archive_of(args.input, args.rows, scratch)
    contenders: dict[str, Callable[[], Figures]] = {
        "job": partial(score_anew, args.model, archive, scratch / "scored"),
        "notebook": partial(
            harness.in_process, notebook, args.model, archive, args.sample or 20_000, scratch / "loop.parquet"
        ),
        "forward": partial(harness.in_process, forward, args.model, archive),
    }
    yield "bilstm", _compared(harness.take_turns(args.repeats, contenders))


def _minilm(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    archive, rows = archive_of(args.input, args.rows, scratch), args.sample or 2048
    tried = harness.in_process(pipeline, args.model, archive, min(SEARCH_ROWS, rows), PIPELINE_BATCHES)
    search = {"rows": tried["rows"], "rows_per_s": tried["rates"], "best": tried["batch_size"]}
    contenders: dict[str, Callable[[], Figures]] = {
        "job": partial(score_anew, args.model, archive, scratch / "scored"),
        "pipeline": partial(harness.in_process, pipeline, args.model, archive, rows, (search["best"],)),
    }
    yield "minilm", {"batch_sizes": search, **_compared(harness.take_turns(args.repeats, contenders))}


def _compared(turns: Turns) -> Figures:
    found = {name: one["rows_per_s"] for name, one in harness.medians(turns, "rows_per_s").items()}
    found["command"] = median(one["command_rows_per_s"] for one in turns["job"])
    ratio = {name: round(found["job"] / one, 3) for name, one in found.items()}
    return {"model_id": turns["job"][0]["model_id"], "median": found, "ratio": ratio, "turns": turns}


def _size(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    rows = {"small": args.small, "large": args.large}
    archives = {name: archive_of(args.input, count, scratch) for name, count in rows.items()}
    contenders = {
        name: partial(score_anew, args.model, archive, scratch / "scored", memory=True)
        for name, archive in archives.items()
    }
    turns = harness.take_turns(args.repeats, contenders)
    found = harness.medians(turns, "rows_per_s", "peak_pss_mb", "peak_uss_mb", "peak_rss_mb")
    ratio = {kind: round(found["large"][kind] / found["small"][kind], 3) for kind in found["large"]}
    sizes = {name: archive.stat().st_size for name, archive in archives.items()}
    facts = {"model_id": turns["small"][0]["model_id"], "rows": rows, "bytes": sizes}
    yield "size", {**facts, "median": found, "ratio": ratio, "turns": turns}


def _resume(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    archive, few = archive_of(args.input, args.rows, scratch), archive_of(args.input, FEW_ROWS, scratch)

    def measure() -> Figures:
        for name in ("whole", "killed"):
            shutil.rmtree(scratch / name, ignore_errors=True)
        start_s = score_anew(args.model, few, scratch / "few")["wall_s"]
        whole = score(args.model, archive, scratch / "whole")
        shards = scored_files(scratch / "whole")
        killed = score(args.model, archive, scratch / "killed", kill_at=max(1, shards // 2))
        again = score(args.model, archive, scratch / "killed")
        if again["rows_in"] != whole["rows_in"]:
            raise SystemExit(f"{again['rows_in']} rows after the kill, {whole['rows_in']} without: that is a bug")
        left_s = (whole["rows_in"] - killed["rows_done"]) / whole["rows_per_s"]
        figures = {"whole": whole, "shards": shards, "killed": killed, "start_s": start_s, "left_s": round(left_s, 2)}
        return {**figures, "again": again, "ratio": round(again["wall_s"] / (left_s + start_s), 3)}

    turns = harness.take_turns(args.repeats, {"job": measure})["job"]
    ratio = median(turn["ratio"] for turn in turns)
    yield "resume", {"model_id": turns[0]["whole"]["model_id"], "ratio": ratio, "turns": turns}


def _bilstm_table(run: Figures) -> str:
    names = {"job": "job", "command": "whole command", "notebook": "notebooks' loop", "forward": "forward pass alone"}
    rows, loop, alone = run["turns"]["job"][0]["rows_in"], run["turns"]["notebook"][0], run["turns"]["forward"][0]
    conditions = (
        f"{rows:,} rows; the loop over {loop['rows']:,} of them, with {loop['threads']} torch threads; the forward"
    )
    conditions += f" pass in {alone['processes']} processes."
    return f"{_rates_table(run, names, {'notebook': 4, 'forward': 0.8})}\n{conditions}"


def _minilm_table(run: Figures) -> str:
    rows, theirs = run["turns"]["job"][0]["rows_in"], run["turns"]["pipeline"][0]
    tried = ", ".join(f"{size}: {rate:,.0f}" for size, rate in run["batch_sizes"]["rows_per_s"].items())
    conditions = (
        f"{rows:,} rows; the pipeline over {theirs['rows']:,} of them, with {theirs['threads']} torch threads and"
    )
    conditions += (
        f" batches of {theirs['batch_size']}, the best on {run['batch_sizes']['rows']:,} rows (rows/s: {tried})."
    )
    names = {"job": "job", "command": "whole command", "pipeline": "pipeline"}
    return f"{_rates_table(run, names, {'pipeline': 7})}\n{conditions}"


def _rates_table(run: Figures, names: dict[str, str], targets: dict[str, float]) -> str:
    rows = []
    for name, words in names.items():
        ratio = "" if name == "job" else f"{run['ratio'][name]:.2f}"
        aim = target(float(ratio), "at least", targets[name]) if name in targets else ""
        rows.append([words, f"{run['median'][name]:,.0f}", ratio, aim])
    return table(["", "rows/s", "job ÷ this", "target"], rows)


def _size_table(run: Figures) -> str:
    kinds, ratio = ("peak_pss_mb", "peak_uss_mb", "peak_rss_mb"), run["ratio"]
    rows = [
        [f"{run['rows'][name]:,}", f"{run['bytes'][name] / 1e6:,.0f}", f"{run['median'][name]['rows_per_s']:,.0f}"]
        + [f"{run['median'][name][kind]:,.0f}" for kind in kinds]
        for name in ("small", "large")
    ]
    rows.append(["large ÷ small", "", *(f"{ratio[kind]:.2f}" for kind in ("rows_per_s", *kinds))])
    aims = [target(round(ratio["rows_per_s"], 2), "at least", 0.95), target(round(ratio[kinds[0]], 2), "at most", 1.3)]
    rows.append(["target", "", *aims, "", ""])
    return table(["rows", "file, MB", "rows/s", "peak PSS, MB", "peak USS, MB", "peak RSS, MB"], rows)


def _resume_table(run: Figures) -> str:
    rows = []
    for turn in run["turns"]:
        whole, killed = turn["whole"], turn["killed"]
        rows.append([f"{whole['rows_in']:,}", f"{whole['wall_s']:,.1f}", f"{whole['rows_per_s']:,.0f}"])
        rows[-1] += [f"{killed['shards_done']} of {turn['shards']}", f"{whole['rows_in'] - killed['rows_done']:,}"]
        rows[-1] += [f"{seconds:,.1f}" for seconds in (killed["gone_s"], turn["left_s"], turn["start_s"])]
        rows[-1] += [f"{turn['again']['wall_s']:,.1f}", f"{turn['ratio']:.2f}"]
    head = ["rows", "undisturbed, s", "rows/s", "shards done at the kill", "rows left", "processes gone after, s"]
    ratio = round(run["ratio"], 2)
    return f"""{table([*head, "their work, s", "a start, s", "resumed, s", "ratio"], rows)}
Median ratio **{ratio:.2f}**, target {target(ratio, "at most", 1.15)}."""


SECTIONS: harness.Sections = {
    "bilstm": _bilstm_table,
    "minilm": _minilm_table,
    "size": _size_table,
    "resume": _resume_table,
}

LANES: dict[str, harness.Lane] = {"bilstm": _bilstm, "minilm": _minilm, "size": _size, "resume": _resume}
PARSER = harness.parser_of(__doc__, LANES)
PARSER.add_argument("--sample", type=int, help="rows for the loop (20,000) or the pipeline (2,048): they are slow")
PARSER.add_argument("--small", type=int, default=160_000, help="rows of the small archive (size)")
PARSER.add_argument("--large", type=int, default=1_600_000, help="rows of the large one (size)")

if __name__ == "__main__":
    harness.run(PARSER, "scoring", LANES, SECTIONS, packages=("torch", "transformers", "ray", "pyarrow", "tokenizers"))
