#!/usr/bin/env python
"""Measure batch scoring: jobs/score.py from file to Parquet against other ways, at two sizes, and after a kill.

  python benchmarks/score.py bilstm --model runs/sentiment140/bundle --input sentiment140.parquet --rows 163840
  python benchmarks/score.py minilm --model runs/bert/bundle --input sentiment140.parquet --rows 32768
  python benchmarks/score.py size   --model runs/sentiment140/bundle --input sentiment140.parquet --repeats 1
  python benchmarks/score.py resume --model runs/sentiment140/bundle --input sentiment140.parquet --rows 320000
  python benchmarks/score.py page                                        # only write the page anew

bilstm  the job; the notebooks' loop (batches of 64 in file order, float32, words split in Python) with the same model;
        the model's forward pass alone. Wants a bundle of a word-level model.
minilm  the job with a BERT-GRU; Hugging Face's text-classification pipeline with the same encoder, at the batch size
        that is best for it. Wants a bundle trained with --encoder minilm.
size    the input's rows repeated under fresh ids, --small and --large of them: rates, and peak memory of all processes.
resume  a run killed with SIGKILL at half its shards and started again, against the work that was left.

Contenders take turns, each in a process of its own, --repeats times; ratios are of medians. Nothing else should run
meanwhile. A shard has 4,096 rows or more: of few rows the last shards keep one core busy while the others wait. Writes
scoring.json (raw) and scoring.md into --results; lanes that aren't run keep their figures. Temporary files: in TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import score_job
import score_page
from score_archive import archive_of
from score_job import CORES
from turns import ROOT, Turns, program, say, take_turns

from jobs.report import machine
from sentiment.settings import ScoreSettings

_PACKAGES = ("torch", "transformers", "ray", "pyarrow", "tokenizers")
# Rows on which the pipeline's batch size is chosen, and of the run that measures what a start takes.
_SEARCH_ROWS, _FEW_ROWS = 512, 200
# Slices of the model's forward pass are as long as the job's.
_SLICE_ROWS = int(ScoreSettings.model_fields["batch_rows"].default)

_RIVALS = "score_rivals.py"


def main() -> None:
    """Run a lane and write the page."""
    args = _parse()
    # So that a job that runs is ended with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.results.mkdir(parents=True, exist_ok=True)
    kept, page = args.results / "scoring.json", args.results / "scoring.md"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if args.lane != "page":
        lane = {"bilstm": _bilstm, "minilm": _minilm, "size": _size, "resume": _resume}[args.lane]
        # What others take of the machine, in percent: torch's threads wait for each other, so a little costs a lot.
        busy = psutil.cpu_percent(interval=2.0)
        if busy > score_page.BUSY:
            say(f"the machine is busy ({busy:.0f} %): these figures won't hold")
        head = {"machine": machine(*_PACKAGES), "busy_before": busy}
        with tempfile.TemporaryDirectory(prefix="score-") as scratch:
            figures = lane(args, Path(scratch))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"created": created, "input": args.input.name, "repeats": args.repeats}
        results[args.lane] = {**head, **about, **figures}
        kept.write_text(json.dumps(results, indent=1) + "\n")
    page.write_text(score_page.page(results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lane", choices=["bilstm", "minilm", "size", "resume", "page"])
    parser.add_argument("--model", type=_path, help="bundle")
    parser.add_argument("--input", type=_path, help="a file of real texts, in any form that jobs/score.py reads")
    parser.add_argument("--rows", type=int, help="rows that the job scores; none: the file as it is (not size)")
    parser.add_argument("--sample", type=int, help="rows for the loop (20,000) or the pipeline (2,048): they are slow")
    parser.add_argument("--repeats", type=int, default=3, help="times that each contender is measured")
    parser.add_argument("--small", type=int, default=160_000, help="rows of the small archive (size)")
    parser.add_argument("--large", type=int, default=1_600_000, help="rows of the large one (size)")
    parser.add_argument("--format", choices=["parquet", "csv"], default="parquet", help="of both (size)")
    parser.add_argument("--results", type=_path, default=ROOT / "docs" / "results", help="folder for json and page")
    args = parser.parse_args()
    if args.lane != "page" and not (args.model and args.input):
        parser.error("--model and --input are needed")
    return args


def _path(given: str) -> Path:
    """Jobs run from the repository's root, whoever calls this from wherever."""
    return Path(given).resolve()


