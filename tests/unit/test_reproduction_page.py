"""The page of results: what it says of made-up runs, and what it keeps from one writing to the next."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reproduction.page import BASELINE, MARKER, write_report
from sentiment.training.recipes import Recipe, get_recipe

HERE = {"processor": "Xeon", "cores": 2, "python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0"}
THERE = {**HERE, "cores": 16, "gpu": "H200"}
DIGEST = "0123456789abcdef" * 4
HOME = "/home/someone/vectors"


def settings_of(recipe: str, **changes: Any) -> dict[str, Any]:
    return get_recipe(recipe).model_dump(mode="json", exclude={*Recipe.WORDS} - {"name"}) | changes


def write_run(output: Path, name: str, seed: int, accuracy: float = 0.8, **changes: Any) -> dict[str, Any]:
    """A finished run as benchmarks.reproduction.runs leaves it."""
    epochs = [{"epoch": number, "train_s": 10.0 * number, "rows_per_s": 100.0} for number in (1, 2)]
    result = {
        "dataset": get_recipe(name).dataset,
        "seed": seed,
        "rows": {"train": 20_000, "validation": 1_000, "test": 2_500},
        "recipe": name,
        "data": "0123456789ab",
        "precision": "bf16",
        "token_coverage": 0.91,
        "validation_accuracy": accuracy + 0.01,
        "parameters": 4_810_857,
        "trainable_parameters": 2_310_657,
        "epochs": 2,
        "best_epoch": seed % 2 + 1,
        "test_accuracy": accuracy,
        "rows_per_s": 1_000 + seed,
        "test_rows_per_s": 5_000,
        "vectors": "glove.txt",
        "history": epochs,
        "machine": HERE,
        "identity": {
            "data": DIGEST,
            "recipe": settings_of(name, vectors=f"{HOME}/glove.txt"),
            "seed": seed,
            "vectors": DIGEST[::-1],
        },
        **changes,
    }
    write(output / result["dataset"] / name / f"seed-{seed}", result)
    return result


def write_baseline(output: Path, dataset: str = "imdb", accuracy: float = 0.9) -> None:
    result = {
        **{"dataset": dataset, "seed": None, "rows": {"train": 7, "validation": 8, "test": 9}, "recipe": BASELINE},
        **{"data": "0123456789ab", "validation_accuracy": accuracy, "parameters": 413_881},
        **{"test_accuracy": accuracy, "train_s": 31.4, "rows_per_s": 749},
        **{"test_rows_per_s": 3_205, "machine": HERE, "identity": {"data": DIGEST}},
    }
    write(output / dataset / BASELINE, result)


def write(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "results"


def tables(page: str) -> list[list[list[str]]]:
    """Cells of the page's tables, which must be such for any Markdown reader."""
    found = []
    for block in re.split(r"\n\s*\n", page):
        lines = block.strip().splitlines()
        if not any(line.startswith("|") for line in lines):
            continue
        # The block holds nothing else: a table ends only at an empty line.
        assert all(line.startswith("| ") and line.endswith(" |") for line in lines), block
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert {len(row) for row in cells} == {len(cells[0])}, block
        assert set(cells[1]) == {"---"}
        assert all(cell for row in cells for cell in row), block
        found.append([cells[0], *cells[2:]])
    return found


def rows(output: Path, report: Path) -> list[dict[str, str]]:
    """The rows of the tables of results, after a writing."""
    page = write_report(output, report).read_text()
    results = [table for table in tables(page) if "our test" in table[0]]
    return [dict(zip(table[0], row, strict=True)) for table in results for row in table[1:]]


