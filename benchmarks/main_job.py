#!/usr/bin/env python
"""Measure the main job: accuracy, times and rates on the embedded corpus and on labeled files, and archives scored.

  python benchmarks/main_job.py jobs --data sentiment140.csv more.parquet --archive tweets_2019.jsonl tweets_2021.jsonl
  python benchmarks/main_job.py page                                     # only write the page again

Runs jobs/demo.py on each corpus, then jobs/score.py with the last model on all archives. Writes main_job.json (raw) and
main_job.md into --results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # The code lies beside it, installed or not.

from benchmarks import harness
from benchmarks.harness import Figures
from sentiment.data.manifest import machine_line


def _jobs(args: argparse.Namespace, _: Path) -> Iterator[tuple[str, Figures]]:
    runs: list[Figures] = []
    for data in (None, *args.data):
        folder = args.output / (data.name.split(".")[0] if data else "embedded")
        result = harness.job("demo", *(["--data", data] if data else []), "--output", folder)
        trained = json.loads((folder / "model" / "metrics.json").read_text())
        counts = json.loads((folder / "prepared" / "manifest.json").read_text())["counts"]
        for figures in (result, trained):
            for place in ("bundle", "curve", "parquet", "output"):
                figures.pop(place, None)
        runs.append({"corpus": data.name if data else "embedded", "counts": counts, **result, "trained": trained})
    if args.archive:
        flags = ["--model", folder / "model" / "bundle", "--output", args.output / "archives", "--overwrite"]
        result = harness.job("score", *flags, "--input", *args.archive)
        result.pop("output")
        runs.append({"corpus": " + ".join(archive.name for archive in args.archive), **result})
    yield "jobs", {"runs": runs}


def page(results: Figures) -> str:
    """Write the page."""
    run = results["jobs"]
    trained = [one for one in run["runs"] if "trained" in one]
    corpora = [
        [one["corpus"], f"{one['counts']['train']:,}", f"{one['counts']['test']:,}", f"{one['test_accuracy']:.2%}"]
        + [f"{rate:,.0f}" for rate in (one["trained"]["rows_per_s"], one["rows_per_s"], one["duration_s"])]
        for one in trained
    ]
    counted = ("rows_in", "rows_scored", "rows_rejected", "rows_per_s", "duration_s")
    archives = [
        [one["corpus"], *(f"{one[name]:,.0f}" for name in counted)] for one in run["runs"] if "trained" not in one
    ]
    head = ["corpus", "train rows", "test rows", "test accuracy", "training rows/s", "scoring tweets/s", "time, s"]
    return f"""# The main job, measured

{machine_line(run["machine"])};
{run["created"]}. Written by `python benchmarks/main_job.py jobs --data … --archive …`; raw
numbers in [main_job.json](main_job.json).

Recipe `{trained[0]["trained"]["recipe"]}`, two Ray Train workers, seed 1. Training rows/s counts training steps alone;
scoring tweets/s counts from the first batch to the last file written; the time is that of the whole job, Ray's start
included.

{harness.table(head, corpora)}
The embedded corpus has 5 % of its labels flipped, so about 95 % is the best there can be.

{harness.table(["archive", "rows in", "scored", "rejected", "tweets/s", "time, s"], archives)}"""


if __name__ == "__main__":
    parser = harness.parser_of(__doc__, ["jobs"])
    parser.add_argument("--data", nargs="*", type=harness.absolute, default=[], help="labeled files")
    parser.add_argument("--archive", nargs="*", type=harness.absolute, default=[], help="scored by the last model")
    parser.add_argument("--output", type=harness.absolute, default=harness.ROOT / "runs/bench", help="the jobs' folder")
    harness.run(parser, "main_job", {"jobs": _jobs}, page, packages=("torch", "ray", "pyarrow", "tokenizers"), needs=())
