"""Training goes on by itself when a node is lost in the middle of an epoch, and when one comes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from job_runs import finished, started, wait_for
from ray.cluster_utils import Cluster
from recovery import Recoveries, second_node, seconds_until_more

from sentiment.data.synthetic import write_sentiment140

pytestmark = pytest.mark.chaos
EPOCHS = 3
# Without dropout, whose masks are drawn for each rank, only the order of sums depends on the number of workers.
RECIPE = (
    *("--embedding-dim", 32, "--hidden-dim", 48, "--num-layers", 1, "--batch-size", 64, "--epochs", EPOCHS),
    *("--dropout", 0, "--word-dropout", 0, "--precision", "float32", "--seed", 7, "--checkpoint-steps", 10),
)


@pytest.fixture(scope="module")
def data(nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared tweets."""
    folder = tmp_path_factory.mktemp("data")
    write_sentiment140(folder / "tweets.csv", 6_000, seed=3)
    done = finished("prepare", "--input", folder / "tweets.csv", "--output", folder / "prepared", address=nodes.address)
    assert done.returncode == 0, done.stderr
    return folder / "prepared"


def command(data: Path, output: Path, workers: str) -> tuple[object, ...]:
    # Two CPUs for a worker: the head has room for one, so the second is on the node that tests add.
    return ("--data", data, "--output", output, "--num-workers", workers, "--cpus-per-worker", 2, *RECIPE)


def history(output: Path) -> list[dict[str, Any]]:
    lines = output / "metrics.jsonl"
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def checkpoint(output: Path) -> tuple[int, int]:
    """Epoch and step of the latest whole checkpoint."""
    states = (output / "checkpoints").glob("checkpoint_*/state.json")
    found = [(state["epoch"], state["step"]) for state in map(read, states) if state]
    return max(found, default=(0, 0))


def in_the_middle(at: tuple[int, int]) -> bool:
    return at[0] >= 1 and at[1] > 0


def read(path: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):  # half written, or replaced just now
        return None
    return state


def test_node_lost_in_the_middle_of_an_epoch(
    nodes: Cluster, data: Path, tmp_path: Path, recoveries: Recoveries
) -> None:
    alone = finished("train_lstm", *command(data, tmp_path / "alone", "1"), address=nodes.address)
    assert alone.returncode == 0, alone.stderr
    output = tmp_path / "run"
    with (
        second_node(nodes) as lost,
        started("train_lstm", *command(data, output, "1-2"), address=nodes.address) as process,
    ):
        wait_for("the middle of the second epoch", lambda: in_the_middle(checkpoint(output)), process)
        nodes.remove_node(lost, allow_graceful=False)
        recovered_s = seconds_until_more("checkpoint", lambda: checkpoint(output), checkpoint(output), process)
        stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    result = json.loads(stdout)
    assert (result["epochs"], result["workers"]) == (EPOCHS, 1)
    # The global batch and the learning rate are those of one worker all along, so the run is that of one worker too.
    distance = 0.0
    for one, other in zip(history(output), history(tmp_path / "alone"), strict=True):
        for name in ("train_loss", "validation_loss"):
            distance = max(distance, abs(one[name] - other[name]))
    assert distance < 1e-4
    recoveries.note(
        done="node with one of two workers killed in the middle of an epoch",
        to="training (`--num-workers 1-2`)",
        finished="all epochs, with the worker that was left",
        lost="nothing",
        recovered=f"{recovered_s:.1f} s until the next checkpoint",
        known=f"losses within {distance:.0e} of a run that wasn't disturbed",
    )


def test_a_node_that_comes_is_used(nodes: Cluster, data: Path, tmp_path: Path, recoveries: Recoveries) -> None:
    output = tmp_path / "run"
    endless = (*command(data, output, "1-2"), "--epochs", 10_000)
    with started("train_lstm", *endless, address=nodes.address) as process:
        wait_for("an epoch of one worker", lambda: checkpoint(output) >= (1, 0), process)
        with second_node(nodes) as came:
            joined_s = seconds_until_more("worker", lambda: workers_on(nodes, came.node_id), 0, process)
            seconds_until_more("checkpoint of two", lambda: checkpoint(output), checkpoint(output), process)
            # As Ctrl-C would.
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    epochs = [line["epoch"] for line in history(output)]
    assert epochs == list(range(1, len(epochs) + 1))
    recoveries.note(
        done="node added",
        to="training (`--num-workers 1-2`)",
        finished="it goes on from the last checkpoint with two workers",
        lost="nothing",
        recovered=f"{joined_s:.0f} s until a worker was on it: once a minute it is looked",
        known="checkpoints that follow; every epoch is there once",
    )


def workers_on(nodes: Cluster, node_id: str) -> int:
    """Training workers on a node: one takes both of its CPUs."""
    free = nodes.global_state.available_resources_per_node().get(node_id, {"CPU": 2})
    return int(free.get("CPU", 0) == 0)
