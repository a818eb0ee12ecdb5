"""The Grafana dashboard asks for metrics and labels that exist, and shows all of ours."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ray.util.metrics import Counter, Gauge, Histogram, Metric

from sentiment.observability.prometheus import ScoringMeter, TrainingMeter
from serve_app.app import RayMetrics

DASHBOARD = json.loads((Path(__file__).parents[2] / "cluster/grafana/sentiment.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = [target["expr"] for target in TARGETS]
# How a metric is called at a node's agent (tests/ray/test_watching.py asks one).
SUFFIXES = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket", "_sum", "_count")}
# Ray Serve's own that the dashboard uses too.
THEIRS = {"ray_serve_deployment_replica_healthy": {"application", "deployment"}}
_NAME, _LABEL = re.compile(r"\bray_\w+"), re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")


def defined() -> list[Metric]:
    """Every metric that our meters have."""
    meters: list[Any] = [RayMetrics(), TrainingMeter("runs/a", "tweets"), ScoringMeter("runs/b", 0, 0)]
    return [metric for meter in meters for metric in vars(meter).values() if isinstance(metric, Metric)]


def exported(metric: Metric) -> set[str]:
    """The names that a metric has in Prometheus."""
    return {f"ray_{metric.info['name']}{suffix}" for suffix in SUFFIXES[type(metric)]}


def labels_by_name() -> dict[str, set[str]]:
    """The labels of everything that may be asked for."""
    known = dict(THEIRS)
    for metric in defined():
        labels = {*metric.info["tag_keys"]}
        known |= {name: labels | ({"le"} if name.endswith("_bucket") else set()) for name in exported(metric)}
    return known


def kept_labels(expression: str) -> set[str]:
    """Those that stand behind `by`."""
    return {label.strip() for group in re.findall(r"\bby\s*\(([^)]*)\)", expression) for label in group.split(",")}


def mistakes(expression: str) -> list[str]:
    """What an expression asks for that doesn't exist."""
    known, names = labels_by_name(), _NAME.findall(expression)
    if not names:
        return [f"no metric in {expression}"]
    unknown = [f"no metric {name}" for name in names if name not in known]
    offered = set[str]().union(*(known.get(name, set()) for name in names))
    asked = {*_LABEL.findall(expression), *kept_labels(expression)}
    # label_values(metric, label), of a variable.
    asked.update(re.findall(r"^label_values\(.*,\s*(\w+)\)$", expression))
    return unknown + [f"no label {label} in {expression}" for label in sorted(asked - offered)]


@pytest.mark.parametrize("expression", [*EXPRESSIONS, *QUERIES])
def test_what_is_asked_for_exists(expression: str) -> None:
    assert mistakes(expression) == []


def test_the_check_sees_mistakes() -> None:
    right = 'sum by (route) (rate(ray_sentiment_requests_total{status="200"}[1m]))'
    assert mistakes(right) == []
    assert mistakes(right.replace("_total", "")) == ["no metric ray_sentiment_requests", *mistakes_of_labels(right)]
    assert mistakes(right.replace("by (route)", "by (le)")) != []
    assert mistakes(right.replace("status=", "state=")) != []
    assert mistakes("label_values(ray_sentiment_training_epochs, output)") != []
    assert mistakes("up") != []


def mistakes_of_labels(expression: str) -> list[str]:
    """Of an unknown metric no label is known either."""
    wrong = expression.replace("_total", "")
    return [f"no label {label} in {wrong}" for label in ("route", "status")]


def test_every_metric_is_shown() -> None:
    shown = {name for expression in EXPRESSIONS for name in _NAME.findall(expression)}
    assert [metric.info["name"] for metric in defined() if not exported(metric) & shown] == []


def test_ray_itself_asks_for_the_metrics_of_ray() -> None:
    """In the dashboards that it brings: another version may rename them."""
    spec = find_spec("ray.dashboard")
    assert spec is not None
    assert spec.submodule_search_locations
    panels = Path(spec.submodule_search_locations[0]) / "modules/metrics/dashboards/serve_dashboard_panels.py"
    lines = [line for line in panels.read_text().splitlines() for name in THEIRS if name in line]
    assert any(kept_labels(line) == labels for line in lines for labels in THEIRS.values())


def test_legends_name_labels_that_are_there() -> None:
    for target in TARGETS:
        assert {*re.findall(r"{{(\w+)}}", target["legendFormat"])} <= kept_labels(target["expr"]), target


def test_it_can_be_imported() -> None:
    """No ids of a Grafana that it was drawn on, a data source that can be chosen, panels beside each other."""
    assert "id" not in DASHBOARD
    assert {"datasource"} == {
        variable["name"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "datasource"
    }
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in PANELS)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    covered = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(covered) == len(set(covered))
    assert max(x for x, _ in covered) < 24
    used = set(re.findall(r"\$(\w+)", " ".join(EXPRESSIONS)))
    assert used == {"__rate_interval", "__range", "output", "run"}
