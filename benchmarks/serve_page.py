"""The page of `benchmarks/serve.py`: its raw numbers as tables, targets beside what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from serve_contenders import OURS

from jobs.report import machine_line

_LANES = "python benchmarks/serve.py"
# Percent of the CPUs that others took before a lane began: with more, the page says so.
BUSY = 5.0
_NAMES = {
    OURS: "this service",
    "ours-python-proxy": "this service, Python proxy",
    "serve-default": "Ray Serve as it comes",
    "serve-two-hops": "the same, more requests at a time",
    "uvicorn-bare": "bare uvicorn",
    "litserve": "LitServe",
}
_CONTENDERS = """*This service*: `python -m serve_app` with one replica, behind HAProxy as in production
(`RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_USE_GRPC_BY_DEFAULT=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1`). *Python proxy*:
without these. *Ray Serve as it comes*: its own proxy, a FastAPI ingress that calls a model deployment, all settings by
default; a replica then takes five requests at a time, and its router looks after those that wait every 25 to 500 ms.
*More requests at a time*: `max_ongoing_requests` 512 for both.
*Bare uvicorn*: FastAPI with the same `Predictor`, its own thread pool, torch's own number of threads, no
batches. *LitServe*: batches of up to 64, gathered for 10 ms. One bundle for all; only this service has limits, metrics
and error answers of its own."""
# What a full service may answer.
_ALLOWED = ("200", "429", "503")


def page(results: dict[str, Any]) -> str:
    """Write the page.

    Args:
        results: Each lane's figures; lanes that never ran are missing.

    Returns:
        Markdown.
    """
    parts = [
        "# The service, measured\n\nMade with `benchmarks/serve.py`, whose `--help` has the commands; raw numbers in "
        "[serving.json](serving.json). Contenders take turns, each in processes of its own; figures are medians, and "
        "ratios are of medians. Targets were set before anything was measured. The client runs on "
        "the same machine and takes its share of it; everything goes over loopback.\n",
        _part("Requests a second", "requests", results, _requests),
        _part("Latency of a single client", "latency", results, _latency),
        _part("Many texts", "bulk", results, _bulk),
        *(_part(title, "overload", {"overload": run}, _overload) for title, run in _overloads(results)),
    ]
    return "\n".join(parts)


def _part(title: str, lane: str, results: dict[str, Any], tell: Callable[[dict[str, Any]], str]) -> str:
    run = results.get(lane)
    if not run:
        return f"## {title}\n\nNot measured yet: `{_LANES} {lane} …`.\n"
    turns = "1 turn" if run["repeats"] == 1 else f"{run['repeats']} turns"
    where = f"Model `{run['model_id']}`, texts of {run['input']}, {turns}, on {machine_line(run['machine'])}"
    busy = f" **The machine was busy with other things ({run['busy_before']:.0f} %).**" * (run["busy_before"] > BUSY)
    return f"## {title}\n\n{tell(run)}\n{where}; {run['created'][:10]}.{busy}\n"


def _requests(run: dict[str, Any]) -> str:
    targets = {"serve-default": "at least 4", "uvicorn-bare": "at least 0.8"}
    rows = [
        [_NAMES[name], f"{one['requests_per_s']:,.0f}", f"{one['p50_ms']:,.1f}", f"{one['p99_ms']:,.1f}"]
        + ["" if name == OURS else f"{run['ratio'][name]:.2f}", targets.get(name, "")]
        for name, one in run["median"].items()
    ]
    head = ["", "requests/s", "p50, ms", "p99, ms", "this service ÷ it", "target"]
    return f"""Single texts over {run["connections"]} connections, each of which waits for its answer before it asks
again (wrk, {run["seconds"]} s after a warm-up).

{_CONTENDERS}

{_table(head, rows)}
{_remarks(run)}"""


def _latency(run: dict[str, Any]) -> str:
    targets = {"uvicorn-bare": "at most 3"}
    rows = [
        [_NAMES[name], f"{one['p50_ms']:,.2f}", f"{one['p99_ms']:,.2f}", f"{one['requests_per_s']:,.0f}"]
        + ["" if name == OURS else f"{run['p50_later_ms'][name]:+.2f}", targets.get(name, "")]
        for name, one in run["median"].items()
    ]
    head = ["", "p50, ms", "p99, ms", "requests/s", "this service's p50 − its, ms", "target"]
    return f"""Single texts over one connection, one after another (wrk, {run["seconds"]} s after a warm-up); contenders
as above.

