"""The baseline on rows whose label hangs on one word, or on which of two words stands first."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.reproduction import runs
from benchmarks.reproduction.runs import check_installed
from benchmarks.reproduction.runs import measure_baseline as measure
from sentiment.errors import ConfigError
from sentiment.schema import PREPARED_SCHEMA

ROWS = {"train": 300, "validation": 60, "test": 80}
FILLERS = [f"word{number}" for number in range(20)]
# Times, which differ from one measuring to the next.
TIMES = {"train_s", "rows_per_s", "test_rows_per_s"}


def prepare(folder: Path, told_by: tuple[str, str]) -> str:
    """Write prepared data: the negative and the positive phrase, each among words that say nothing."""
    draw = random.Random(1)
    for split, count in ROWS.items():
        rows = []
        for row in range(count):
            label = draw.randrange(2)
            words = draw.choices(FILLERS, k=6)
            words.insert(draw.randrange(7), told_by[label])
            rows.append({"row_id": row, "label": label, "text": " ".join(words), "ids": []})
        draw.shuffle(rows)
        table = [{**row, "source_file": "f", "source_row": row["row_id"]} for row in rows]
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(table, schema=PREPARED_SCHEMA), folder / split / "part.parquet")
    (folder / "manifest.json").write_text(
        json.dumps({"splits": {name: {"rows": count} for name, count in ROWS.items()}})
    )
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepare(tmp_path_factory.mktemp("words"), ("awful", "lovely"))


@pytest.fixture(scope="module")
def figures(data: str) -> dict[str, Any]:
    return measure(data)


def test_learns_which_word_tells(figures: dict[str, Any]) -> None:
    assert figures["test_accuracy"] == pytest.approx(1, abs=0.01)
    assert figures["validation_accuracy"] == pytest.approx(1, abs=0.01)


def test_learns_which_word_comes_first(tmp_path: Path) -> None:
    """It reads pairs of words: single ones say nothing here."""
    assert measure(prepare(tmp_path, ("good bad", "bad good")))["test_accuracy"] > 0.95


def test_learns_nothing_where_nothing_tells(tmp_path: Path) -> None:
    assert measure(prepare(tmp_path, ("same", "same")))["test_accuracy"] == pytest.approx(0.5, abs=0.2)


def test_same_figures_twice(data: str, figures: dict[str, Any]) -> None:
    again = measure(data)
    assert {name: again[name] for name in again.keys() - TIMES} == {
        name: figures[name] for name in figures.keys() - TIMES
    }


def test_figures(figures: dict[str, Any]) -> None:
    assert figures.keys() == TIMES | {
        *("recipe", "strength", "parameters", "validation_accuracy", "test_rows", "test_accuracy"),
    }
    assert (figures["recipe"], figures["test_rows"]) == ("tf-idf", ROWS["test"])
    # A weight for each word and each pair that occurs in two rows, and one for the bias.
    assert 22 < figures["parameters"] <= 22 + 22 * 22 + 1
    assert all(figures[name] > 0 for name in TIMES)
    assert json.loads(json.dumps(figures)) == figures


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[baseline\]' in the checkout, or --no-baseline"):
        check_installed()
