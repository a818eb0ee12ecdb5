"""A recipe of another family than the default's: pretrained frozen vectors, a bag of words, two logits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from job_runs import REPOSITORY, Prepared, call_job, read_rows, refusal, run_job

from jobs import score, train_lstm
from sentiment.bundle import Bundle
from sentiment.observability.prometheus import EPOCHS, TrainingMeter
from sentiment.predictor import Predictor

pytestmark = pytest.mark.usefixtures("ray_cluster")

WIDTH = 6
# lovely and awful decide the corpus' JSON lines; their vectors say so, and the model has only to listen.
WORDS = {"lovely": 1.0, "awful": -1.0, "so": 0.0, "unheard-of": 0.5}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "small.txt"
    lines = (" ".join([word, *[str(value)] * WIDTH]) for word, value in WORDS.items())
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def trained(
    prepared: Prepared, vectors: Path, measured: list[dict[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, str]:
    """A bundle of glove-mlp and what the job said on stderr."""
    output = tmp_path_factory.mktemp("glove-mlp") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingMeter, "update", lambda meter, state: measured.append(state.measured))
        code, _, stderr = call_job(
            train_lstm.JOB,
            *("--data", prepared.folder, "--output", output, "--recipe", "glove-mlp", "--vectors", vectors),
            *("--epochs", 3, "--learning-rate", 0.01, "--num-workers", 1),
        )
    assert code == 0, stderr
    return Bundle.open(output / "bundle"), stderr


@pytest.fixture(scope="module")
def measured() -> list[dict[str, float]]:
    """What the meter of that training was told."""
    return []


def test_the_meter_is_told_each_epoch(trained: tuple[Bundle, str], measured: list[dict[str, float]]) -> None:
    lines = (trained[0].path.parent / "metrics.jsonl").read_text().splitlines()
    *_, last = [json.loads(line) for line in lines]
    assert measured[-1][EPOCHS] == last["epoch"] == 3
    assert {name: measured[-1][name] for name in last} == last


def test_coverage_is_told(trained: tuple[Bundle, str]) -> None:
    bundle, stderr = trained
    words = bundle.tokenizer().vocabulary_size
    assert f"small.txt: vectors for 3 of {words} words ({3 / words:.1%}), " in stderr
    assert "of all tokens" in stderr


def test_frozen_vectors_stay_as_they_were_read(trained: tuple[Bundle, str]) -> None:
    bundle, _ = trained
    table_VE = bundle.weights()["embedding.weight"]
    tokens = bundle.tokenizer().tokens
    assert table_VE.shape == (len(tokens), WIDTH)
    for token, vector_E in zip(tokens, table_VE, strict=True):
        assert torch.equal(vector_E, torch.full((WIDTH,), WORDS.get(token, 0.0))), token


def test_two_logits_end_in_the_same_output(trained: tuple[Bundle, str], tmp_path: Path) -> None:
    bundle, _ = trained
    assert bundle.weights()["fc.weight"].shape[0] == 2
    texts = ["so lovely", "so awful"]
    predictions = Predictor.load(bundle.path, precision="float32").predict(texts)
    assert [prediction.label for prediction in predictions] == ["POSITIVE", "NEGATIVE"]
    for prediction in predictions:
        assert prediction.score == pytest.approx(max(prediction.p_positive, 1 - prediction.p_positive))

    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    flags = ("--input", tmp_path / "texts.jsonl", "--output", tmp_path / "scored", "--num-actors", 1)
    run_job(score.JOB, "--model", bundle.path, "--precision", "float32", *flags)
    rows = {row["text"]: row for row in read_rows(tmp_path / "scored/scored").to_pylist()}
    for text, prediction in zip(texts, predictions, strict=True):
        assert rows[text]["p_positive"] == pytest.approx(prediction.p_positive, abs=1e-6)


def test_command_line_reads_the_bundle(trained: tuple[Bundle, str]) -> None:
    bundle, _ = trained
    done = subprocess.run(
        [sys.executable, "-m", "sentiment", "predict", "--model", str(bundle.path), "so lovely", "so awful"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["POSITIVE", "NEGATIVE"]


def test_what_can_not_be_trained_is_refused(prepared: Prepared, vectors: Path, tmp_path: Path) -> None:
    flags = ("--data", prepared.folder, "--output", tmp_path / "run")
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("wörter 1.0 2.0 3.0\nfremde 2.0 1.0 0.0\n")
    assert "know none of the words" in refusal(train_lstm.JOB, *flags, "--vectors", foreign)
    assert "glove.6B.50d" in refusal(train_lstm.JOB, *flags, "--vectors", "glove.6B.50")
    mlp = (*flags, "--recipe", "glove-mlp")
    assert "recipe glove-mlp" in refusal(train_lstm.JOB, *mlp, "--hidden-dim", 3)
    assert "--no-frozen-embedding" in refusal(train_lstm.JOB, *mlp, "--vectors", "none")
    assert "--subwords" in refusal(train_lstm.JOB, *mlp, "--vectors", vectors, "--subwords")
    assert not (tmp_path / "run").exists()