def _bilstm(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    archive, loop_output = archive_of(args.input, args.rows, scratch), str(scratch / "loop.parquet")
    where = {"model": str(args.model), "archive": str(archive)}
    loop = {**where, "rows": args.sample or 20_000, "output": loop_output}
    alone = {**where, "processes": CORES, "slice_rows": _SLICE_ROWS}
    turns = take_turns(
        args.repeats,
        {
            "job": lambda: _score(args.model, archive, scratch / "scored"),
            "notebook": lambda: program(_RIVALS, "notebook", json.dumps(loop)),
            "forward": lambda: program(_RIVALS, "forward", json.dumps(alone)),
        },
    )
    return _compared(turns)


def _minilm(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    archive = archive_of(args.input, args.rows, scratch)
    where = {"model": str(args.model), "archive": str(archive)}
    search = program(
        _RIVALS, "batch_sizes", json.dumps({**where, "rows": min(_SEARCH_ROWS, args.sample or _SEARCH_ROWS)})
    )
    theirs = {**where, "rows": args.sample or 2048, "batch_size": search["best"]}
    turns = take_turns(
        args.repeats,
        {
            "job": lambda: _score(args.model, archive, scratch / "scored"),
            "pipeline": lambda: program(_RIVALS, "pipeline", json.dumps(theirs)),
        },
    )
    return {"batch_sizes": search, **_compared(turns)}


def _size(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    rows = {"small": args.small, "large": args.large}
    archives = {name: archive_of(args.input, count, scratch, args.format) for name, count in rows.items()}
    turns = take_turns(
        args.repeats,
        {
            name: lambda archive=archive: _score(args.model, archive, scratch / "scored", watch_memory=True)
            for name, archive in archives.items()
        },
    )
    kinds = ("rows_per_s", "peak_pss_mb", "peak_uss_mb", "peak_rss_mb")
    medians = {name: {kind: median(one[kind] for one in found) for kind in kinds} for name, found in turns.items()}
    ratio = {kind: round(medians["large"][kind] / medians["small"][kind], 3) for kind in kinds}
    sizes = {name: archive.stat().st_size for name, archive in archives.items()}
    facts = {"model_id": turns["small"][0]["model_id"], "format": args.format, "rows": rows, "bytes": sizes}
    return {**facts, "median": medians, "ratio": ratio, "turns": turns}


def _resume(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    archive, few = archive_of(args.input, args.rows, scratch), archive_of(args.input, _FEW_ROWS, scratch)
    turns = []
    for number in range(args.repeats):
        say(f"turn {number + 1} of {args.repeats}")
        started = _score(args.model, few, scratch / "few")
        whole = _score(args.model, archive, scratch / "whole", keep=True)
        shards = score_job.count_shards(scratch / "whole")
        _clear(scratch / "killed")
        killed = score_job.kill_after(args.model, archive, scratch / "killed", max(1, shards // 2))
        again = score_job.run(args.model, archive, scratch / "killed")
        if again["rows_in"] != whole["rows_in"]:
            raise SystemExit(f"{again['rows_in']} rows after the kill, {whole['rows_in']} without: that is a bug")
        left_s = (whole["rows_in"] - killed["rows_done"]) / whole["rows_per_s"]
        ratio = again["wall_s"] / (left_s + started["wall_s"])
        turns.append(
            {
                "whole": whole,
                "shards": shards,
                "killed": killed,
                "start_s": started["wall_s"],
                "left_s": round(left_s, 2),
                "again": again,
                "ratio": round(ratio, 3),
            }
        )
        say(f"  {again['wall_s']:.1f} s for {left_s:.1f} s of work and {started['wall_s']:.1f} s of start: {ratio:.2f}")
    return {"model_id": turns[0]["whole"]["model_id"], "ratio": median(turn["ratio"] for turn in turns), "turns": turns}


def _compared(turns: Turns) -> dict[str, Any]:
    """Medians, and the job's over each of them."""
    medians = {name: median(one["rows_per_s"] for one in found) for name, found in turns.items()}
    medians["command"] = median(one["command_rows_per_s"] for one in turns["job"])
    ratio = {name: round(medians["job"] / rate, 3) for name, rate in medians.items()}
    return {"model_id": turns["job"][0]["model_id"], "median": medians, "ratio": ratio, "turns": turns}


def _score(
    model: Path, archive: Path, output: Path, *, watch_memory: bool = False, keep: bool = False
) -> dict[str, Any]:
    """A run of the job from the start."""
    _clear(output)
    figures = score_job.run(model, archive, output, watch_memory=watch_memory)
    if not keep:
        _clear(output)
    return figures


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
