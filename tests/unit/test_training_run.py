"""What a run's bundle says of bfloat16: measured on validation rows, with the predictor that users get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from sentiment.bundle import Bundle
from sentiment.devices import has_fast_bf16
from sentiment.predictor import Predictor
from sentiment.training import run as run_module
from sentiment.training.loop import Hooks
from sentiment.training.recipes import get_recipe
from sentiment.training.run import Rank, bundle_run, train_run
from sentiment.training.word_models import WordRun


@pytest.fixture(scope="module")
def run(prepared_tweets: Path) -> WordRun:
    size = {"embedding_dim": 8, "hidden_dim": 8, "num_layers": 1, "epochs": 1, "learning_rate": 0.05}
    return WordRun(
        recipe=get_recipe("tweets").with_overrides(size), data=str(prepared_tweets), seed=1, precision="float32"
    )


@pytest.fixture(scope="module")
def trained(run: WordRun) -> dict[str, Any]:
    """The figures; the run has the weights."""
    return train_run(run, Rank(0, 1, torch.device("cpu")), hooks=Hooks(), resume=lambda: None)


def bundled(folder: Path, run: WordRun, trained: dict[str, Any], precision: str) -> tuple[Bundle, dict[str, Any]]:
    """The bundle, as if it had been trained in another precision, and what is in its metrics.json."""
    figures = {**trained, "precision": precision}
    bundle = bundle_run(folder, run, figures)
    metrics = json.loads((bundle.path / "metrics.json").read_text())
    assert metrics.get("bf16_error") == figures.get("bf16_error"), "the job's JSON lacks what the bundle says"
    return bundle, metrics


@pytest.mark.parametrize("most", [30, 2_000])
def test_the_error_of_bf16_is_measured(
    prepared_tweets: Path,
    run: WordRun,
    trained: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
) -> None:
    """On some rows, from the first to the last, or on all if they are few."""
    monkeypatch.setattr(run_module, "_COMPARED_ROWS", most)
    bundle, metrics = bundled(tmp_path / "bundle", run, trained, "bf16")
    texts = pq.read_table(prepared_tweets / "validation" / "part.parquet")["text"].to_pylist()
    if most < len(texts):
        texts = [texts[int(index * (len(texts) - 1) / (most - 1))] for index in range(most)]
    exact, rough = (
        Predictor.load(bundle.path, use_gpu=False, precision=precision).predict(texts)
        for precision in ("float32", "bf16")
    )
    pairs = list(zip(exact, rough, strict=True))
    largest = max(abs(one.p_positive - other.p_positive) for one, other in pairs)
    assert largest > 0
    assert metrics["bf16_error"] == {
        "rows": len(texts),
        "max_p_difference": pytest.approx(largest, rel=1e-5),
        "flipped_labels": sum(one.label != other.label for one, other in pairs),
    }


def test_where_nothing_is_in_bf16_nothing_is_measured(run: WordRun, trained: dict[str, Any], tmp_path: Path) -> None:
    _, metrics = bundled(tmp_path / "bundle", run, trained, "float32")
    assert ("bf16_error" in metrics) == has_fast_bf16(torch.device("cpu"))
