"""Scoring goes on after whatever was killed: the same rows, each once, with the same scores, and true totals."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from job_runs import finished, read_rows, started, wait_for
from ray.cluster_utils import Cluster
from recovery import Recoveries, second_node, seconds_until_more

from sentiment.data.synthetic import tweets

ROWS = 3_000
SCORING = f"scoring {ROWS:,} rows in 30 shards"
FLAGS = ("--precision", "float32", "--rows-per-file", 100, "--batch-rows", 100)
NO_TEXT_EVERY = 500


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long texts in two files, JSON lines and gzipped csv, so that there is time to kill something; some are empty."""
    folder = tmp_path_factory.mktemp("archive")
    texts = [tweet.text for tweet in tweets(200, seed=25)]
    lines = []
    for number in range(ROWS):
        text = " ".join(texts[(number * 7 + step) % len(texts)] for step in range(12))
        lines.append(json.dumps({"number": number, "text": "" if number % NO_TEXT_EVERY == 0 else text}) + "\n")
    (folder / "a.jsonl").write_text("".join(lines[: ROWS // 2]))
    (folder / "b.jsonl").write_text("".join(lines[ROWS // 2 :]))
    return folder


@pytest.fixture(scope="module")
def undisturbed(nodes: Cluster, bundle: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What comes of it if nothing is killed."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    done = finished("score", *command(bundle, archive, output), address=nodes.address)
    assert done.returncode == 0, done.stderr
    return check(output)


def command(bundle: Path, archive: Path, output: Path) -> tuple[object, ...]:
    return ("--model", bundle, "--input", archive, "--output", output, *FLAGS)


def reports(output: Path) -> list[Path]:
    return list((output / "_run" / "done").glob("*.json"))


def holder(output: Path) -> int | None:
    """Process that holds the output's lock."""
    lock = output / "_run" / "lock.json"
    return json.loads(lock.read_text())["pid"] if lock.exists() else None


def check(output: Path) -> pa.Table:
    """Each row is there once, the totals are true; gives the scored rows in order."""
    scored, rejected = read_rows(output / "scored"), read_rows(output / "rejected")
    assert sorted(scored["number"].to_pylist()) == [n for n in range(ROWS) if n % NO_TEXT_EVERY]
    assert rejected.num_rows == ROWS // NO_TEXT_EVERY
    assert len(set(zip(rejected["source_file"].to_pylist(), rejected["source_row"].to_pylist(), strict=True))) == 6
    manifest = json.loads((output / "manifest.json").read_text())
    assert (output / "_SUCCESS").exists()
    assert (manifest["rows_in"], manifest["rows_scored"]) == (ROWS, scored.num_rows)
    assert [line["rows"] for line in manifest["inputs"]] == [ROWS // 2, ROWS // 2]
    counted = {line["values"]: line["counts"] for line in pc.value_counts(scored["label"]).to_pylist()}
    assert {label: said["rows"] for label, said in manifest["labels"].items() if said["rows"]} == counted
    assert not list(output.rglob(".*")), "left over"
    return scored.sort_by("number")


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    assert found.select(["number", "label"]).equals(expected.select(["number", "label"]))
    # Shards and slices are the same whoever scores them, so not even the last bit may differ.
    assert found["p_positive"].equals(expected["p_positive"])


def kill_driver(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def scorers(cluster: Cluster) -> list[psutil.Process]:
    """The model actors of a cluster of this machine."""
    found = []
    for node in cluster.list_all_nodes():
        for info in node.all_processes["raylet"]:
            for process in psutil.Process(info.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "ray::MapWorker" in " ".join(process.cmdline()):
                        found.append(process)
    return found


@pytest.mark.chaos
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param((3,), marks=pytest.mark.always, id="once"),
        # The first of them before anything is done.
        pytest.param((0, *random.Random(5).choices(range(1, 12), k=2)), id="three times"),
    ],
)
def test_killed_driver(
    moments: tuple[int, ...],
    nodes: Cluster,
    bundle: Path,
    archive: Path,
    undisturbed: pa.Table,
    tmp_path: Path,
    recoveries: Recoveries,
) -> None:
    output, flags = tmp_path / "out", command(bundle, archive, tmp_path / "out")
    for more in moments:
        enough = len(reports(output)) + more
        with started("score", *flags, address=nodes.address) as process:
            wait_for("a start", lambda: holder(output) == process.pid, process)
            wait_for("reports", lambda least=enough: len(reports(output)) >= least, process)
            kill_driver(process)
        assert not (output / "_SUCCESS").exists()
    before_restart = len(reports(output))
    with started("score", *flags, address=nodes.address) as process:
        recovered_s = seconds_until_more("report", lambda: len(reports(output)), before_restart, process)
        done = subprocess.CompletedProcess(process.args, 0, *process.communicate(timeout=240))
    assert process.returncode == 0, done.stderr
    assert "resuming: " in done.stderr
    assert json.loads((output / "manifest.json").read_text())["attempts"] >= len(moments)
    assert_same(check(output), undisturbed)
    recoveries.note(
        done=f"driver killed {len(moments)} times, then started again",
        to=SCORING,
        finished="all shards; those that were done weren't scored again",
        lost="nothing",
        recovered=f"{recovered_s:.1f} s from the last start to the next finished shard",
        known="every row once, scores equal to the last bit, true totals",
    )


@pytest.mark.chaos
def test_lost_node(
    nodes: Cluster, bundle: Path, archive: Path, undisturbed: pa.Table, tmp_path: Path, recoveries: Recoveries
) -> None:
    output = tmp_path / "out"
    with (
        second_node(nodes) as lost,
        started("score", *command(bundle, archive, output), address=nodes.address) as process,
    ):
        wait_for("reports", lambda: len(reports(output)) >= 3, process)
        nodes.remove_node(lost, allow_graceful=False)
        recovered_s = seconds_until_more("report", lambda: len(reports(output)), len(reports(output)), process)
        stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["rows_in"] == ROWS
    assert "workers were lost: continuing with 2 model actors" in stderr
    assert_same(check(output), undisturbed)
    recoveries.note(
        done="node with two of four model actors killed",
        to=SCORING,
        finished="all shards, with the actors that were left",
        lost="nothing",
        recovered=f"{recovered_s:.1f} s until the next finished shard",
        known="every row once, scores equal to the last bit, true totals",
    )


@pytest.mark.chaos
def test_second_run_is_refused_while_the_first_is_at_it(
    nodes: Cluster, bundle: Path, archive: Path, tmp_path: Path
) -> None:
    output, flags = tmp_path / "out", command(bundle, archive, tmp_path / "out")
    with started("score", *flags, address=nodes.address) as process:
        wait_for("a start", lambda: holder(output) == process.pid, process)
        second = finished("score", *flags, address=nodes.address)
        assert process.poll() is None, "the first ended too soon"
        assert second.returncode == 2
        assert f"another run is at {output} (process {process.pid} on" in second.stderr
        kill_driver(process)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_soak(nodes: Cluster, bundle: Path, archive: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    """Something is killed every few seconds until all is done: the driver, a model actor or a node."""
    output, flags = tmp_path / "out", command(bundle, archive, tmp_path / "out")
    chance, kills = random.Random(11), dict[str, int]()
    done: subprocess.CompletedProcess[Any] | None = None
    node = None
    while done is None:
        node = node or nodes.add_node(num_cpus=2, object_store_memory=200 << 20)
        with started("score", *flags, address=nodes.address) as process:
            until = time.monotonic() + chance.uniform(10, 20)
            while time.monotonic() < until and process.poll() is None:
                time.sleep(chance.uniform(2, 6))
                for actor in chance.sample(scorers(nodes), k=min(1, len(scorers(nodes)))):
                    with contextlib.suppress(psutil.Error):
                        os.kill(actor.pid, signal.SIGKILL)
                        kills["actor"] = kills.get("actor", 0) + 1
                if chance.random() < 0.2 and node is not None:
                    nodes.remove_node(node, allow_graceful=False)
                    node, kills["node"] = None, kills.get("node", 0) + 1
            if process.poll() is None:
                kill_driver(process)
                kills["driver"] = kills.get("driver", 0) + 1
            else:
                stdout, stderr = process.communicate()
                assert process.returncode == 0, stderr
                done = subprocess.CompletedProcess(process.args, 0, stdout, stderr)
    if node is not None:
        nodes.remove_node(node, allow_graceful=False)
    print(f"killed: {kills}")
    assert kills["driver"] and kills["actor"]
    assert_same(check(output), undisturbed)
