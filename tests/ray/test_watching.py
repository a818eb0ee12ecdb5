"""What Prometheus is offered of training and scoring: the true numbers, under the names that the dashboard asks for."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import httpx2 as httpx
import ray
from job_runs import RECIPE_FLAGS, Prepared, Trained, finished, run_job, wait_for
from prometheus_client.parser import text_string_to_metric_families

from jobs import train_lstm
from jobs.metrics import ScoringMeter
from sentiment.corpora.synthetic import write_archive

ROWS = 700
# Ray adds labels of its own, such as the process; what several processes have counted is added up.
OURS = ("run", "recipe", "split", "output", "reason")


def series(name: str, **labels: str) -> dict[tuple[str, ...], float]:
    """What the node's agent offers of a metric now: values by our labels beside those that are given."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                rest = (sample.labels[key] for key in OURS if key in sample.labels and key not in labels)
                found[tuple(rest)] += sample.value
    return dict(found)


def value(name: str, **labels: str) -> float | None:
    """Of a metric whose labels are all given."""
    return series(name, **labels).get(())


def test_training_shows_its_last_epoch(prepared: Prepared, tmp_path: Path) -> None:
    output = tmp_path / "model"
    run_job(train_lstm.JOB, "--data", prepared.folder, "--output", output, *RECIPE_FLAGS, "--epochs", 1)
    (epoch,) = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    run = {"run": f"{tmp_path.name}/model", "recipe": "tweets"}
    wait_for("its metrics", lambda: value("ray_sentiment_training_rows_per_second", **run))
    assert value("ray_sentiment_training_epochs", **run) == 1
    assert value("ray_sentiment_training_rows_per_second", **run) == epoch["rows_per_s"]
    for split in ("train", "validation"):
        assert value("ray_sentiment_training_loss", **run, split=split) == epoch[f"{split}_loss"]
        assert value("ray_sentiment_training_accuracy", **run, split=split) == epoch[f"{split}_accuracy"]


def test_scoring_counts_each_row_also_the_last(ray_cluster: str, trained: Trained, tmp_path: Path) -> None:
    archive = tmp_path / "archive.jsonl"
    write_archive(archive, ROWS, seed=31)
    output = tmp_path / "scored"
    # In a process of its own, which ends right behind the last row: it must not take its counts with it.
    done = finished(
        "score",
        *("--model", trained.bundle, "--input", archive, "--output", output, "--num-actors", 1, "--rows-per-file", 200),
        address=ray_cluster,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((output / "manifest.json").read_text())
    run = {"output": f"{tmp_path.name}/scored"}
    wait_for("its metrics", lambda: value("ray_sentiment_scoring_rows_total", **run))
    assert value("ray_sentiment_scoring_rows_total", **run) == manifest["rows_scored"] < ROWS
    assert value("ray_sentiment_scoring_input_bytes_total", **run) == archive.stat().st_size
    rejected = series("ray_sentiment_scoring_rejected_rows_total", **run)
    by_reason = {reason.replace("…", "#"): rows for reason, rows in manifest["rejected_by_reason"].items()}
    assert {reason: rows for (reason,), rows in rejected.items()} == by_reason
    assert sum(rejected.values()) == manifest["rows_rejected"] > 0


def test_rows_that_are_done_again_count_once(ray_cluster: str) -> None:
    # Ray takes labels in ASCII alone.
    meter = ScoringMeter("s3://key:secret@bucket/días", rows=100, stored_bytes=0)
    for rows in (100, 150, 120, 180):
        meter.reach(rows, stored_bytes=0)
    for number in range(40):
        meter.reject({f"reason {chr(65 + number)}: and more": 1})
    wait_for("its metrics", lambda: value("ray_sentiment_scoring_rows_total", output="bucket/d?as"))
    assert value("ray_sentiment_scoring_rows_total", output="bucket/d?as") == 80
    rejected = series("ray_sentiment_scoring_rejected_rows_total", output="bucket/d?as")
    assert len(rejected) == 31
    assert rejected["other",] == 10
    assert sum(rejected.values()) == 40
