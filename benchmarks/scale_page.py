"""The tables of docs/scale.md, between their marks; what stands around them is written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from scale_sums import SIZES, Assumed, Limit, Sums
from scale_words import duration, in_bytes, round_to, words

from jobs.report import machine_line
from sentiment.corpora.shards import _FEWEST_ROWS_REMOTE as FEWEST_ROWS
from sentiment.corpora.shards import _SHARDS_PER_ACTOR as SHARDS_PER_ACTOR
from sentiment.recipes import RECIPES

SOURCES = ("scoring", "bert_gru", "main_job")
_S3 = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html"
_RAY = "https://github.com/ray-project/ray/blob/master/release/benchmarks/README.md"
_BLOCK = re.compile(r"(<!-- (\w+): written by benchmarks/scale\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def write(page: Path, measured: dict[str, Any], rates: dict[str, Any]) -> None:
    """Fill the page's tables; lanes that never ran leave it as it is.

    Args:
        page: The page.
        measured: scale.json.
        rates: The results of the other benchmarks, by name.
    """
    if missing := [lane for lane in ("plan", "reports", "shards", "train", "store", "nodes") if lane not in measured]:
        print(f"{page.name} not written: {', '.join(missing)} not measured yet")
        return
    sums = Sums(measured, rates, Assumed())

    def fill(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]](sums)}\n\n{found[3]}"

    page.write_text(_BLOCK.sub(fill, page.read_text()))


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _assumed(sums: Sums) -> str:
    a = sums.assumed
    return _table(
        ["assumed, not measured", "value"],
        [
            ["a night", f"{a.night_h:g} hours"],
            ["a machine", f"{a.machine_cores} cores, each as fast as one of the measured machine"],
            ["price", f"{a.core_hour:g} a core-hour, in any currency: an example, to be replaced"],
            ["input", f"Parquet with id and text in files of {a.file_bytes / 1e6:g} MB"],
            ["answer of a store", f"{a.request_s:g} s a request; [S3's guide]({_S3}) says 0.1 to 0.2 s"],
            ["writes to a prefix of S3", f"{a.writes_per_s:,.0f} a second, from the same guide"],
            [
                "Ray actors in a cluster",
                f"{a.actors:,}, what [Ray's own benchmarks]({_RAY}) have tried with trivial work",
            ],
            ["network of training workers", f"{a.network_bytes_per_s * 8 / 1e9:g} Gbit/s"],
            ["memory of a driver, a worker", in_bytes(a.driver_bytes)],
            ["patience with a driver that works alone", f"{a.wait_s / 60:g} minutes"],
        ],
    )


def _scoring(sums: Sums) -> str:
    a, rows = sums.assumed, []
    for model, rate in sums.row_rates.items():
        for size, count in SIZES.items():
            hours, cores = sums.core_hours(model, count), sums.cores(model, count)
            rows.append(
                [
                    f"{model}, {rate:,.0f} rows/s a core",
                    size,
                    round_to(hours),
                    round_to(max(1, cores)),
                    f"{-(-cores // a.machine_cores):,.0f}",
                    round_to(hours * a.core_hour),
                ]
            )
    head = ["model", "tweets", "core-hours", f"cores for {a.night_h:g} h", f"machines of {a.machine_cores} cores"]
    return _table([*head, f"price at {a.core_hour:g}"], rows)


def _storage(sums: Sums) -> str:
    rows = []
    for size, count in SIZES.items():
        shard = sums.rows_per_shard(count, sums.cores("BiLSTM", count))
        shards = count / shard
        rows.append(
            [
                size,
                f"{in_bytes(count * sums.input_bytes)} in {_whole(sums.files(count))}",
                in_bytes(count * sums.output_bytes),
                f"{shard:,}",
                round_to(shards),
                in_bytes(shards * sums.report["bytes_per_report"]),
                in_bytes(max(1, sums.files(count)) * sums.planning["Parquet"]["state"]),
            ]
        )
    head = ["tweets", "input", "scored/", "rows of a shard", "shards, files of scored/, reports", "all reports"]
    return _table([*head, "run.json and manifest.json"], rows)


def _whole(files: float) -> str:
    return "1 file" if files <= 1 else f"{round_to(files)} files"


def _memory(sums: Sums) -> str:
    scored = sums.rates["scoring"]["size"]
    at_peak = scored["turns"]["large"][0]
    pool = at_peak["pss_mb_at_peak"]["ray::MapWorker(MapBatches(Scorer))"]
    actor, others = pool / scored["machine"]["cores"], at_peak["peak_pss_mb"] - pool
    cores, store = sums.assumed.machine_cores, sums.actor_store_bytes()
    held = [f"at most {store >> 20} MiB", f"at most {store * cores >> 30} GiB"]
    return _table(
        ["memory", "an actor", f"a machine of {cores} cores", "from"],
        [
            ["model actors, BiLSTM", f"{actor:,.0f} MB", f"{actor * cores / 1e3:.1f} GB", "scoring.json, `size`"],
            ["object store, shards on their way", *held, "jobs/ray_scoring.py"],
            ["driver, Ray's own, reading", "", f"{others / 1e3:.1f} GB, once", "scoring.json, `size`"],
            ["largest shard as an Arrow table", f"{in_bytes(sums.shard_memory)}", "", "scale.json, `shards`"],
        ],
    )


def _limits(limits: list[Limit]) -> str:
    rows = []
    for limit in limits:
        found = [limit.show(limit.of(count)) for count in SIZES.values()]
        rows.append([limit.part, *found, f"**{words(limit.bites_at)}**", limit.way])
    return _table(["part", *SIZES, "too much at", "way round"], rows)


def _one_file(sums: Sums) -> str:
    rows = []
    for form, read in sums.measured["shards"]["read"].items():
        rate = read["rows_per_s"]
        rows.append([form, f"{rate:,}", *(f"{rate / of:,.0f}" for of in sums.row_rates.values())])
    return _table(["form", "rows/s of one reader", *(f"cores that it feeds, {name}" for name in sums.row_rates)], rows)


def _driver(sums: Sums) -> str:
    report = sums.report
    shard_held = report["bytes_per_shard"] + report["board_bytes_per_shard"]

    def row(step: str, seconds: float, asked: str | None, held: float | None, what: str = "") -> list[str]:
        requests = "–" if asked is None else str(sums.requests[asked]["all"])
        return [step, f"{seconds * 1e3:.2f} ms{what}", requests, "–" if held is None else f"{held:,.0f} B"]

    plans = [row(f"plan an input file, {form}", one["s"], "plan", one["bytes"]) for form, one in sums.planning.items()]
    return _table(
        ["step", "on a local disk", "requests to S3", "memory"],
        [
            *plans,
            row("make a read task of a group (a file of 8 MiB or more)", sums.group_s, None, sums.group_bytes),
            row("hand out a shard, take back its report", sums.dispatch_s, None, shard_held, " of CPU"),
            row("write a shard's file and report (its actor does)", report["write_s"], "shard", None, ", the report"),
            row("read a report when a run goes on", report["read_s"], "report", report["bytes_per_shard"]),
            row("check an output file at the end", report["check_s"], "check", None),
        ],
    )


def _shards_on_a_store(sums: Sums) -> str:
    rows, asked = [], sums.requests["shard"]["all"]
    for count in (4_096, 16_384, 65_536, 262_144):
        scored_s = count / sums.row_rates["BiLSTM"]
        waiting_s = asked * sums.assumed.request_s
        rows.append([f"{count:,}", f"{scored_s:.1f} s", f"{waiting_s:.1f} s, {waiting_s / (scored_s + waiting_s):.0%}"])
    return _table(["rows of a shard", "scoring", f"{asked} requests"], rows)


def _many_actors(sums: Sums) -> str:
    rows = []
    for actors in (10, 100, 1_000, 5_000):
        shards = SHARDS_PER_ACTOR * actors
        alone_s = shards * sums.waiting_s("report")
        rows.append([f"{actors:,}", f"{shards:,}", f"{words(shards * FEWEST_ROWS)}", duration(alone_s)])
    return _table(["actors", "shards at least", "rows at least", "reports read from S3 by a run that goes on"], rows)


def _nodes(sums: Sums) -> str:
    figures = {
        "nodes": "nodes",
        "actors": "actors",
        "groups": "groups of files",
        "shards": "shards",
        "first_report_s": "first report after, s",
        "driver_peak_mb": "driver's memory, MB",
        "driver_cpu_ms_per_shard": "driver's CPU, ms a shard",
        "all_cpu_ms_per_shard": "all CPU, ms a shard",
        "shards_per_s": "shards/s on two cores",
        "nodes_call_ms": "`ray.nodes()`, ms",
        "board_cpu_us_per_call": "progress actor's CPU, µs a call",
    }
    rows = [[f"{run[name]:,}" for name in figures] for run in sums.measured["nodes"]["runs"]]
    return _table(list(figures.values()), rows)


def _trained(sums: Sums) -> dict[str, Any]:
    """The main job's training on the largest corpus."""
    found: dict[str, Any] = [run["trained"] for run in sums.rates["main_job"]["runs"] if "trained" in run][-1]
    return found


