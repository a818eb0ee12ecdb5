"""The page that `jobs/reproduce.py` writes: each recipe's result beside its source's.

All figures go to `reproduction.json`, the tables made of them to `reproduction.md`. Both keep what is there: figures of
other recipes, seeds and machines (not of settings that a recipe no longer has), and what people wrote below the marker.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sentiment.data.manifest import machine_line
from sentiment.storage.output_directory import OutputDirectory
from sentiment.training.recipes import RECIPES, twin_of

BASELINE = "tf-idf"
PAGE, RAW, RESULT = "reproduction.md", "reproduction.json", "result.json"
MARKER = "<!-- Written by hand from here on; jobs/reproduce.py keeps it. -->"
_DATASETS = {"imdb": "IMDB", "sentiment140": "Sentiment140"}
_HEAD = f"""# The notebooks' models, reproduced

Made with `jobs/reproduce.py`:

```sh
python jobs/prepare.py --input imdb/train.parquet --test-input imdb/test.parquet --output runs/imdb
python jobs/prepare.py --input sentiment140.parquet --output runs/sentiment140
python jobs/reproduce.py --vectors FILE              # --recipes and --seeds for a part of it
```

Test and validation accuracy of the epoch with the lowest validation loss: mean ± standard deviation over the seeds that
are named. Coverage is the share of the training rows' tokens that have a pretrained vector. Seconds of an epoch and
training rows/s count training steps; test rows/s is the forward pass over encoded rows. `{BASELINE}` is TF-IDF of words
and word pairs with logistic regression (scikit-learn), its strength chosen on the validation rows: what one would try
first.
"""
_COLUMNS = (
    *("recipe", "source's result", "our test", "our validation", "seeds", "vectors (coverage)"),
    *("parameters", "of them trained", "best epoch", "s an epoch", "training rows/s", "test rows/s", "on"),
)


def read_result(path: Path) -> dict[str, Any] | None:
    """A run's result; None if it isn't there or was cut short."""
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return result if "identity" in result else None


def write_report(output: Path, report: Path) -> Path:
    """Write the page and the raw figures of all finished runs in the folder `output`; returns the page's path."""
    report.mkdir(parents=True, exist_ok=True)
    folder, page = OutputDirectory(str(report)), report / PAGE
    earlier = json.loads((report / RAW).read_text())["runs"] if (report / RAW).exists() else []
    # No deeper: checkpoints come and go below while other runs are under way.
    paths = sorted([*output.glob(f"*/*/seed-*/{RESULT}"), *output.glob(f"*/{BASELINE}/{RESULT}")])
    found = [_public(result) for path in paths if (result := read_result(path))]
    results = list({_key(result): result for result in filter(_is_current, [*earlier, *found])}.values())
    results.sort(key=_key)
    by_hand = page.read_text(encoding="utf-8").partition(MARKER)[2] if page.exists() else "\n"
    folder.write_json(RAW, {"runs": results})
    folder.write_text(PAGE, _page(results) + MARKER + by_hand)
    return page


def _public(result: dict[str, Any]) -> dict[str, Any]:
    """A result as it is published: settings in place of digests, vectors as a file name and not as a path."""
    settings = dict(result["identity"].get("recipe", {}))
    if settings.get("vectors"):
        settings["vectors"] = Path(settings["vectors"]).name
    return {**{name: value for name, value in result.items() if name != "identity"}, "settings": settings}


def _row_of(result: dict[str, Any]) -> tuple[str, ...]:
    """What the runs of one row of a table have in common: all but the seed."""
    about = (result[name] for name in ("dataset", "data", "recipe"))
    return (*about, result.get("vectors") or "", result.get("precision", ""), machine_line(result["machine"]))


def _key(result: dict[str, Any]) -> str:
    """What there is one result of."""
    return json.dumps([*_row_of(result), result["seed"]])


def _is_current(result: dict[str, Any]) -> bool:
    """Whether a recipe still has the settings of a result; vectors may be a file's instead of those it names."""
    if result["recipe"] == BASELINE:
        return True
    recipe = RECIPES.get(result["recipe"])
    if recipe is None:
        return False
    # A result is older than a setting that it lacks: that setting's default was what it was made with.
    before = {name: type(recipe).model_fields[name].default for name in recipe.settings} | result["settings"]
    return all(before[name] == value for name, value in recipe.settings.items() if name != "vectors")


