"""Training on Ray: what comes out, and that no kill changes it.

That the number of workers doesn't either is shown in test_train_bert, and without Ray in test_training.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from job_runs import RECIPE_FLAGS, Prepared, Trained, actors_of, kill, refusal, run_job, started, wait_for
from recovery import Recoveries
from safetensors.torch import load_file

from jobs import train_lstm
from sentiment.bundle import Bundle
from sentiment.models.build import build_model, count_parameters
from sentiment.storage.lock import Lock
from sentiment.storage.output_directory import OutputDirectory

pytestmark = pytest.mark.usefixtures("ray_cluster")

EPOCHS = 4
# What a run ends with; times and rates differ from run to run.
FIGURES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "validation_macro_f1")
# A run that was stopped does the same float32 operations on the same numbers as one that wasn't: measured, 0. Left open
# is another choice of oneDNN's kernel (1e-7). Another dropout mask or row order gives 1e-2.
SAME_RUN = 1e-5


def figures_of(history: list[dict[str, Any]]) -> list[list[float]]:
    return [[epoch[name] for name in FIGURES] for epoch in history]


def history_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(output: Path, trained: Trained) -> None:
    """The run ended with the history, test figures and weights of the undisturbed one."""
    assert len(history_of(output)) == EPOCHS
    for found, expected in zip(figures_of(history_of(output)), figures_of(history_of(trained.output)), strict=True):
        assert found == pytest.approx(expected, abs=SAME_RUN)
    result = json.loads((output / "metrics.json").read_text())
    for name in ("best_epoch", "validation_loss", "test_loss", "test_accuracy"):
        assert result[name] == pytest.approx(trained.result[name], abs=SAME_RUN)
    weights, expected_weights = load_file(output / "bundle/model.safetensors"), Bundle.open(trained.bundle).weights()
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=SAME_RUN)


def snapshot(output: Path) -> dict[str, Any]:
    """The latest checkpoint that Ray Train knows of, or nothing."""
    file = next((output / "checkpoints").glob("checkpoint_manager_snapshot.json"), None)
    try:
        latest = json.loads(file.read_text())["latest_checkpoint_result"] if file else None
        name = latest["checkpoint_dir_name"] if latest else None
        state = json.loads((output / "checkpoints" / name / "state.json").read_text()) if name else {}
    except (OSError, ValueError):
        return {}  # Being written or being dropped: look again.
    assert isinstance(state, dict)
    return state


def flags_of(prepared: Prepared, output: Path) -> tuple[object, ...]:
    return ("--data", prepared.folder, "--output", output, *RECIPE_FLAGS)


def test_one_run_gives_everything(trained: Trained, prepared: Prepared) -> None:
    result, output = trained.result, trained.output
    assert {
        *("bundle", "recipe", "parameters", "epochs", "validation_accuracy", "test_accuracy", "rows_per_s"),
    } <= result.keys()
    assert (result["recipe"], result["epochs"], result["workers"]) == ("tweets", EPOCHS, 2)
    assert result["test_rows"] == prepared.result["test"]
    assert result["rows_per_s"] > 0
    assert all(isinstance(result[name], float) for name in ("validation_accuracy", "test_accuracy"))

    bundle = Bundle.open(result["bundle"])
    assert bundle.model_id == result["model_id"]
    assert count_parameters(build_model(bundle.config.model)) == result["parameters"]

    history = history_of(output)
    assert [epoch["epoch"] for epoch in history] == list(range(1, EPOCHS + 1))
    assert {*FIGURES, "train_s", "rows_per_s"} <= history[0].keys()
    best = min(history, key=lambda epoch: epoch["validation_loss"])
    assert (result["best_epoch"], result["validation_accuracy"]) == (best["epoch"], best["validation_accuracy"])
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["history"] == history
    assert metrics["test_accuracy"] == result["test_accuracy"]
    # It learns: the corpus gives half of the labels by chance.
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.02

    curve = (output / "curve.png").read_bytes()
    assert curve.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(curve[at : at + 4], "big") for at in (16, 20))
    assert width > 600
    assert height > 200


def test_best_and_last_checkpoints_are_kept(trained: Trained) -> None:
    folders = sorted((trained.output / "checkpoints").glob("checkpoint_*/"))
    states = [json.loads((folder / "state.json").read_text()) for folder in folders]
    assert {state["epoch"] for state in states} == {trained.result["best_epoch"], EPOCHS}
    assert snapshot(trained.output)["epoch"] == EPOCHS
    best = next(f for f, s in zip(folders, states, strict=True) if s["epoch"] == trained.result["best_epoch"])
    weights = load_file(best / "model.safetensors")
    bundled = Bundle.open(trained.bundle).weights()
    # The bundle's word vectors are the checkpoint's with their n-grams added.
    assert bundled.keys() - weights.keys() == {"embedding.weight"}
    assert weights.keys() - bundled.keys() == {"embedding.words.weight", "embedding.ngrams.weight"}
    for name in bundled.keys() & weights.keys():
        assert torch.equal(bundled[name], weights[name])
    torch.load(folders[-1] / "optimizer.pt", weights_only=True)


@pytest.mark.parametrize(
    ("flags", "asked", "has"),
    [
        (["--num-workers", 64], "64 CPUs and 0 GPUs", "4 CPUs and 0 GPUs"),
        (["--num-workers", 2, "--cpus-per-worker", 3], "6 CPUs and 0 GPUs", "4 CPUs and 0 GPUs"),
        (["--num-workers", 1, "--use-gpu"], "1 CPUs and 1 GPUs", "4 CPUs and 0 GPUs"),
    ],
)
def test_too_few_resources_are_refused_at_once(
    prepared: Prepared, tmp_path: Path, flags: list[object], asked: str, has: str
) -> None:
    message = refusal(train_lstm.JOB, *flags_of(prepared, tmp_path / "run"), *flags)
    assert asked in message
    assert has in message
    # Nothing was started, and the same command with fewer workers isn't refused for a folder in the way.
    assert not (tmp_path / "run" / "checkpoints").exists()


def killed_run(
    flags_to: Callable[[Path], tuple[object, ...]],
    folder: Path,
    address: str,
    is_time: Callable[[dict[str, Any]], bool],
) -> Path:
    """Start runs and kill each when it is time, until one of them is left in that state; gives its folder.

    A driver's workers live on for a moment, and may in that time reach the end of the epoch or of the run.
    """
    for attempt in range(4):
        output = folder / str(attempt)
        with started("train_lstm", *flags_to(output), address=address) as process:
            wait_for("time to kill", lambda output=output: is_time(snapshot(output)), process)
            kill(process)
        if is_time(snapshot(output)):
            return output
    raise AssertionError("each of four runs went on for too long after its driver was killed")


@pytest.mark.chaos
def test_killed_run_goes_on(
    ray_cluster: str, prepared: Prepared, trained: Trained, tmp_path: Path, recoveries: Recoveries
) -> None:
    def has_begun(state: dict[str, Any]) -> bool:
        return bool(state) and 1 <= state["epoch"] < EPOCHS

    output = killed_run(lambda output: flags_of(prepared, output), tmp_path, ray_cluster, has_begun)
    before, began = snapshot(output)["history"], time.monotonic()
    run_job(train_lstm.JOB, *flags_of(prepared, output), "--resume")
    rest_s = time.monotonic() - began
    # Not trained again: the time that an epoch took is a number that doesn't come twice.
    assert history_of(output)[: len(before)] == before
    assert_same_run(output, trained)
    recoveries.note(
        done="driver killed between epochs, then started again with `--resume`",
        to="training",
        finished=f"the {EPOCHS - len(before)} epochs that were left of {EPOCHS}",
        lost="nothing",
        recovered=f"{rest_s:.1f} s for all that was left, workers' start included",
        known="figures and weights equal those of a run that wasn't disturbed",
    )


def test_killed_epoch_goes_on_in_its_middle(
    ray_cluster: str, prepared: Prepared, trained: Trained, tmp_path: Path
) -> None:
    def flags_to(output: Path) -> tuple[object, ...]:
        return (*flags_of(prepared, output), "--checkpoint-steps", 4)

    def inside_later_epoch(state: dict[str, Any]) -> bool:
        return bool(state) and state["epoch"] >= 1 and state["step"] > 0

    output = killed_run(flags_to, tmp_path, ray_cluster, inside_later_epoch)
    left = snapshot(output)
    run_job(train_lstm.JOB, *flags_to(output), "--resume")
    history = history_of(output)
    assert history[: left["epoch"]] == left["history"]
    assert history[left["epoch"]]["train_s"] > left["elapsed_s"] > 0
    assert_same_run(output, trained)


@pytest.mark.chaos
def test_lost_worker_is_made_good(ray_cluster: str, prepared: Prepared, trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with started("train_lstm", *flags_of(prepared, output), address=ray_cluster) as process:
        wait_for("first epoch", lambda: (output / "metrics.jsonl").exists() and snapshot(output), process)
        workers = [actor for actor in actors_of(process, "RayTrainWorker") if actor["State"] == "ALIVE"]
        assert len(workers) == 2
        os.kill(workers[-1]["Pid"], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        assert len(actors_of(process, "RayTrainWorker")) == 4, "the run was over before its worker was killed"
    assert json.loads(stdout)["epochs"] == EPOCHS
    assert_same_run(output, trained)


@pytest.mark.parametrize(
    ("flags", "differing"), [(["--seed", 8], "seed"), (["--hidden-dim", 24], "recipe"), (["--epochs", 9], "recipe")]
)
def test_resume_with_other_settings_is_refused(
    prepared: Prepared, trained: Trained, flags: list[object], differing: str
) -> None:
    message = refusal(train_lstm.JOB, *flags_of(prepared, trained.output), *flags, "--resume")
    assert differing in message
    assert Bundle.open(trained.bundle).model_id == trained.result["model_id"]


def test_a_second_run_is_refused_while_the_first_is_at_it(prepared: Prepared, trained: Trained) -> None:
    with Lock(OutputDirectory(str(trained.output))):
        message = refusal(train_lstm.JOB, *flags_of(prepared, trained.output), "--overwrite")
    assert "another run is at" in message
    assert Bundle.open(trained.bundle).model_id == trained.result["model_id"]
    assert not (trained.output / "_run").exists()


def test_full_output_folder_is_refused(prepared: Prepared, trained: Trained) -> None:
    message = refusal(train_lstm.JOB, *flags_of(prepared, trained.output))
    assert "--resume" in message
    assert "--overwrite" in message


def test_finished_run_reports_again(prepared: Prepared, trained: Trained) -> None:
    metrics = (trained.output / "metrics.jsonl").read_text()
    result = run_job(train_lstm.JOB, *flags_of(prepared, trained.output), "--resume")
    differing = {name for name in result if result[name] != trained.result[name]}
    assert differing <= {"duration_s", "test_rows_per_s"}  # how long, not what
    assert (trained.output / "metrics.jsonl").read_text() == metrics


def test_loss_that_is_no_number_is_the_users_to_mend(prepared: Prepared, tmp_path: Path) -> None:
    flags = (*flags_of(prepared, tmp_path / "run"), "--num-workers", 1)
    assert "--learning-rate" in refusal(train_lstm.JOB, *flags, "--learning-rate", 1e38, "--clip-norm", 1e38)
