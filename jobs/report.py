"""What a person looks at after training: the curve and the model card."""

from __future__ import annotations

import io
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sentiment.corpora.planning import ReadPlan
from sentiment.recipe import Recipe
from sentiment.section import Section


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

    Args:
        recipe: What was trained.
        metrics: Its figures.
        manifest: Manifest of the prepared data.
    """
    import torch

    rows = {split: f"{counts['rows']:,}" for split, counts in manifest["splits"].items()}
    test = "–" if metrics["test_accuracy"] is None else f"{metrics['test_accuracy']:.2%}"
    encoder = (
        f"| encoder | {metrics['encoder']}, sha256 {metrics['encoder_sha256']} |\n" if "encoder" in metrics else ""
    )
    return f"""---
pipeline_tag: text-classification
library_name: sentiment-at-scale
language: en
---
# {recipe.name}

{recipe.summary}. Says of a text whether it is NEGATIVE or POSITIVE.

| | |
|---|---|
{encoder}| parameters | {metrics["parameters"]:,}, of them trained {metrics["trainable_parameters"]:,} |
| vocabulary | {metrics["vocabulary"]:,} tokens |
| rows | {rows["train"]} train, {rows["validation"]} validation, {rows["test"]} test |
| validation accuracy | {metrics["validation_accuracy"]:.2%} (epoch {metrics["best_epoch"]} of {metrics["epochs"]}) |
| test accuracy | {test} |
| trained on | {metrics["workers"]} × {metrics["device"]}, {metrics["precision"]}, {metrics["rows_per_s"]:,} rows/s |
| versions | Python {platform.python_version()}, torch {torch.__version__.split("+")[0]} |

```python
from sentiment.predictor import Predictor

Predictor.load("path/to/this/folder").predict(["I love this"])
```

Limits: it reads {recipe.max_length} tokens of a text, knows two labels (no neutral), and has seen only texts like those
it was trained on. Labels of Sentiment140 come from emoticons, not from people.
"""


def machine(*packages: str) -> dict[str, Any]:
    """What a measured number was measured on.

    Args:
        packages: Whose versions matter.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(models) or None,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def machine_line(description: dict[str, Any]) -> str:
    """A `machine` in words."""
    versions = [f"{name} {found}" for name, found in description.items() if name not in ("processor", "cores", "gpu")]
    gpu = f", {description['gpu']}" if description.get("gpu") else ""
    return f"{description['cores']} cores of {description['processor']}{gpu}; {', '.join(versions)}"


def some_of(lines: Sequence[str], most: int = 100) -> list[str]:
    """The first lines and the number of the others: an archive may have tens of thousands of stray files."""
    rest = len(lines) - most
    return [*lines[:most], *([f"and {rest:,} more"] if rest > 0 else [])]


def kind_of_reason(reason: str) -> str:
    """A reason without the values in it: there are few of them, and nothing of the users' is in them."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+|0x\w+", "…", reason.split(";", maxsplit=1)[0])


def manifest_head(plan: ReadPlan, settings: Section) -> dict[str, Any]:
    """What a manifest says beside the counts: inputs, settings, versions, time.

    Args:
        plan: What was read.
        settings: How.
    """
    return {
        "inputs": [{"path": file.path, "bytes": file.size_bytes} for file in plan.files],
        "skipped": some_of(plan.skipped),
        "renamed_columns": dict(plan.renamed),
        "settings": settings.model_dump(exclude={"output", "overwrite"}),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("ray", "torch", "pyarrow", "tokenizers")},
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
