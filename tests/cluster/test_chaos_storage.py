"""A store that fails one write in ten: prepare → train → score all end well, with everything there."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from job_runs import RECIPE_FLAGS, finished
from ray.cluster_utils import Cluster
from recovery import Recoveries

from sentiment.data.synthetic import write_sentiment140

pytestmark = pytest.mark.chaos
ROWS = 4_000


def failures(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_store_that_fails_one_write_in_ten(
    nodes: Cluster, flaky_store: Path, tmp_path: Path, recoveries: Recoveries
) -> None:
    write_sentiment140(tmp_path / "tweets.csv", ROWS, seed=3)
    store = f"flaky://{tmp_path}"
    said: dict[str, dict[str, object]] = {}
    commands: dict[str, tuple[object, ...]] = {
        "prepare": ("--input", tmp_path / "tweets.csv", "--output", f"{store}/data", "--rows-per-file", 200),
        "train_lstm": ("--data", f"{store}/data", "--output", f"{store}/run", *RECIPE_FLAGS, "--max-failures", 0),
        "score": (
            *("--model", f"{store}/run/bundle", "--input", tmp_path / "tweets.csv", "--output", f"{store}/scored"),
            *("--rows-per-file", 100, "--batch-rows", 100),
        ),
    }
    for job, flags in commands.items():
        before = failures(flaky_store)
        done = finished(job, *flags, address=nodes.address)
        assert done.returncode == 0, done.stderr
        said[job] = {**json.loads(done.stdout), "failures": failures(flaky_store) - before}
    assert failures(flaky_store) >= 5, "hardly any write failed"
    prepared, trained, scored = said.values()
    for split in ("train", "validation", "test"):
        assert count_rows(tmp_path / "data" / split) == prepared[split]
    assert trained["epochs"] == 4
    assert count_rows(tmp_path / "scored" / "scored") == scored["rows_scored"] == ROWS
    assert not [path for path in tmp_path.rglob(".*") if path.name.startswith((".part", ".metrics"))], "left over"
    counts = ", ".join(f"{job} {one['failures']}" for job, one in said.items())
    recoveries.note(
        done="store that fails one write in ten (half before, half in the middle of it)",
        to="prepare → train → score",
        finished=f"all of them; writes that failed: {counts}",
        lost="nothing",
        recovered="at once: a write is tried six times within six seconds",
        known="rows of every split and of the output; a bundle whose checksums hold",
    )


def count_rows(folder: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))