{_table(head, rows)}
{_remarks(run)}"""


def _remarks(run: dict[str, Any]) -> str:
    """What the tables leave out: who isn't there, and answers that weren't asked for."""
    missing = [f"{words.capitalize()}: not measured." for name, words in _NAMES.items() if name not in run["median"]]
    return "".join(f"{line}\n" for line in [*missing, *_failures(run["turns"])])


def _failures(turns: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = []
    for name, found in turns.items():
        failed = Counter[str]()
        for one in found:
            failed.update({status: count for status, count in one["statuses"].items() if not status.startswith("2")})
            failed.update(one["errors"])
        if failed:
            what = ", ".join(f"{kind}: {count:,}" for kind, count in failed.items())
            lines.append(f"**{_NAMES.get(name, name)} also gave other answers or none ({what}); they aren't counted.**")
    return lines


def _bulk(run: dict[str, Any]) -> str:
    names = {
        "score": "`/score`",
        "predict": f"`/predict`, {run['texts_per_request']} texts a request",
        "predictor": "model in process",
    }
    rows = [
        [words, f"{run['median'][name]['texts_per_s']:,.0f}"]
        + (["", ""] if name == "predictor" else [f"{run['ratio'][name]:.2f}", "at least 0.7"])
        for name, words in names.items()
    ]
    failures = _failures({"`/predict`": run["turns"]["predict"]})
    return f"""Texts/s. *`/score`*: {run["rows"]:,} JSON lines streamed by `curl -T`, until the last answer has come
back. *`/predict`*: the same texts, {run["texts_per_request"]} a request, over {run["connections"]} connections (wrk,
{run["seconds"]} s after a warm-up). Both through HAProxy to one replica with one torch thread. *Model in process*:
`Predictor` over the same texts in slices of 512, also with one torch thread, without HTTP or JSON.

{_table(["", "texts/s", "÷ model in process", "target"], rows)}
{"".join(f"{line}{chr(10)}" for line in failures)}"""


def _overloads(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Title and figures for each model, that with the most overload first; if none was run, no figures."""
    runs = results.get("overload", {}).values()
    by_load = sorted(runs, key=lambda run: -median(turn["times"] for turn in run["turns"]))
    return [(f"More than {run['model_id']} can do", run) for run in by_load] or [("More than it can do", {})]


def _overload(run: dict[str, Any]) -> str:
    rows = [_flood(turn) for turn in run["turns"]]
    odd = sum((_odd(turn) for turn in run["turns"]), Counter[str]())
    others = ", ".join(f"{kind}: {count:,}" for kind, count in odd.items()) or "none"
    p99_s = [turn["accepted_p99_ms"] / 1e3 for turn in run["turns"] if turn["accepted_p99_ms"] is not None]
    found = [
        ["requests sent ÷ capacity", f"{median(turn['times'] for turn in run['turns']):.1f}", f"{run['times']}"],
        ["outcomes other than 200, 429 and 503", others, "none"],
        ["p99 of the accepted, s", f"{median(p99_s):.2f}" if p99_s else "", f"under {run['request_timeout_s']}"],
        ["replica's RSS, highest ÷ after warm-up", f"{_ratio(run):.2f}", "at most 1.2"],
    ]
    head = [
        "capacity, /s",
        "sent, /s",
        "accepted, /s",
        "held back",
        *_ALLOWED,
        "other",
        "p50, s",
        "p99, s",
        "RSS before, MB",
    ]
    return f"""Capacity is what {_NAMES[OURS]} (behind HAProxy, one replica) answers over 32 connections in the same
turn. Then, for {run["seconds"]} s after {run["warm_up_s"]} s of the same, requests come due at {run["times"]} times
that rate whether or not earlier ones are answered, over up to {run["connections"]:,} connections; while all of them
wait, a request that is due is held back and counted, not sent. At most {run["max_queued_texts"]} texts may wait in the
replica, and a request at most {run["request_timeout_s"]} s. Times are those of accepted requests (2xx), from when they
were due.

{_table(["", "found", "target"], found)}
Turn by turn:

{_table([*head, "highest", "after"], rows)}"""


def _flood(turn: dict[str, Any]) -> list[str]:
    times = ["–" if (ms := turn[f"accepted_{name}_ms"]) is None else f"{ms / 1e3:.2f}" for name in ("p50", "p99")]
    return [
        f"{turn['capacity_per_s']:,.0f}",
        f"{turn['offered_per_s']:,.0f}",
        f"{turn['accepted_per_s']:,.0f}",
        f"{turn['held_back']:,}",
        *(f"{turn['statuses'].get(status, 0):,}" for status in _ALLOWED),
        f"{_odd(turn).total():,}",
        *times,
        *(f"{turn[f'rss_{name}_mb']:,.0f}" for name in ("before", "peak", "after")),
    ]


def _odd(turn: dict[str, Any]) -> Counter[str]:
    """Outcomes that shouldn't be: other statuses, and requests without any."""
    others = {status: count for status, count in turn["statuses"].items() if status not in _ALLOWED}
    return +Counter({**others, "lost": turn["lost"], "unanswered": turn["unanswered"]})


def _ratio(run: dict[str, Any]) -> float:
    return median(turn["rss_ratio"] for turn in run["turns"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
