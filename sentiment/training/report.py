"""What a person looks at after training: the curve and the model card."""

from __future__ import annotations

import io
import platform
import posixpath
from typing import Any

from sentiment.data.manifest import some_of
from sentiment.storage.uris import split_query
from sentiment.training.recipes import Recipe


def plot_curve(history: list[dict[str, Any]], title: str) -> bytes:
    """Draw loss and accuracy over the epochs.

    Args:
        history: A line of `metrics.jsonl` for each epoch.
        title: Above the picture.

    Returns:
        A PNG file.
    """
    # The object interface with the Agg canvas: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in history]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(epochs, [line[f"train_{name}"] for line in history], "o--", color="#8a8f98", label="train")
        axes.plot(epochs, [line[f"validation_{name}"] for line in history], "o-", color="#0b6bcb", label="validation")
        axes.set_xlabel("epoch")
        axes.set_title(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    best = min(history, key=lambda line: line["validation_loss"])
    loss.axvline(best["epoch"], color="#0b6bcb", alpha=0.3, linewidth=6)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.suptitle(f"{title}: best epoch {best['epoch']}, validation accuracy {best['validation_accuracy']:.2%}")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    return picture.getvalue()


def model_card(recipe: Recipe, metrics: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Text of a bundle's README.md, with the front matter that the Hugging Face hub reads.

    Names of input files stand in it, but not the folders that they were in: a bundle is given away.

    Args:
        recipe: What was trained.
        metrics: Its figures.
        manifest: Manifest of the prepared data.
    """
    import torch
    import yaml

    def percent(share: float | None) -> str:
        return "–" if share is None else f"{share:.2%}"

    def shown(value: Any) -> Any:
        """A setting; of a path on this machine the last part only."""
        is_path = isinstance(value, str) and value.startswith(("/", "~", "."))
        return posixpath.basename(value.rstrip("/")) if is_path else value

    def listed(settings: dict[str, Any]) -> str:
        return ", ".join(f"{name} {shown(value)}" for name, value in settings.items()) or "not known"

    sources = [
        (posixpath.basename(split_query(source["path"])[0].rstrip("/")), source)
        for source in manifest.get("inputs", [])
    ]
    inputs = [
        f"- {name}"
        + (f" and {source['files'] - 1:,} more files" if source.get("files", 1) > 1 else "")
        + f", {source['bytes']:,} bytes, sha256 {str(source.get('sha256'))[:16]}…"
        for name, source in sources
    ]
    splits = [
        f"| {split} | {counts['rows']:,} | {counts['negative']:,} | {counts['positive']:,} |"
        for split, counts in manifest["splits"].items()
    ]
    prepared = {
        name: value for name, value in manifest.get("settings", {}).items() if name not in ("input", "test_input")
    }
    head: dict[str, Any] = {
        "pipeline_tag": "text-classification",
        "library_name": "sentiment-at-scale",
        "language": "en",
        "license": "unknown",
        "tags": ["sentiment-analysis", recipe.name],
        "metrics": ["accuracy", "f1"],
    }
    if metrics.get("encoder_revision"):  # So it is one of the hub's.
        head["base_model"] = metrics["encoder"]
    confusion = ""
    if metrics["test_accuracy"] is not None:
        dataset = ", ".join(some_of([name for name, _ in sources], 3)) or "unknown"
        figures = [("accuracy", "accuracy", metrics["test_accuracy"]), ("f1", "macro F1", metrics["test_macro_f1"])]
        result = {
            "task": {"type": "text-classification"},
            "dataset": {"name": dataset, "type": "custom", "split": "test"},
            "metrics": [{"type": kind, "name": name, "value": round(value, 4)} for kind, name, value in figures],
        }
        head["model-index"] = [{"name": recipe.name, "results": [result]}]
        (tn, fp), (fn, tp) = metrics["test_confusion"]
        confusion = f"""| test rows | said NEGATIVE | said POSITIVE |
|---|---|---|
| are NEGATIVE | {tn:,} | {fp:,} |
| are POSITIVE | {fn:,} | {tp:,} |
"""
    encoder, terms = "", "the data"
    if "encoder" in metrics:
        encoder = f"| encoder | {shown(metrics['encoder'])}, sha256 {metrics['encoder_sha256']} |\n"
        terms = "the data and of the encoder"
    epoch = f"epoch {metrics['best_epoch']} of {metrics['epochs']}"
    lines = "".join(f"{line}\n" for line in some_of(inputs, 10))
    split_lines = "".join(f"{line}\n" for line in splits)
    return f"""---
{yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip()}
---
# {recipe.name}

{recipe.summary}. Says of a text whether it is NEGATIVE or POSITIVE.

```python
from sentiment.predictor import Predictor

Predictor.load("path/to/this/folder").predict(["I love this"])
```

`docs/bundles.md` of the project shows how to use it with torch and tokenizers alone.

## Figures

| | |
|---|---|
| validation accuracy | {percent(metrics["validation_accuracy"])} ({epoch}) |
| test accuracy | {percent(metrics["test_accuracy"])} |
| test macro F1 | {percent(metrics["test_macro_f1"])} |

{confusion}
Those of all epochs are in metrics.json.

## Data

{lines}
| split | rows | negative | positive |
|---|---|---|---|
{split_lines}
No text is in two splits. Labels are those of the data; in Sentiment140 they come from emoticons, not from people.

## License

None is stated here: this project doesn't know the terms of {terms}. They apply to what is made of them, so look them up
before you pass this model on or use it for more than a trial.

## Model

| | |
|---|---|
{encoder}| parameters | {metrics["parameters"]:,}, of them trained {metrics["trainable_parameters"]:,} |
| vocabulary | {metrics["vocabulary"]:,} tokens |
| trained on | {metrics["workers"]} × {metrics["device"]}, {metrics["precision"]}, {metrics["rows_per_s"]:,} rows/s |
| versions | Python {platform.python_version()}, torch {torch.__version__.split("+")[0]} |

Settings of the training: {listed(recipe.settings)}.

Settings of the preparation: {listed(prepared)}.

Limits: it reads {recipe.max_length} tokens of a text, knows two labels (no neutral), and has seen only texts like those
it was trained on.
"""
