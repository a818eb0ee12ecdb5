#!/usr/bin/env python
"""Measure what stops scaling first, and work out what 1.6 million, 1 billion and 500 billion tweets take.

  python benchmarks/scale.py plan                                  # planning many input files
  python benchmarks/scale.py reports                               # reports and files of many shards, in the driver
  python benchmarks/scale.py shards --input sentiment140.parquet   # bytes of a row, reading speed
  python benchmarks/scale.py train --input sentiment140.parquet    # what preparing and training hold of a row
  python benchmarks/scale.py store                                 # requests to an S3 store
  python benchmarks/scale.py nodes                                 # Ray's and our work for a shard without a model
  python benchmarks/scale.py page                                  # only work out the tables anew

Rates of the models come from docs/results/scoring.json, bert_gru.json and main_job.json. Writes scale.json (raw) into
--results and the tables into --page, between their marks; lanes that aren't run keep their figures. Prices, machines
and latencies are assumptions: `scale_sums.py` has them. Temporary files: in TMPDIR.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import scale_driver
import scale_page
import scale_rows
import scale_store
from score_job import members
from turns import ROOT

from jobs.report import machine

_PACKAGES = ("ray", "pyarrow", "numpy")
_FILES = {"parquet": (1_000, 10_000), "jsonl": (200, 1_000)}
_SHARDS = (2_000, 20_000)
_ROWS_PER_SHARD = (4_096, 65_536, 262_144)
# (nodes, actors of each, input files, shards of each file): more nodes, then more files.
_CLUSTERS = ((1, 2, 100, 10), (4, 2, 100, 10), (8, 2, 100, 10), (12, 1, 100, 10), (1, 2, 1_000, 1), (1, 2, 4_000, 1))
_LONGEST_S = 600.0


def main() -> None:
    """Run a lane and write the tables."""
    args = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that a cluster that runs is ended with us.
    kept = args.results / "scale.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if args.lane != "page":
        head = {"machine": machine(*_PACKAGES), "busy_before": psutil.cpu_percent(interval=2.0)}
        with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
            figures = _LANES[args.lane](args, Path(scratch))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        results[args.lane] = {**head, "created": created, **figures}
        kept.write_text(json.dumps(results, indent=1) + "\n")
    rates = {name: json.loads((args.results / f"{name}.json").read_text()) for name in scale_page.SOURCES}
    scale_page.write(args.page, results, rates)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lane", choices=[*_LANES, "page"])
    parser.add_argument("--input", type=Path, help="a file of real texts (shards, train)")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the json files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "scale.md", help="page with the tables")
    args = parser.parse_args()
    if args.lane in ("shards", "train") and not args.input:
        parser.error("--input is needed")
    return args


def _plan(_: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for form, sizes in _FILES.items():
        found[form] = []
        for files in sizes:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                found[form].append(_say(scale_driver.planning(Path(folder), form, files)))
    return found


def _reports(_: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    runs = []
    for shards in _SHARDS:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            runs.append(_say(scale_driver.reports(Path(folder), shards)))
    return {"runs": runs}


def _shards(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    rows = 2 * max(_ROWS_PER_SHARD)
    return {"input": args.input.name, **_say(scale_rows.shards(scratch, args.input.resolve(), rows, _ROWS_PER_SHARD))}


def _train(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    prepared = _say(scale_rows.prepare(args.input.resolve(), 4_000_000))
    return {
        "input": args.input.name,
        "prepare": prepared,
        "train": _say(scale_rows.train(scratch, (500_000, 4_000_000))),
    }


def _store(_: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    return _say(scale_store.requests(scratch))


def _nodes(_: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    runs = []
    for nodes, cpus, files, shards in _CLUSTERS:
        told = {"nodes": nodes, "cpus": cpus, "files": files, "shards": shards, "rows": 16}
        runs.append(_say(_alone(["benchmarks/scale_nodes.py", json.dumps(told)])))
    return {"runs": runs}


def _alone(command: list[str]) -> dict[str, Any]:
    """Run a program in a session of its own; at the end all of that is gone, one way or the other."""
    job = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        output, _ = job.communicate(timeout=_LONGEST_S)
    finally:
        for process in members(job.pid):
            with contextlib.suppress(psutil.Error):
                process.kill()
    if job.returncode:
        raise SystemExit("a run without a model failed; see above")
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def _say(figures: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


_LANES: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "plan": _plan,
    "reports": _reports,
    "shards": _shards,
    "train": _train,
    "store": _store,
    "nodes": _nodes,
}

if __name__ == "__main__":
    main()
