"""BERT-GRU on Ray: one run gives everything, features kept or not and workers one or two make no difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from job_runs import Prepared, actors_of, finished, kill, refusal, run_job, started, wait_for
from safetensors.torch import load_file

from jobs import evaluate, train_bert
from sentiment.predictor import Predictor

pytestmark = pytest.mark.usefixtures("ray_cluster")

FLAGS = (
    *("--max-length", 40, "--hidden-dim", 8, "--batch-size", 64, "--epochs", 2, "--learning-rate", 0.01),
    *("--precision", "float32", "--num-workers", 2, "--seed", 7, "--pooling", "max", "--dropout", 0),
)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for features that runs of this file share."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def trained(
    prepared: Prepared, tiny_encoder: Path, features: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Two epochs by two workers on features that are kept."""
    output = tmp_path_factory.mktemp("bert") / "run"
    return run_job(
        *(train_bert.JOB, "--data", prepared.folder, "--encoder", tiny_encoder, "--output", output, *FLAGS),
        *("--features", features),
    )


def history_of(result: dict[str, Any]) -> list[list[float]]:
    lines = (Path(result["output"]) / "metrics.jsonl").read_text().splitlines()
    return [[epoch["train_loss"], epoch["validation_loss"]] for epoch in map(json.loads, lines)]


def test_one_run_gives_everything(trained: dict[str, Any], prepared: Prepared, features: Path, tmp_path: Path) -> None:
    assert (trained["recipe"], trained["epochs"], trained["workers"], trained["features"]) == ("bert-gru", 2, 2, "kept")
    assert trained["test_rows"] == prepared.result["test"]
    losses = history_of(trained)
    assert losses[1][0] < losses[0][0] - 0.01
    assert len(list(features.glob("features-*/train/*.safetensors"))) >= 1
    # The checkpoint holds what is trained, and not the encoder.
    (checkpoint, *_) = sorted(Path(trained["output"]).glob("checkpoints/checkpoint_*"))
    assert {name.split(".")[0] for name in load_file(checkpoint / "model.safetensors")} == {"head"}
    # The bundle needs no encoder, and says of all test rows what training said.
    predictor = Predictor.load(trained["bundle"], precision="float32")
    assert predictor.predict(["i love this phone"])[0].label in ("POSITIVE", "NEGATIVE")
    measured = run_job(
        *(evaluate.JOB, "--model", trained["bundle"], "--input", prepared.folder / "test"),
        *("--output", tmp_path / "evaluated", "--precision", "float32", "--num-actors", 1),
    )
    assert measured["rows"] == trained["test_rows"]
    assert measured["accuracy"] == pytest.approx(trained["test_accuracy"], abs=1e-9)
    assert measured["loss"] == pytest.approx(trained["test_loss"], abs=1e-5)


def test_going_on_with_a_finished_run_gives_its_result_at_once(
    trained: dict[str, Any], prepared: Prepared, tiny_encoder: Path, features: Path
) -> None:
    output = Path(trained["output"])
    flags = ("--data", prepared.folder, "--encoder", tiny_encoder, "--output", output, *FLAGS, "--features", features)
    written = (output / "bundle/MANIFEST.json").stat().st_mtime_ns
    assert run_job(train_bert.JOB, *flags, "--resume") == trained
    assert (output / "bundle/MANIFEST.json").stat().st_mtime_ns == written
    assert "was made with another recipe" in refusal(train_bert.JOB, *flags, "--resume", "--dropout", 0.1)
    # Before the encoder is looked for.
    assert "holds a run: continue it with --resume" in refusal(train_bert.JOB, *flags, "--encoder", output / "nowhere")


def test_features_on_the_way_and_one_worker_train_the_same(
    trained: dict[str, Any], prepared: Prepared, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Float32 sums in another order, in two epochs of Adam. Passes of 500 tokens are several a step."""
    other = run_job(
        *(train_bert.JOB, "--data", prepared.folder, "--encoder", tiny_encoder, "--output", tmp_path / "run", *FLAGS),
        *("--cache-features", "never", "--pass-tokens", 500, "--num-workers", 1),
    )
    assert (other["features"], trained["features"]) == ("computed on the way", "kept")
    torch.testing.assert_close(history_of(other), history_of(trained), atol=1e-4, rtol=0)
    assert not (tmp_path / "run" / "features").exists()


@pytest.mark.chaos
def test_a_run_that_was_killed_while_encoding_and_while_training_goes_on(
    ray_cluster: str, trained: dict[str, Any], prepared: Prepared, tiny_encoder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = ("--data", prepared.folder, "--encoder", tiny_encoder, "--output", output, *FLAGS, "--checkpoint-steps", 5)
    with started("train_bert", *flags, address=ray_cluster) as process:
        wait_for("shards", lambda: list(output.glob("features/*/train/*.safetensors")), process)
        kill(process)
    with started("train_bert", *flags, "--resume", address=ray_cluster) as process:
        wait_for("a checkpoint", lambda: list(output.glob("checkpoints/checkpoint_*/state.json")), process)
        assert actors_of(process, "RayTrainWorker")
        kill(process)
    done = finished("train_bert", *flags, "--resume", address=ray_cluster)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(history_of(json.loads(done.stdout)), history_of(trained), atol=1e-5, rtol=0)
    assert not (output / "features").exists(), "nobody asked to keep them, and they take room"


def test_refusals(prepared: Prepared, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--data", prepared.folder, "--output", tmp_path / "run")
    assert "no such folder" in refusal(train_bert.JOB, *flags, "--encoder", tmp_path / "nowhere")
    assert "the encoder has 2 layers" in refusal(
        train_bert.JOB, *flags, "--encoder", tiny_encoder, "--unfreeze-layers", 5
    )
    assert "the encoder reads 64 tokens" in refusal(train_bert.JOB, *flags, "--encoder", tiny_encoder)
    assert "s3://bucket/f: a local or shared folder" in refusal(train_bert.JOB, *flags, "--features", "s3://bucket/f")
    assert "is in --output" in refusal(train_bert.JOB, *flags, "--features", tmp_path / "run/features")
    (tmp_path / "file").touch()
    assert "name another folder" in refusal(train_bert.JOB, *flags, "--features", tmp_path / "file/features")
    assert not (tmp_path / "run").exists()
    flags = (*flags, *FLAGS)
    assert "2 tokens stand around every text" in refusal(
        train_bert.JOB, *flags, "--encoder", tiny_encoder, "--max-length", 2
    )
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    line = refusal(train_bert.JOB, *flags, "--encoder", tiny_encoder, "--cache-features", "always")
    assert "--cache-features always: the features don't fit" in line