def _training(sums: Sums) -> str:
    word = _trained(sums)
    rates = {"`tweets`": (word["rows_per_s"] / word["workers"], word["epochs"])}
    for recipe, words_of_it in (("bert-tweets", ", features kept"), ("bert-tweets-tuned", "")):
        runs = [run for lane, run in sums.rates["bert_gru"].items() if lane.startswith(f"quality {recipe} ")]
        rates[f"`{recipe}`{words_of_it}"] = (
            mean(run["rows_per_s"] / run["workers"] for run in runs),
            runs[0]["epochs"],
        )
    rows = []
    for name, (rate, epochs) in rates.items():
        hours = [round_to(count * epochs / rate / 3600) for count in list(SIZES.values())[:2]]
        rows.append([f"{name}, {rate:,.0f} rows/s a core", str(epochs), *hours])
    return _table(["recipe", "epochs", *(f"core-hours, {size}" for size in list(SIZES)[:2])], rows)


def _workers(sums: Sums) -> str:
    trained = _trained(sums)
    rate, size = trained["rows_per_s"] / trained["workers"], 4 * trained["parameters"]
    send_s = 2 * size / sums.assumed.network_bytes_per_s
    most = RECIPES["tweets"].batch_size / rate / send_s
    return (
        f"`tweets` has {in_bytes(size)} of them at least (n-grams come on top), {send_s * 1e3:.0f} ms to and fro. With "
        f"{most:.0f} workers of one core\na step computes as long as it sends; more want a larger `--batch-size`."
    )


