#!/usr/bin/env python
"""Compare the speed of two checkouts of this repository: the same bundle and the same texts, code of either by turns.

  git worktree add --detach /tmp/before v0.1.0
  python benchmarks/compare.py score --before /tmp/before --model runs/demo/model/bundle --input tweets.parquet
  python benchmarks/compare.py serve --before /tmp/before --model runs/demo/model/bundle --input tweets.parquet

score  jobs/score.py over --rows rows of the input (all): rows/s of the job, and of the whole command.
serve  python -m serve_app behind HAProxy: requests/s over 32 connections, latency over one, texts/s through /score.

Both run in this environment, so they need the same packages. Prints a Markdown table of medians over --repeats turns,
and this checkout's ratio to the other; the figures of each turn go to stderr.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # The code lies beside it, installed or not.

from benchmarks import harness, load, scoring, serving
from benchmarks.harness import Figures


def serve(model: Path, texts: list[str], scratch: Path, seconds: int, checkout: Path) -> Figures:
    """Figures of the service of one checkout."""
    bodies = load.write_bodies(texts[: serving.TEXTS], scratch / "bodies.jsonl")
    with serving.served(serving.OURS, model, scratch, checkout=checkout) as service:
        many = serving.measured(service, bodies, connections=serving.CONNECTIONS, seconds=seconds)
        one = serving.measured(service, bodies, connections=1, seconds=seconds)
        bulk = load.upload(service.port, texts, scratch)
    return {"requests_per_s": many["requests_per_s"], "p50_ms": one["p50_ms"], "texts_per_s": bulk["texts_per_s"]}


PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("what", choices=["score", "serve"])
PARSER.add_argument("--before", type=harness.absolute, required=True, help="the other checkout")
PARSER.add_argument("--model", type=harness.absolute, required=True, help="bundle that both can read")
PARSER.add_argument("--input", type=harness.absolute, required=True, help="file of texts, column `text`")
PARSER.add_argument("--rows", type=int, help="rows to score (the whole input), to send to /score (20,000)")
PARSER.add_argument("--seconds", type=int, default=10, help="of a measurement (serve)")
PARSER.add_argument("--repeats", type=int, default=3, help="turns (3)")


def main() -> None:
    """Measure and print."""
    args = PARSER.parse_args()
    checkouts = {"before": args.before, "after": harness.ROOT}
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        scratch = Path(folder)
        if args.what == "score":
            names = ["rows_per_s", "command_rows_per_s"]
            archive = scoring.archive_of(args.input, args.rows, scratch)
            measure = partial(scoring.score_anew, args.model, archive, scratch / "scored")
        else:
            names = ["requests_per_s", "p50_ms", "texts_per_s"]
            texts = harness.sample_of(args.input, args.rows or 20_000)
            measure = partial(serve, args.model, texts, scratch, args.seconds)
        contenders = {name: partial(measure, checkout=checkout) for name, checkout in checkouts.items()}
        found = harness.medians(harness.take_turns(args.repeats, contenders), *names)
    before, after = found["before"], found["after"]
    rows = [
        [name, f"{before[name]:,.2f}", f"{after[name]:,.2f}", f"{after[name] / before[name]:.3f}"] for name in names
    ]
    print(harness.table(["", "before", "after", "after ÷ before"], rows), end="")


if __name__ == "__main__":
    main()
