"""The library's public names, which `from sentiment import …` gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentiment.bundle import Bundle
from sentiment.commands import SCORE, job_of
from sentiment.predictor import Predictor

__all__ = ["Predictor", "load_bundle", "score", "train"]


def load_bundle(path: str | Path) -> Bundle:
    """Open a trained model's bundle and check it against its manifest.

    Args:
        path: Folder or URI that a training job wrote.

    Raises:
        BundleError: It is incomplete, altered or not a bundle.
    """
    return Bundle.open(path)


def score(model: str, input: str | Sequence[str], output: str, **settings: Any) -> dict[str, Any]:
    """Score an archive of texts to Parquet, each row exactly once, as `sentiment score` does.

    Args:
        model: Bundle (folder or URI).
        input: Files, folders, globs or URIs.
        output: Folder or URI; an interrupted run in it is resumed.
        settings: More keys of sections `score` and `ray` (docs/settings.md), and `config` and `profile`.

    Returns:
        The command's JSON: rows_in, rows_scored, rows_rejected, rows_per_s, duration_s, output, model_id.

    Raises:
        SentimentError: A setting, an input or the bundle can't be used.
    """
    files = [input] if isinstance(input, str) else list(input)
    return SCORE.run(*SCORE.load({"model": model, "input": files, "output": output, **settings}))


def train(output: str, recipe: str = "tweets", data: str | None = None, **settings: Any) -> dict[str, Any]:
    """Train a classifier into a bundle, as `sentiment train` does.

    Args:
        output: Folder or URI for the bundle, checkpoints and metrics.
        recipe: Named recipe; it decides which family of models is trained.
        data: Prepared data set that `sentiment prepare` wrote; None: runs/imdb or runs/sentiment140, by recipe.
        settings: More keys of sections `train` or `train_bert` and `ray`, fields of the recipe, `config`, `profile`.

    Returns:
        The command's JSON: test_accuracy, bundle, curve and more.

    Raises:
        SentimentError: A setting or the data can't be used.
    """
    job = job_of(recipe)
    given = {"output": output, "recipe": recipe, **({} if data is None else {"data": data}), **settings}
    return job.run(*job.load(given))