def _ids(sums: Sums) -> str:
    rows = []
    for size, count in SIZES.items():
        shards = count / sums.rows_per_shard(count, sums.cores("BiLSTM", count))
        rows.append([size, in_bytes(8 * count), in_bytes(shards * sums.report["bytes_per_shard"])])
    store = 0.3 * sums.assumed.driver_bytes
    return (
        f"{_table(['tweets', '8 bytes a row', 'our reports in the driver'], rows)}\n\n"
        f"The object store of a machine of {in_bytes(sums.assumed.driver_bytes)}, 30 % of that, is full of such ids at "
        f"**{words(store / 8)}** rows;\nway round: a job for each part of the archive, with a checkpoint of its own."
    )


def _machine(sums: Sums) -> str:
    lanes = {lane: run["created"][:10] for lane, run in sums.measured.items()}
    busy = [lane for lane, run in sums.measured.items() if run["busy_before"] > 5]
    told = f"\nOthers used the machine while these lanes ran: {', '.join(busy)}." if busy else ""
    return f"Measured on {machine_line(sums.measured['plan']['machine'])}; {max(lanes.values())}.{told}"


TABLES: dict[str, Callable[[Sums], str]] = {
    "assumed": _assumed,
    "scoring": _scoring,
    "storage": _storage,
    "memory": _memory,
    "limits": lambda sums: _limits(sums.scoring_limits()),
    "one_file": _one_file,
    "driver": _driver,
    "nodes": _nodes,
    "training": _training,
    "workers": _workers,
    "shards_on_a_store": _shards_on_a_store,
    "many_actors": _many_actors,
    "training_limits": lambda sums: _limits(sums.training_limits()),
    "ids": _ids,
    "machine": _machine,
}
