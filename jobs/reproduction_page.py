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

from jobs.baseline import NAME as BASELINE
from jobs.report import machine_line
from sentiment.corpora.folder import Folder
from sentiment.recipes import RECIPES, twin_of

PAGE, RAW = "reproduction.md", "reproduction.json"
MARKER = "<!-- Written by hand from here on; jobs/reproduce.py keeps it. -->"
_DATASETS = {"imdb": "IMDB", "sentiment140": "Sentiment140"}
_HEAD = f"""# The notebooks' models, reproduced

Written by

```sh
python jobs/prepare.py --input imdb/train.parquet --test-input imdb/test.parquet --output runs/imdb
python jobs/prepare.py --input sentiment140.parquet --output runs/sentiment140
python jobs/reproduce.py --vectors glove.6B.50d.txt
```

Test accuracy of the epoch with the lowest validation loss: mean ± standard deviation over the seeds that are named.
Seconds of an epoch and training rows/s count training steps; test rows/s is the forward pass over encoded rows.
`{BASELINE}` is TF-IDF of words and word pairs with logistic regression (scikit-learn), its strength chosen on the
validation rows: what one would try first.
"""
_COLUMNS = (
    *("recipe", "source's result", "ours", "seeds", "parameters", "of them trained", "best epoch"),
    *("s an epoch", "training rows/s", "test rows/s", "machine"),
)


def write_report(output: Path, report: Path) -> Path:
    """Write the page and the raw figures of all finished runs.

    Args:
        output: Folder of the runs.
        report: Folder of the page.

    Returns:
        The page's path.
    """
    report.mkdir(parents=True, exist_ok=True)
    folder, page = Folder(str(report)), report / PAGE
    earlier = json.loads((report / RAW).read_text())["runs"] if (report / RAW).exists() else []
    found = [_public(json.loads(path.read_text())) for path in sorted(output.glob("*/*/**/result.json"))]
    results = list({_key(result): result for result in filter(_is_current, [*earlier, *found])}.values())
    results.sort(key=lambda result: json.dumps(_key(result)))
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


def _key(result: dict[str, Any]) -> tuple[str, str, str, str]:
    """What there is one result of."""
    return result["dataset"], result["recipe"], str(result["seed"]), machine_line(result["machine"])


def _is_current(result: dict[str, Any]) -> bool:
    """Whether a recipe still has the settings of a result; vectors may be a file's instead of those it names."""
    if result["recipe"] == BASELINE:
        return True
    recipe = RECIPES.get(result["recipe"])
    if recipe is None:
        return False
    names = {*type(recipe).model_fields} - {*recipe.WORDS, "vectors"}
    return all(
        result["settings"].get(name) == value for name, value in recipe.model_dump(mode="json", include=names).items()
    )


def _page(results: list[dict[str, Any]]) -> str:
    machines = list(dict.fromkeys(machine_line(result["machine"]) for result in results))
    parts = [_HEAD]
    for dataset, title in _DATASETS.items():
        here = [result for result in results if result["dataset"] == dataset]
        if here:
            parts.append(f"\n## {title}\n\n{_rows_line(here)}\n\n{_table(here, machines)}")
            parts.append(_lengths(here))
    if machines:
        parts.append("\nMachines: " + "; ".join(f"{_letter(at)}: {line}" for at, line in enumerate(machines)) + ".\n")
    parts.append("\n")
    return "".join(parts)


def _rows_line(results: list[dict[str, Any]]) -> str:
    counts = next((result["rows"] for result in results if "rows" in result), None)
    if counts is None:
        return ""
    return f"{counts['train']:,} training, {counts['validation']:,} validation and {counts['test']:,} test rows."


def _table(results: list[dict[str, Any]], machines: list[str]) -> str:
    lines = []
    for name in (BASELINE, *RECIPES):
        same = BASELINE if name == BASELINE else twin_of(RECIPES[name]).name
        for at, machine in enumerate(machines):
            runs = [r for r in results if r["recipe"] == same and machine_line(r["machine"]) == machine]
            if runs:
                lines.append(_line(name, same, runs, _letter(at)))
    return _markdown(_COLUMNS, lines)


def _line(name: str, same: str, runs: list[dict[str, Any]], letter: str) -> list[str]:
    first = runs[0]
    if name == BASELINE:
        parameters = f"{first['parameters']:,}"
        return [
            *(f"`{name}`", "–", mean_and_deviation([first["test_accuracy"]]), "–", parameters, parameters, "–"),
            *(f"{first['train_s']:.0f} (all)", f"{first['rows_per_s']:,}", f"{first['test_rows_per_s']:,}", letter),
        ]
    epochs = [epoch["train_s"] for run in runs for epoch in run["history"]]
    return [
        f"`{name}`" + ("" if same == name else f" (is `{same}`)"),
        RECIPES[name].source_result,
        f"**{mean_and_deviation(run['test_accuracy'] for run in runs)}**",
        ", ".join(str(run["seed"]) for run in sorted(runs, key=lambda run: run["seed"])),
        f"{first['parameters']:,}",
        f"{first['trainable_parameters']:,}",
        f"{statistics.mean(run['best_epoch'] for run in runs):.1f} of {first['epochs']}",
        f"{statistics.mean(epochs):.0f}",
        f"{statistics.mean(run['rows_per_s'] for run in runs):,.0f}",
        f"{statistics.mean(run['test_rows_per_s'] for run in runs):,.0f}",
        letter,
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


def _letter(at: int) -> str:
    return chr(ord("A") + at)
