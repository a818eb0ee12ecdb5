"""The page of `benchmarks/score.py`: its raw numbers as tables."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from jobs.report import machine_line

_LANES = "python benchmarks/score.py"
# Percent of the CPUs that others took before a lane began: with more, the page says so.
BUSY = 5.0


def page(results: dict[str, Any]) -> str:
    """Write the page.

    Args:
        results: Each lane's figures; lanes that never ran are missing.

    Returns:
        Markdown.
    """
    parts = [
        "# Batch scoring, measured\n\nMade with `benchmarks/score.py`, whose `--help` has the commands; raw numbers in "
        "[scoring.json](scoring.json). Contenders take turns, each in a process of its own; figures are medians, and "
        "ratios are of medians. Targets were set before anything was measured.\n",
        _part("A recurrent model, from file to Parquet", "bilstm", results, _bilstm),
        _part("MiniLM, against Hugging Face's pipeline", "minilm", results, _minilm),
        _part("Rate and memory as the archive grows", "size", results, _size),
        _part("After a kill", "resume", results, _resume),
    ]
    return "\n".join(parts)


def _part(title: str, lane: str, results: dict[str, Any], tell: Callable[[dict[str, Any]], str]) -> str:
    run = results.get(lane)
    if run is None:
        return f"## {title}\n\nNot measured yet: `{_LANES} {lane} …`.\n"
    where = f"Model `{run['model_id']}`, {run['input']}, {_turns(run['repeats'])}, on {machine_line(run['machine'])}"
    busy = f" **The machine was busy with other things ({run['busy_before']:.0f} %).**" * (run["busy_before"] > BUSY)
    return f"## {title}\n\n{tell(run)}\n{where}; {run['created'][:10]}.{busy}\n"


def _turns(count: int) -> str:
    return "1 turn" if count == 1 else f"{count} turns"


def _bilstm(run: dict[str, Any]) -> str:
    rows, loop, alone = run["turns"]["job"][0]["rows_in"], run["turns"]["notebook"][0], run["turns"]["forward"][0]
    names = {"job": "job", "command": "whole command", "notebook": "notebooks' loop", "forward": "forward pass alone"}
    return f"""Rows/s. *Job*: `jobs/score.py` over {rows:,} rows on its own Ray, from the first shard begun to the last
file written. *Whole command*: Ray's start and loading the model counted too. *Notebooks' loop*: the same model in one
process with {loop["threads"]} torch thread(s), batches of 64 in the order of the file, float32, words split in Python,
over {loop["rows"]:,} of the rows. *Forward pass alone*: {alone["processes"]} processes with one thread each, ready-made
batches as the job makes them, nothing read or written.

{_rates(run, names, {"notebook": "at least 4", "forward": "at least 0.8"})}"""


def _minilm(run: dict[str, Any]) -> str:
    rows, theirs = run["turns"]["job"][0]["rows_in"], run["turns"]["pipeline"][0]
    tried = ", ".join(f"{size}: {rate:,.0f}" for size, rate in run["batch_sizes"]["rows_per_s"].items())
    return f"""Rows/s. *Job*: `jobs/score.py` with a BERT-GRU over {rows:,} rows, from the first shard begun to the
last file written. *Pipeline*: `text-classification` with the same encoder and a linear head in one process with
{theirs["threads"]} torch thread(s), float32, texts in the order of the file, the same maximum length, over
{theirs["rows"]:,} of the rows, batch size {theirs["batch_size"]}: the best on {run["batch_sizes"]["rows"]:,} rows
(rows/s by batch size: {tried}).

{_rates(run, {"job": "job", "command": "whole command", "pipeline": "pipeline"}, {"pipeline": "at least 7"})}"""


def _rates(run: dict[str, Any], names: dict[str, str], targets: dict[str, str]) -> str:
    rows = []
    for name, words in names.items():
        ratio = "" if name == "job" else f"{run['ratio'][name]:.2f}"
        rows.append(f"| {words} | {run['median'][name]:,.0f} | {ratio} | {targets.get(name, '')} |")
    return "\n".join(["| | rows/s | job ÷ this | target |", "|---|---|---|---|", *rows, ""])


def _size(run: dict[str, Any]) -> str:
    names = ("small", "large")
    rows = [
        f"| {run['rows'][name]:,} | {run['bytes'][name] / 1e6:,.0f} | {run['median'][name]['rows_per_s']:,.0f} | "
        f"{run['median'][name]['peak_pss_mb']:,.0f} | {run['median'][name]['peak_uss_mb']:,.0f} | "
        f"{run['median'][name]['peak_rss_mb']:,.0f} |"
        for name in names
    ]
    ratio = run["ratio"]
    last = f"{ratio['peak_pss_mb']:.2f} | {ratio['peak_uss_mb']:.2f} | {ratio['peak_rss_mb']:.2f} |"
    return f"""The input's rows again and again under fresh ids, as {run["format"]}. Memory is the highest sum over all
processes of the run (driver, Ray's own, workers, actors), every 0.5 s: PSS counts a shared page once, RSS in each
process that has it, USS not at all.

| rows | file, MB | rows/s | peak PSS, MB | peak USS, MB | peak RSS, MB |
|---|---|---|---|---|---|
{chr(10).join(rows)}
| large ÷ small | | {ratio["rows_per_s"]:.2f} | {last}
| target | | at least 0.95 | at most 1.3 | | |
"""


def _resume(run: dict[str, Any]) -> str:
    rows = []
    for turn in run["turns"]:
        whole, killed = turn["whole"], turn["killed"]
        rows.append(
            f"| {whole['wall_s']:,.1f} | {whole['rows_per_s']:,.0f} | {killed['shards_done']} of {turn['shards']} | "
            f"{whole['rows_in'] - killed['rows_done']:,} | {turn['left_s']:,.1f} | {turn['start_s']:,.1f} | "
            f"{turn['again']['wall_s']:,.1f} | {turn['ratio']:.2f} |"
        )
    gone_s = median(turn["killed"]["gone_s"] for turn in run["turns"])
    count = run["turns"][0]["whole"]["rows_in"]
    return f"""{count:,} rows, undisturbed; then killed with SIGKILL at half the shards, and the same command again.
What it should take is the rows without a report at the undisturbed rate and a start, which is that of 200 rows. Median
ratio **{run["ratio"]:.2f}**, target: at most 1.15. All processes were gone {gone_s:.1f} s after the kill.

| undisturbed, s | rows/s | shards done at the kill | rows left | their work, s | a start, s | resumed, s | ratio |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""
