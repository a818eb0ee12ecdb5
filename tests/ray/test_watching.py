"""What Prometheus is offered of training and scoring: the true numbers, under the names that the dashboard asks for.

Of a whole job in test_jobs_contract.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable

import httpx2 as httpx
import ray
from job_runs import wait_for
from prometheus_client.parser import text_string_to_metric_families

from sentiment.observability.progress import ProgressState
from sentiment.observability.prometheus import EPOCHS, ScoringMeter, TrainingMeter

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


def comes_to(look: Callable[[], object], expected: object) -> None:
    """Wait for the very values: the agent offers each when it comes, a counter's first parts before its last."""
    with contextlib.suppress(AssertionError):
        wait_for("its metrics", lambda: look() == expected)
    assert look() == expected


def test_training_shows_its_last_epoch(ray_cluster: str) -> None:
    """While it runs: Ray forgets a gauge that isn't set any more. What is told, test_recipes looks at."""
    figures = {"train_loss": 0.4, "train_accuracy": 0.8, "validation_loss": 0.5, "validation_accuracy": 0.75}
    state = ProgressState(measured={**figures, EPOCHS: 2.5, "rows_per_s": 1000.0})
    meter = TrainingMeter("/somewhere/runs/model", "tweets")
    run = {"run": "runs/model", "recipe": "tweets"}

    def shown(name: str) -> dict[tuple[str, ...], float]:
        meter.update(state)
        return series(f"ray_sentiment_training_{name}", **run)

    comes_to(lambda: shown("epochs"), {(): 2.5})
    comes_to(lambda: shown("rows_per_second"), {(): 1000.0})
    for name in ("loss", "accuracy"):
        expected = {(split,): figures[f"{split}_{name}"] for split in ("train", "validation")}
        comes_to(lambda name=name: shown(name), expected)


def test_rows_that_are_done_again_count_once(ray_cluster: str) -> None:
    # Ray takes labels in ASCII alone.
    meter = ScoringMeter("s3://key:secret@bucket/días", rows=100, stored_bytes=0)
    for rows in (100, 150, 120, 180):
        meter.reach(rows, stored_bytes=0)
    for number in range(40):
        meter.reject({f"reason {chr(65 + number)}: and more": 1})
    comes_to(lambda: value("ray_sentiment_scoring_rows_total", output="bucket/d?as"), 80)

    def rejected() -> tuple[int, float | None, float]:
        """Kinds of reasons, rows of other kinds, rows."""
        found = series("ray_sentiment_scoring_rejected_rows_total", output="bucket/d?as")
        return len(found), found.get(("other",)), sum(found.values())

    comes_to(rejected, (31, 10, 40))
