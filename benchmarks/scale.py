#!/usr/bin/env python
"""Work out what archives of any size take, and which part stops scaling first: the tables of docs/scale.md.

  python benchmarks/scale.py page                                        # write them into docs/scale.md again
  python benchmarks/scale.py print --tweets 3e9 --core-hour 0.04 --machine-cores 64

Nothing is measured: rates of the models come from scoring.json, bert_gru.json and main_job.json in --results, what a
row, a file or a shard takes from scale.json (each of its `limits` says how it follows from the measured figures).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))  # The code lies beside it, installed or not.

from benchmarks.harness import BLOCK, RESULTS, ROOT, Figures, table

# Actors of a cluster that Ray's own benchmarks have tried, with trivial work.
RAY_ACTORS = 20_000
# Hours that a run may take; the limits in scale.json reckon with it too.
NIGHT_H = 8.0
TRAINING_SIZES = 2


class _Tables:
    """The tables, from the results of all benchmarks.

    Args:
        results: Name of a JSON file → its content.
        args: Sizes and assumptions, of the command line.
    """

    def __init__(self, results: dict[str, Figures], args: argparse.Namespace) -> None:
        self._results, self._args = results, args
        scoring = results["scoring"]
        cores = {lane: scoring[lane]["machine"]["cores"] for lane in ("size", "minilm")}
        self._row_rates = {
            "BiLSTM": scoring["size"]["median"]["large"]["rows_per_s"] / cores["size"],
            "MiniLM BERT-GRU": scoring["minilm"]["median"]["job"] / cores["minilm"],
        }

    def scoring(self) -> str:
        rows, a = [], self._args
        for model, rate in self._row_rates.items():
            for count in a.tweets:
                hours = count / rate / 3600
                cores = hours / NIGHT_H
                row = [f"{model}, {rate:,.0f} rows/s a core", words(count), _rounded(hours), _rounded(max(1, cores))]
                rows.append([*row, f"{-(-cores // a.machine_cores):,.0f}", _rounded(hours * a.core_hour)])
        head = ["model", "tweets", "core-hours", f"cores for {NIGHT_H:g} h", f"machines of {a.machine_cores} cores"]
        return table([*head, f"price at {a.core_hour:g}"], rows)

    def limits(self) -> str:
        night_s = NIGHT_H * 3600
        actors = [
            {
                "part": f"actors of one Ray cluster, {model.split()[0]}",
                "per_row": 1 / rate / night_s / RAY_ACTORS,
                **{"most": 1.0, "unit": "share", "way": "several clusters; GPUs; more nights"},
            }
            for model, rate in self._row_rates.items()
        ]
        return self._limits([*self._results["scale"]["limits"]["scoring"], *actors])

    def training_limits(self) -> str:
        return self._limits(self._results["scale"]["limits"]["training"])

    def _limits(self, limits: Sequence[Figures]) -> str:
        rows = []
        for limit in sorted(limits, key=lambda one: one["most"] / one["per_row"]):
            found = [with_unit(count * limit["per_row"], limit["unit"]) for count in self._args.tweets]
            rows.append([limit["part"], *found, f"**{words(limit['most'] / limit['per_row'])}**", limit["way"]])
        return table(["part", *map(words, self._args.tweets), "too much at", "way round"], rows)

    def one_file(self) -> str:
        read = {form: found["rows_per_s"] for form, found in self._results["scale"]["shards"]["read"].items()}
        rows = [
            [form, f"{rate:,}", *(f"{rate / of:,.0f}" for of in self._row_rates.values())]
            for form, rate in read.items()
        ]
        return table(
            ["form", "rows/s of one reader", *(f"cores that it feeds, {name}" for name in self._row_rates)], rows
        )

    def training(self) -> str:
        trained = [run["trained"] for run in self._results["main_job"]["jobs"]["runs"] if "trained" in run][-1]
        rates = {"`tweets`": (trained["rows_per_s"] / trained["workers"], trained["epochs"])}
        for recipe, remark in (("bert-tweets", ", features kept"), ("bert-tweets-tuned", "")):
            lanes = self._results["bert_gru"].items()
            runs = [run for lane, run in lanes if lane.startswith(f"quality {recipe} ")]
            rates[f"`{recipe}`{remark}"] = mean(run["rows_per_s"] / run["workers"] for run in runs), runs[0]["epochs"]
        sizes = self._args.tweets[:TRAINING_SIZES]
        rows = [
            [f"{name}, {rate:,.0f} rows/s a core", epochs, *(_rounded(count * epochs / rate / 3600) for count in sizes)]
            for name, (rate, epochs) in rates.items()
        ]
        return table(["recipe", "epochs", *(f"core-hours, {words(count)}" for count in sizes)], rows)


def _rounded(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 1000 else f"{float(f'{value:.2g}'):g}"


def words(count: float) -> str:
    """A number, large ones in words."""
    units = (("trillion", 1e12), ("billion", 1e9), ("million", 1e6))
    return next((f"{_rounded(count / size)} {name}" for name, size in units if count >= size), _rounded(count))


def with_unit(value: float, unit: str) -> str:
    """A figure as it is read: seconds, bytes, a share of what there is, or a plain number."""
    match unit:
        case "s":
            units = (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0))
            return next(
                (f"{_rounded(value / of)} {name}" for name, of in units if value >= 2 * of), f"{_rounded(value)} s"
            )
        case "B":
            sizes = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
            return next((f"{_rounded(value / of)} {name}" for name, of in sizes if value >= of), f"{_rounded(value)} B")
        case "share":
            return "under 0.1%" if value < 1e-3 else f"{value:.1%}" if value < 0.1 else f"{value:,.0%}"
        case _:
            return words(value)


PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("lane", choices=["print", "page"])
PARSER.add_argument("--tweets", nargs="+", type=float, default=[1.6e6, 1e9, 5e11], help="sizes")
PARSER.add_argument("--machine-cores", type=int, default=16, help="cores of a machine (16)")
PARSER.add_argument("--core-hour", type=float, default=0.05, help="price of a core for an hour (0.05)")
PARSER.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
PARSER.add_argument("--page", type=Path, default=ROOT / "docs" / "scale.md", help="page with the tables")


def main() -> None:
    """Print the tables or write them into the page."""
    args = PARSER.parse_args()
    names = ("scale", "scoring", "bert_gru", "main_job")
    tables = _Tables({name: json.loads((args.results / f"{name}.json").read_text()) for name in names}, args)
    if args.lane == "print":
        print("\n".join((tables.scoring(), tables.training(), tables.limits(), tables.training_limits())))
    else:
        text = args.page.read_text()
        args.page.write_text(BLOCK.sub(lambda found: f"{found[1]}\n{getattr(tables, found[2])()}\n{found[4]}", text))


if __name__ == "__main__":
    main()
