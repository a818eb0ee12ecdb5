"""Evaluating: the figures are those of the rows it wrote, and training's own on training's test rows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_runs import MORE, TWEETS, Corpus, Prepared, Trained, call_job, read_rows, refusal, run_job

from jobs import evaluate

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class Evaluated:
    """Training's test rows with some unusable ones, evaluated."""

    output: Path
    result: dict[str, Any]
    table: str


@pytest.fixture(scope="module")
def evaluated(
    trained: Trained, prepared: Prepared, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Evaluated:
    inputs, output = tmp_path_factory.mktemp("labeled"), tmp_path_factory.mktemp("evaluated") / "out"
    places = read_rows(prepared.folder / "test").select(["source_file", "source_row"]).to_pylist()
    for name in (TWEETS, MORE):
        lines = (corpus.folder / name).read_bytes().split(b"\n")
        kept = [lines[row["source_row"]] for row in places if Path(row["source_file"]).name == name]
        if name == TWEETS:
            kept += [b'"2","1","Mon May 11 03:17:40 UTC 2009","q","someone","a neutral text"'] * 3
            kept += [b'"9","1","Mon May 11 03:17:40 UTC 2009","q","someone","a strange label"'] * 2
        else:
            kept += [b'{"text": "no label here"}', b'{"text": " ", "label": "positive"}']
        (inputs / name).write_bytes(b"".join(line + b"\n" for line in kept))
    code, stdout, stderr = call_job(
        evaluate.JOB,
        *("--model", trained.bundle, "--input", inputs, "--output", output),
        *("--precision", "float32", "--num-actors", 2),
    )
    assert code == 0, stderr
    return Evaluated(output, json.loads(stdout), stderr)


def test_figures_are_trainings_own(evaluated: Evaluated, trained: Trained) -> None:
    result, before = evaluated.result, trained.result
    assert {"rows", "accuracy", "loss", "macro_f1"} <= result.keys()
    assert result["rows"] == before["test_rows"]
    # Same weights, same float32, other batches: no row is so near to 0.5 that 1e-7 turns it over.
    assert result["accuracy"] == before["test_accuracy"]
    assert result["confusion"] == before["test_confusion"]
    assert result["macro_f1"] == pytest.approx(before["test_macro_f1"], abs=1e-12)
    assert result["loss"] == pytest.approx(before["test_loss"], abs=1e-5)
    assert result["model_id"] == before["model_id"]


def test_figures_follow_from_the_scored_rows(evaluated: Evaluated) -> None:
    rows = read_rows(evaluated.output / "scored")
    truth = rows["true_label"].to_numpy().astype(bool)
    p_positive = rows["p_positive"].to_numpy().astype(np.float64)
    says = p_positive >= 0.5
    cells = [[int((~truth & ~says).sum()), int((~truth & says).sum())]]
    cells += [[int((truth & ~says).sum()), int((truth & says).sum())]]
    (tn, fp), (fn, tp) = cells
    result = evaluated.result
    assert result["rows"] == len(truth)
    assert result["confusion"] == cells
    assert result["accuracy"] == pytest.approx((truth == says).mean())
    assert result["macro_f1"] == pytest.approx((2 * tn / (2 * tn + fp + fn) + 2 * tp / (2 * tp + fp + fn)) / 2)
    loss = -np.where(truth, np.log(p_positive), np.log1p(-p_positive)).mean()
    assert result["loss"] == pytest.approx(loss, abs=1e-5)


def test_rows_without_label_are_rejected(evaluated: Evaluated) -> None:
    reasons = Counter(reason[:17] for reason in read_rows(evaluated.output / "rejected")["reason"].to_pylist())
    assert reasons == {"neutral label": 3, "unknown label '9'": 2, "no label": 1, "no text": 1}
    assert evaluated.result["rows_rejected"] == reasons.total()


def test_report_is_written_and_shown(evaluated: Evaluated) -> None:
    report = json.loads((evaluated.output / "evaluation.json").read_text())
    shown = {name: value for name, value in evaluated.result.items() if name in report}
    assert {name: report[name] for name in shown} == shown
    assert {"rows", "accuracy", "loss", "macro_f1", "confusion"} <= shown.keys()
    assert f"accuracy {evaluated.result['accuracy']:.2%}" in evaluated.table
    assert str(evaluated.result["confusion"][0][0]) in evaluated.table
    assert "rejected rows: 7\n           3  neutral label\n" in evaluated.table


def test_nothing_to_evaluate_is_refused(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"text": "no such label", "label": "purple"}\n' * 3)
    flags = ("--model", trained.bundle, "--output", tmp_path / "out", "--num-actors", 1)
    message = refusal(evaluate.JOB, *flags, "--input", tmp_path / "odd.jsonl")
    assert "labels that aren't understood: 'purple' 3; accepted" in message
    (tmp_path / "same.jsonl").write_text('{"text": "only this label", "label": "positive"}\n' * 3)
    message = refusal(evaluate.JOB, *flags, "--input", tmp_path / "same.jsonl", "--overwrite")
    assert "all 3 evaluated rows are labeled POSITIVE" in message
    (tmp_path / "bare.jsonl").write_text('{"text": "no labels at all", "stars": 4}\n')
    message = refusal(evaluate.JOB, *flags, "--input", tmp_path / "bare.jsonl", "--overwrite")
    assert "--label-column" in message
    assert "'stars'" in message


def test_a_label_column_of_the_outputs_own_name(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a lovely day", "true_label": 1}\n{"text": "bad", "true_label": 0}\n')
    flags = ("--model", trained.bundle, "--output", tmp_path / "out", "--num-actors", 1)
    result = run_job(evaluate.JOB, *flags, "--input", tmp_path / "in.jsonl", "--label-column", "true_label")
    assert result["rows"] == 2
    assert sorted(read_rows(tmp_path / "out" / "scored")["true_label"].to_pylist()) == [0, 1]
