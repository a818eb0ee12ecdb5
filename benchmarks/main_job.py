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
from benchmarks.harness import Figures, table


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


def _jobs_tables(run: Figures) -> str:
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
    both = [table(head, corpora), table(["archive", "rows in", "scored", "rejected", "tweets/s", "time, s"], archives)]
    return f"{both[0]}\n{both[1] if archives else ''}\nRecipe `{trained[0]['trained']['recipe']}`."


SECTIONS: harness.Sections = {"jobs": _jobs_tables}

LANES: dict[str, harness.Lane] = {"jobs": _jobs}
PARSER = harness.parser_of(__doc__, LANES)
PARSER.add_argument("--data", nargs="*", type=harness.absolute, default=[], help="labeled files")
PARSER.add_argument("--archive", nargs="*", type=harness.absolute, default=[], help="scored by the last model")
PARSER.add_argument("--output", type=harness.absolute, default=harness.ROOT / "runs/bench", help="the jobs' folder")

if __name__ == "__main__":
    harness.run(PARSER, "main_job", LANES, SECTIONS, packages=("torch", "ray", "pyarrow", "tokenizers"), needs=())