def _page(results: list[dict[str, Any]]) -> str:
    machines = list(dict.fromkeys(machine_line(result["machine"]) for result in results))
    parts = [_HEAD]
    for dataset, title in _DATASETS.items():
        for data in dict.fromkeys(result["data"] for result in results if result["dataset"] == dataset):
            runs = [result for result in results if (result["dataset"], result["data"]) == (dataset, data)]
            rows = ", ".join(f"{count:,} {split}" for split, count in runs[0]["rows"].items())
            parts.append(f"\n## {title}\n\nRows: {rows} (data {data}).\n\n{_table(runs, machines)}{_lengths(runs)}")
    if machines:
        parts.append(
            "\nOn " + "; ".join(f"{chr(ord('A') + index)}: {line}" for index, line in enumerate(machines)) + ".\n"
        )
    parts.append("\n")
    return "".join(parts)


def _table(results: list[dict[str, Any]], machines: list[str]) -> str:
    lines = []
    for name in (BASELINE, *RECIPES):
        same = BASELINE if name == BASELINE else twin_of(RECIPES[name]).name
        rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for result in results:
            if result["recipe"] == same:
                rows.setdefault(_row_of(result), []).append(result)
        for runs in rows.values():
            letter = chr(ord("A") + machines.index(machine_line(runs[0]["machine"])))
            lines.append(_baseline_line(runs[0], letter) if name == BASELINE else _line(name, same, runs, letter))
    return _markdown(_COLUMNS, lines)


def _baseline_line(run: dict[str, Any], letter: str) -> list[str]:
    parameters = f"{run['parameters']:,}"
    accuracies = [mean_and_deviation([run[f"{split}_accuracy"]]) for split in ("test", "validation")]
    return [
        *(f"`{BASELINE}`", "–", *accuracies, "–", "–", parameters, parameters, "–"),
        *(f"{run['train_s']:.0f} (all)", f"{run['rows_per_s']:,}", f"{run['test_rows_per_s']:,}", letter),
    ]


def _line(name: str, same: str, runs: list[dict[str, Any]], letter: str) -> list[str]:
    first = runs[0]

    def mean(figure: str, form: str) -> str:
        return format(statistics.mean(run[figure] for run in runs), form)

    return [
        f"`{name}`" + ("" if same == name else f" (is `{same}`)"),
        RECIPES[name].source_result,
        f"**{mean_and_deviation(run['test_accuracy'] for run in runs)}**",
        mean_and_deviation(run["validation_accuracy"] for run in runs),
        ", ".join(str(seed) for seed in sorted(run["seed"] for run in runs)),
        f"{first['vectors']} ({first['token_coverage']:.1%})" if first["vectors"] else "–",
        *(f"{first[count]:,}" for count in ("parameters", "trainable_parameters")),
        f"{mean('best_epoch', '.1f')} of {first['epochs']}",
        f"{statistics.mean(epoch['train_s'] for run in runs for epoch in run['history']):.0f}",
        *(mean(rate, ",.0f") for rate in ("rows_per_s", "test_rows_per_s")),
        f"{letter}, {first['precision']}",
    ]


def mean_and_deviation(accuracies: Iterable[float]) -> str:
    """Mean ± sample standard deviation in per cent; of one alone, itself."""
    found = [100 * accuracy for accuracy in accuracies]
    deviation = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.2f}{deviation} %"


def _lengths(results: list[dict[str, Any]]) -> str:
    """What a maximum length costs: the same weights on the same test rows, cut elsewhere."""
    measured: dict[str, dict[str, Any]] = {}
    for run in results:
        if len(run.get("test_accuracy_by_max_length", {})) > 1:
            first = measured.setdefault(run["recipe"], run)
            measured[run["recipe"]] = min(first, run, key=lambda run: run["seed"])
    if not measured:
        return ""
    lengths = sorted({int(length) for run in measured.values() for length in run["test_accuracy_by_max_length"]})
    lines = []
    for run in (measured[name] for name in RECIPES if name in measured):
        found, trained = run["test_accuracy_by_max_length"], run["settings"]["max_length"]
        cells = [mean_and_deviation([found[str(length)]]) if str(length) in found else "–" for length in lengths]
        marked = [f"**{cell}**" if length == trained else cell for length, cell in zip(lengths, cells, strict=True)]
        lines.append([f"`{run['recipe']}`", *marked])
    about = "Test accuracy of the first seed when texts are cut to so many tokens; bold is the length of training."
    return f"\n{about}\n\n{_markdown(('recipe', *map(str, lengths)), lines)}"


def _markdown(columns: Iterable[str], lines: list[list[str]]) -> str:
    rows = [list(columns), ["---"] * len(list(columns)), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