def raw(report: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads((report / "reproduction.json").read_text())["runs"]
    return runs


def test_mean_and_deviation_over_the_seeds(output: Path, report: Path) -> None:
    accuracies = {1: 0.871, 2: 0.874, 10: 0.8835}
    for seed, accuracy in accuracies.items():
        write_run(output, "bigru", seed, accuracy)
    [row] = rows(output, report)
    deviation = 100 * statistics.stdev(accuracies.values())
    assert row["our test"] == f"**87.62 ± {deviation:.2f} %**"
    assert row["our validation"] == f"88.62 ± {deviation:.2f} %"
    assert row["seeds"] == "1, 2, 10"
    assert row["vectors (coverage)"] == "glove.txt (91.0%)"
    assert row["recipe"] == "`bigru`"
    assert row["source's result"] == get_recipe("bigru").source_result
    assert (row["parameters"], row["of them trained"]) == ("4,810,857", "2,310,657")
    assert row["best epoch"] == "1.3 of 2"
    assert (row["s an epoch"], row["training rows/s"], row["test rows/s"]) == ("15", "1,004", "5,000")


def test_one_seed_has_no_deviation(output: Path, report: Path) -> None:
    write_run(output, "bigru", 3, 0.87123)
    [row] = rows(output, report)
    assert (row["our test"], row["seeds"]) == ("**87.12 %**", "3")


def test_recipes_of_one_run_both_have_a_row(output: Path, report: Path) -> None:
    write_run(output, "bilstm", 1, 0.875)
    first, second = rows(output, report)
    assert first["recipe"] == "`bilstm`"
    assert second["recipe"] == "`bilstm-packed` (is `bilstm`)"
    assert first["our test"] == second["our test"]
    assert second["source's result"] == get_recipe("bilstm-packed").source_result != first["source's result"]
    assert len(raw(report)) == 1


def test_baseline_stands_first(output: Path, report: Path) -> None:
    write_run(output, "lstm", 1)
    write_baseline(output, accuracy=0.90512)
    first, second = rows(output, report)
    assert (first["recipe"], first["our test"], first["seeds"]) == (f"`{BASELINE}`", "90.51 %", "–")
    assert (first["parameters"], first["s an epoch"], first["training rows/s"]) == ("413,881", "31 (all)", "749")
    assert second["recipe"] == "`lstm`"


def test_each_dataset_has_a_table(output: Path, report: Path) -> None:
    write_run(output, "rnn", 1, 0.51)
    write_run(output, "rnn", 1, 0.52, dataset="sentiment140")
    page = write_report(output, report).read_text()
    assert page.index("## IMDB") < page.index("**51.00 %") < page.index("## Sentiment140") < page.index("**52.00 %")
    assert "Rows: 20,000 train, 1,000 validation, 2,500 test (data 0123456789ab)." in page


def test_maximum_lengths(output: Path, report: Path) -> None:
    lengths = {"128": 0.81, "256": 0.85, "512": 0.87, "1024": 0.88}
    write_run(output, "lstm", 2, test_accuracy_by_max_length={"512": 0.7, "1024": 0.7})
    write_run(output, "lstm", 1, test_accuracy_by_max_length=lengths)
    write_run(output, "lstm", 3, test_accuracy_by_max_length={"512": 0.7})
    write_run(output, "bigru", 1, test_accuracy_by_max_length={"64": 0.7, "512": 0.89})
    write_run(output, "rnn", 1, test_accuracy_by_max_length={"512": 0.5})
    page = write_report(output, report).read_text()
    [_, table] = tables(page)
    assert table == [
        ["recipe", "64", "128", "256", "512", "1024"],
        ["`lstm`", "–", "81.00 %", "85.00 %", "**87.00 %**", "88.00 %"],
        ["`bigru`", "70.00 %", "–", "–", "**89.00 %**", "–"],
    ]


def test_each_machine_has_a_row_and_a_letter(output: Path, report: Path) -> None:
    write_run(output, "bigru", 1, 0.80)
    write_run(output, "bigru", 2, 0.90, machine=THERE)
    found = rows(output, report)
    assert {row["our test"]: row["seeds"] for row in found} == {"**80.00 %**": "1", "**90.00 %**": "2"}
    page = (report / "reproduction.md").read_text()
    versions = "python 3.11.7, torch 2.13.0, ray 2.60.0"
    letter = {row["our test"]: row["on"] for row in found}
    assert sorted(letter.values()) == ["A, bf16", "B, bf16"]
    assert f"{letter['**80.00 %**'][0]}: 2 cores of Xeon; {versions}" in page
    assert f"{letter['**90.00 %**'][0]}: 16 cores of Xeon, H200; {versions}" in page


@pytest.mark.parametrize("change", [{"vectors": "wide.txt"}, {"precision": "float32"}, {"data": "ba9876543210"}])
def test_runs_that_differ_in_more_than_the_seed_share_no_row(
    output: Path, report: Path, change: dict[str, Any]
) -> None:
    write_run(output, "bigru", 1, 0.80)
    write_run(output, "bigru", 2, 0.90, **change)
    assert {row["our test"]: row["seeds"] for row in rows(output, report)} == {"**80.00 %**": "1", "**90.00 %**": "2"}


def test_result_that_was_cut_short_is_passed_over(output: Path, report: Path) -> None:
    write_run(output, "bigru", 1, 0.80)
    write_run(output, "bigru", 2, 0.90)
    (output / "imdb/bigru/seed-2/result.json").write_text('{"dataset": "im')
    assert [row["seeds"] for row in rows(output, report)] == ["1"]


def test_what_is_written_by_hand_stays(output: Path, report: Path) -> None:
    write_run(output, "bigru", 1, 0.80)
    page = write_report(output, report)
    by_hand = f"\n## What we learnt\n\nCafé – below `{MARKER}` it stays.\n"
    page.write_text(page.read_text() + by_hand)
    write_run(output, "bigru", 2, 0.90)
    write_report(output, report)
    assert page.read_text().endswith(f"{MARKER}\n{by_hand}")
    assert "**85.00 ±" in page.read_text()
    before = page.read_text()
    assert write_report(output, report).read_text() == before


def test_figures_of_other_runs_are_kept(tmp_path: Path, report: Path) -> None:
    write_run(tmp_path / "first", "bigru", 1, 0.80)
    write_run(tmp_path / "first", "bigru", 2, 0.82)
    write_run(tmp_path / "first", "lstm", 1, 0.84)
    write_baseline(tmp_path / "first")
    write_report(tmp_path / "first", report)

    write_run(tmp_path / "second", "bigru", 2, 0.83)
    write_run(tmp_path / "second", "bigru", 3, 0.85)
    write_run(tmp_path / "second", "bigru", 2, 0.99, machine=THERE, dataset="sentiment140")
    found = {(row["recipe"], row["our test"]): row["seeds"] for row in rows(tmp_path / "second", report)}
    assert found == {
        (f"`{BASELINE}`", "90.00 %"): "–",
        ("`lstm`", "**84.00 %**"): "1",
        ("`bigru`", f"**82.67 ± {statistics.stdev([80, 83, 85]):.2f} %**"): "1, 2, 3",
        ("`bigru`", "**99.00 %**"): "2",
    }
    assert len(raw(report)) == 6


@pytest.mark.parametrize("change", [{"hidden_dim": 8}, {"learning_rate": 1.0}, {"dropout": None}, {"name": "gone"}])
def test_figures_of_settings_that_are_no_more_are_dropped(output: Path, report: Path, change: dict[str, Any]) -> None:
    """Whether they come from an earlier report or from a run that has not been done again."""
    kept = write_run(output, "lstm", 1)
    settings = settings_of("bigru", **change)
    write_run(output, "bigru", 1, recipe=settings["name"], identity={"data": DIGEST, "recipe": settings, "seed": 1})
    write_report(output, report)
    assert [run["recipe"] for run in raw(report)] == [kept["recipe"]]

    earlier = [{**kept, "recipe": settings["name"], "settings": settings}]
    (report / "reproduction.json").write_text(json.dumps({"runs": earlier}))
    write_report(output, report)
    assert [run["recipe"] for run in raw(report)] == [kept["recipe"]]


def test_figures_older_than_a_setting_count_as_made_with_its_default(output: Path, report: Path) -> None:
    for name in ("bigru", "tweets-glove"):  # which has another than the default
        settings = settings_of(name)
        del settings["vector_scale"]
        write_run(output, name, 1, identity={"data": DIGEST, "recipe": settings, "seed": 1})
    write_report(output, report)
    assert [run["recipe"] for run in raw(report)] == ["bigru"]


def test_other_vectors_are_no_reason_to_drop(output: Path, report: Path) -> None:
    settings = settings_of("bigru", vectors="mine.txt")
    write_run(output, "bigru", 1, identity={"data": DIGEST, "recipe": settings, "seed": 1})
    write_report(output, report)
    write_report(output / "elsewhere", report)
    assert [run["settings"]["vectors"] for run in raw(report)] == ["mine.txt"]


def test_what_is_published_names_no_place_and_no_digest(output: Path, report: Path) -> None:
    write_run(output, "bigru", 1)
    write_baseline(output)
    write_report(output, report)
    for file in report.iterdir():
        assert not re.search(rf"{DIGEST}|{DIGEST[::-1]}|{HOME}|{output}", file.read_text()), file
    run = next(run for run in raw(report) if run["recipe"] == "bigru")
    assert "identity" not in run
    assert run["settings"] == settings_of("bigru", vectors="glove.txt")
    assert {file.name for file in report.iterdir()} == {"reproduction.json", "reproduction.md"}


def test_nothing_finished_yet(output: Path, report: Path) -> None:
    assert rows(output, report) == []
    assert raw(report) == []
    assert "\nOn " not in (report / "reproduction.md").read_text()
