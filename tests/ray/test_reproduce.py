"""The job behind the table of results: all runs and a page, nothing twice, and no kill changes a figure."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from job_runs import Prepared, call_job, kill, only_line, refusal, run_job, started, wait_for

from jobs import reproduce
from sentiment.bundle import Bundle
from sentiment.data.prepared import PreparedData
from sentiment.training.recipes import get_recipe

pytestmark = pytest.mark.usefixtures("ray_cluster")

WIDTH, SEEDS = 50, (1, 2)
ALL = ("--recipes", "lstm", "glove-mlp", "--seeds", *SEEDS)
FIGURES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "validation_macro_f1")
# As in test_train: the same float32 operations on the same numbers. Another row order or dropout mask gives 1e-2.
SAME_RUN = 1e-5


@dataclass(frozen=True)
class Reproduced:
    """What `jobs/reproduce.py` made.

    Attributes:
        result: Its JSON.
        output: Folder of the runs.
        report: Folder of the page.
    """

    result: dict[str, Any]
    output: Path
    report: Path


def write_vectors(path: Path, prepared: Prepared, width: int = WIDTH, size: float = 1.0) -> Path:
    """Vectors for every second word of the corpus."""
    words = PreparedData(prepared.folder).tokenizer().tokens[2::2]
    matrix_WE = np.random.default_rng(5).standard_normal((len(words), width)).clip(-3, 3) * size
    lines = (" ".join([word, *(f"{value:.4g}" for value in row)]) for word, row in zip(words, matrix_WE, strict=True))
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def vectors(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("vectors") / "small.txt", prepared)


def flags_of(prepared: Prepared, vectors: Path, folder: Path, *more: object) -> tuple[object, ...]:
    return (
        *("--imdb", prepared.folder, "--sentiment140", prepared.folder, "--vectors", vectors),
        *("--max-lengths", 3, 1024, "--precision", "float32"),
        *("--output", folder / "runs", "--report", folder / "report", *more),
    )


@pytest.fixture(scope="module")
def reproduced(prepared: Prepared, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    """Two recipes on the data of theirs (here the same) with two seeds, and the baseline, undisturbed."""
    folder = tmp_path_factory.mktemp("reproduced")
    result = run_job(reproduce.JOB, *flags_of(prepared, vectors, folder, *ALL))
    return Reproduced(result, folder / "runs", folder / "report")


def result_of(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result


def figures_of(result: dict[str, Any]) -> list[list[float]]:
    """What a run ends with, but for times and rates."""
    ends = ("best_epoch", "validation_loss", "test_loss", "test_accuracy")
    return [*([epoch[name] for name in FIGURES] for epoch in result["history"]), [result[name] for name in ends]]


def table_rows(report: Path) -> dict[str, list[str]]:
    """Cells of the page's rows by recipe; of a recipe that stands in several tables, the last."""
    lines = (report / "reproduction.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0]: row[1:] for row in cells if len(row) > 5}


def test_every_run_is_there(reproduced: Reproduced, prepared: Prepared) -> None:
    assert (reproduced.result["runs_kept"], reproduced.result["runs_done"]) == (0, 6)
    runs = {str(path.parent.relative_to(reproduced.output)) for path in reproduced.output.rglob("result.json")}
    trained = {f"{place}/seed-{seed}" for place in ("imdb/lstm", "sentiment140/glove-mlp") for seed in SEEDS}
    assert runs == {"imdb/tf-idf", "sentiment140/tf-idf", *trained}
    for run in sorted(trained):
        result, name = result_of(reproduced.output / run), run.split("/")[1]
        recipe = get_recipe(name)
        assert (result["recipe"], result["vectors"]) == (name, "small.txt")
        assert [epoch["epoch"] for epoch in result["history"]] == list(range(1, recipe.epochs + 1))
        assert result["rows"]["test"] == result["test_rows"] == prepared.result["test"]
        # Half of the labels is right by chance.
        assert 0.45 < result["test_accuracy"] <= 1
        assert result["history"][-1]["train_loss"] < result["history"][0]["train_loss"] - 0.02
        assert 0.1 < result["token_coverage"] < 0.9
        assert (result["trainable_parameters"] < result["parameters"]) == recipe.frozen_embedding
        assert result["rows_per_s"] > 0 < result["test_rows_per_s"]
        bundle = Bundle.open(reproduced.output / run / "bundle")
        assert (bundle.config.recipe, bundle.config.model.embedding_dim) == (name, WIDTH)
        assert not list((reproduced.output / run).glob("*checkpoint*"))
    assert result_of(reproduced.output / "imdb/tf-idf")["test_accuracy"] > 0.6


def test_seeds_are_other_runs(reproduced: Reproduced) -> None:
    for place in ("imdb/lstm", "sentiment140/glove-mlp"):
        first, second = (result_of(reproduced.output / place / f"seed-{seed}") for seed in SEEDS)
        assert first["history"][0]["train_loss"] != second["history"][0]["train_loss"]


def test_lengths_are_measured_of_long_texts_and_the_first_seed(reproduced: Reproduced) -> None:
    def by_length(run: str) -> dict[str, float]:
        found: dict[str, float] = result_of(reproduced.output / run)["test_accuracy_by_max_length"]
        return found

    first = by_length("imdb/lstm/seed-1")
    assert list(first) == ["3", "512", "1024"]
    # No text here is that long; of three words little can be read.
    assert first["1024"] == first["512"] > first["3"]
    assert list(by_length("imdb/lstm/seed-2")) == ["512"]
    assert list(by_length("sentiment140/glove-mlp/seed-1")) == ["256"]


def test_report(reproduced: Reproduced) -> None:
    assert reproduced.result["report"] == str(reproduced.report / "reproduction.md")
    rows = table_rows(reproduced.report)
    assert rows.keys() == {"`tf-idf`", "`lstm`", "`glove-mlp`"}
    for name in ("lstm", "glove-mlp"):
        assert re.fullmatch(r"\*\*\d\d\.\d\d ± \d+\.\d\d %\*\*", rows[f"`{name}`"][1])
        assert rows[f"`{name}`"][3] == "1, 2"
    raw = json.loads((reproduced.report / "reproduction.json").read_text())["runs"]
    assert len(raw) == 6
    assert str(reproduced.output.parent) not in (reproduced.report / "reproduction.json").read_text()


def test_same_command_again_does_nothing(reproduced: Reproduced, prepared: Prepared, vectors: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in reproduced.output.rglob("*")}

    before, page = times(), (reproduced.report / "reproduction.md").read_text()
    result = run_job(reproduce.JOB, *flags_of(prepared, vectors, reproduced.output.parent, *ALL))
    assert (result["runs_kept"], result["runs_done"]) == (6, 0)
    assert times() == before
    assert (reproduced.report / "reproduction.md").read_text() == page


def progress_of(run: Path) -> dict[str, Any]:
    """What the last checkpoint of a run says of its progress, or nothing."""
    try:
        state = json.loads((sorted(run.glob("checkpoint-*"))[-1] / "state.json").read_text())
    except (OSError, ValueError, IndexError):
        return {}  # Not there yet, or just dropped for the next.
    assert isinstance(state, dict)
    return state


def task_pids() -> list[int]:
    """Processes of this session's Ray that do runs: another Ray may do the same on this machine."""
    raylet = ray._private.worker.global_worker.node.all_processes["raylet"][0].process.pid
    children = " ".join(file.read_text() for file in Path(f"/proc/{raylet}/task").glob("*/children")).split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().startswith("ray::run_plan")]


@pytest.mark.chaos
def test_killed_run_goes_on(
    ray_cluster: str, prepared: Prepared, vectors: Path, reproduced: Reproduced, tmp_path: Path
) -> None:
    """First its worker is killed, which Ray makes good, then everything at once."""
    flags = flags_of(prepared, vectors, tmp_path, "--recipes", "lstm", "--seeds", 1, "--no-baseline")
    run, epochs = tmp_path / "runs/imdb/lstm/seed-1", get_recipe("lstm").epochs
    with started("reproduce", *flags, address=ray_cluster) as process:
        wait_for("first epoch", lambda: progress_of(run), process)
        [worker] = task_pids()
        os.kill(worker, signal.SIGKILL)
        left_by_worker = progress_of(run)["history"]
        wait_for("another epoch", lambda: len(progress_of(run).get("history", ())) > len(left_by_worker), process)
        [worker] = task_pids()
        process.send_signal(signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        kill(process)
    left = progress_of(run)["history"]
    assert 1 <= len(left_by_worker) < len(left) < epochs, "the run was over before it was killed"
    assert not (run / "result.json").exists()
    # Not trained again: the time that an epoch took is a number that doesn't come twice.
    assert left[: len(left_by_worker)] == left_by_worker

    result = run_job(reproduce.JOB, *flags)
    assert (result["runs_kept"], result["runs_done"]) == (0, 1)
    found, undisturbed = result_of(run), result_of(reproduced.output / "imdb/lstm/seed-1")
    assert found["history"][: len(left)] == left
    for line, expected in zip(figures_of(found), figures_of(undisturbed), strict=True):
        assert line == pytest.approx(expected, abs=SAME_RUN)
    assert found["test_accuracy_by_max_length"] == undisturbed["test_accuracy_by_max_length"]
    assert not list(run.glob("*checkpoint*"))


def test_one_failing_run_leaves_the_others(prepared: Prepared, tmp_path: Path) -> None:
    vectors = write_vectors(tmp_path / "huge.txt", prepared, size=1e38)
    flags = (
        *("--sentiment140", prepared.folder, "--datasets", "all", "--recipes", "glove-mlp", "rnn-fixed"),
        *("--seeds", 1, "--no-baseline", "--output", tmp_path / "runs", "--report", tmp_path / "report"),
    )
    code, stdout, stderr = call_job(reproduce.JOB, *flags, "--vectors", vectors)
    assert (code, stdout) == (2, ""), stderr
    last = stderr.splitlines()[-1]
    assert last.startswith(f"reproduce: 1 of 2 runs failed, the others are in {tmp_path}/report/reproduction.md: ")
    assert "sentiment140 glove-mlp seed 1: the loss is no longer finite in epoch 1" in last
    assert "Traceback" not in stderr
    assert table_rows(tmp_path / "report").keys() == {"`rnn-fixed`"}

    # With better vectors, the failed one alone.
    better = write_vectors(tmp_path / "better.txt", prepared)
    result = run_job(reproduce.JOB, *flags, "--vectors", better)
    assert (result["runs_kept"], result["runs_done"]) == (1, 1)
    assert table_rows(tmp_path / "report").keys() == {"`rnn-fixed`", "`glove-mlp`"}

    # And again, after a crash of the machine that left an empty file.
    run = tmp_path / "runs/sentiment140/glove-mlp/seed-1"
    before = result_of(run)
    (run / "result.json").unlink()
    (run / "checkpoint-0003").mkdir()
    (run / "checkpoint-0003/state.json").touch()
    code, _, stderr = call_job(reproduce.JOB, *flags, "--vectors", better)
    assert code == 0, stderr
    assert "sentiment140 glove-mlp seed 1: checkpoint-0003 is damaged and was dropped" in stderr
    assert np.allclose(figures_of(result_of(run))[-1], figures_of(before)[-1], rtol=0, atol=SAME_RUN)


def test_vectors_that_do_not_fit_are_refused_at_once(prepared: Prepared, tmp_path: Path) -> None:
    vectors = tmp_path / "foreign.txt"
    vectors.write_text("fremde 1.0 2.0 3.0\nwörter 2.0 1.0 0.0\n")
    message = refusal(
        reproduce.JOB,
        *("--imdb", prepared.folder, "--recipes", "rnn", "reviews", "--vectors", vectors),
        *("--output", tmp_path / "runs", "--report", tmp_path / "report"),
    )
    assert "nothing was run: imdb reviews seed 1: vectors " in only_line(message)
    assert "know none of the words" in message
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "report").exists()
