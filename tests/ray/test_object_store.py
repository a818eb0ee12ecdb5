"""Everything in a bucket: prepare → train → score → evaluate against a real S3 server, nothing on a local disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pytest
from job_runs import RECIPE_FLAGS, Corpus, Trained, refusal, run_job, started, wait_for

from jobs import evaluate, prepare, score, train_bert, train_lstm
from sentiment.bundle import Bundle
from sentiment.data.listing import list_inputs
from sentiment.predictor import Predictor
from sentiment.storage.filesystems import resolve

BUCKET = "s3://archive"


@pytest.fixture(scope="module")
def bucket(s3_port: int) -> Iterator[pafs.FileSystem]:
    """An S3 server on this machine with a bucket; jobs find it by the environment, as they find anybody's."""
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)]
    with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            store, _ = pafs.FileSystem.from_uri(f"{BUCKET}?region=us-east-1&allow_bucket_creation=true")

            def made() -> bool:
                try:
                    store.create_dir("archive")
                except OSError:
                    return False
                return True

            wait_for("a bucket", made)
            yield store
        finally:
            process.kill()


@pytest.fixture(scope="module")
def trained_there(ray_cluster: str, corpus: Corpus, bucket: pafs.FileSystem) -> dict[str, object]:
    """The corpus uploaded, prepared and trained on; gives the training's JSON."""
    pafs.copy_files(str(corpus.folder), "archive/corpus", destination_filesystem=bucket)
    prepared = run_job(
        prepare.JOB, "--input", f"{BUCKET}/corpus", "--output", f"{BUCKET}/prepared", "--test-share", 0.2
    )
    assert prepared["output"] == f"{BUCKET}/prepared"
    flags = ("--data", f"{BUCKET}/prepared", "--output", f"{BUCKET}/run", *RECIPE_FLAGS)
    return run_job(train_lstm.JOB, *flags)


def test_training_leaves_everything_in_the_bucket(
    trained_there: dict[str, object], trained: Trained, bucket: pafs.FileSystem
) -> None:
    assert trained_there["bundle"] == f"{BUCKET}/run/bundle"
    assert trained_there["curve"] == f"{BUCKET}/run/curve.png"
    with bucket.open_input_stream("archive/run/curve.png") as picture:
        assert picture.read(4) == b"\x89PNG"
    names = {info.base_name for info in bucket.get_file_info(pafs.FileSelector("archive/run/checkpoints"))}
    assert any(name.startswith("checkpoint_") for name in names)
    with bucket.open_input_stream("archive/run/metrics.jsonl") as lines:
        there = [json.loads(line) for line in lines.read().splitlines()]
    here = [json.loads(line) for line in (trained.output / "metrics.jsonl").read_text().splitlines()]
    # The same rows in the same order as from a local folder: the bucket changes nothing.
    for one, other in zip(there, here, strict=True):
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], abs=1e-5)
    assert not [path for path in all_files(bucket) if path.rsplit("/", 1)[1].startswith(".part")]


def test_a_glob_in_a_uri_with_options(trained_there: dict[str, object], corpus: Corpus) -> None:
    (found, *_), _ = list_inputs([f"{BUCKET}/corp*/*?region=us-east-1"])
    assert found.path == f"{BUCKET}/corpus/{found.inner.rpartition('/')[2]}?region=us-east-1"
    assert [again.inner for again in list_inputs([found.path])[0]] == [found.inner]


def all_files(store: pafs.FileSystem) -> list[str]:
    found = store.get_file_info(pafs.FileSelector("archive", recursive=True))
    return [info.path for info in found if info.is_file]


@pytest.mark.chaos
def test_run_goes_on_from_the_checkpoint_in_the_bucket(
    trained_there: dict[str, object], ray_cluster: str, bucket: pafs.FileSystem
) -> None:
    flags = ("--data", f"{BUCKET}/prepared", "--output", f"{BUCKET}/killed", *RECIPE_FLAGS, "--epochs", 40)
    with started("train_lstm", *flags, address=ray_cluster) as process:
        # Ray Train's own list comes after the epoch's line.
        wait_for("a checkpoint", lambda: is_noted(bucket), process)
        process.kill()
        process.wait()
    (first, *_, last) = lines_of(bucket, "archive/killed/metrics.jsonl")
    assert last["epoch"] < 40
    assert "--resume" in refusal(train_lstm.JOB, *flags)
    result = run_job(train_lstm.JOB, *flags, "--resume")
    assert result["epochs"] == 40
    epochs = lines_of(bucket, "archive/killed/metrics.jsonl")
    assert [line["epoch"] for line in epochs] == list(range(1, 41))
    assert epochs[0] == first, "trained again"


def is_noted(store: pafs.FileSystem) -> bool:
    path = "archive/killed/checkpoints/checkpoint_manager_snapshot.json"
    is_known = any(noted["latest_checkpoint_result"] for noted in lines_of(store, path))
    return is_known and len(lines_of(store, "archive/killed/metrics.jsonl")) >= 2


def lines_of(store: pafs.FileSystem, path: str) -> list[dict[str, object]]:
    try:
        with store.open_input_stream(path) as stream:
            return [json.loads(line) for line in stream.read().splitlines()]
    except FileNotFoundError:
        return []


def test_archive_is_scored_from_bucket_to_bucket(trained_there: dict[str, object], corpus: Corpus) -> None:
    model, output = trained_there["bundle"], f"{BUCKET}/scored"
    flags = ("--model", model, "--input", f"{BUCKET}/corpus/more.jsonl", "--output", output, "--num-actors", 1)
    result = run_job(score.JOB, *flags, "--text-column", "text", "--precision", "float32")
    store, path = resolve(output)
    rows = ds.dataset(f"{path}/scored", filesystem=store, format="parquet").to_table()
    assert rows.num_rows == result["rows_scored"] > 0
    # A URI is as good as a folder for whoever predicts.
    predictor = Predictor.load(str(model), precision="float32")
    expected = [one.p_positive for one in predictor.predict(rows["text"].to_pylist())]
    assert rows["p_positive"].to_pylist() == pytest.approx(expected, abs=1e-5)
    assert run_job(score.JOB, *flags, "--text-column", "text", "--precision", "float32") == result

    labeled = ("--model", model, "--input", f"{BUCKET}/corpus/more.jsonl", "--output", f"{BUCKET}/evaluated")
    assert run_job(evaluate.JOB, *labeled, "--text-column", "text", "--num-actors", 1)["rows"] > 0


def test_bundles_are_copied_once(trained_there: dict[str, object]) -> None:
    first, second = (Bundle.open(str(trained_there["bundle"])) for _ in range(2))
    assert first.model_id == second.model_id == trained_there["model_id"]
    assert first.path == second.path
    assert first.path.is_dir()


def test_features_need_a_folder(trained_there: dict[str, object]) -> None:
    flags = ("--data", f"{BUCKET}/prepared", "--output", f"{BUCKET}/bert", "--encoder", "minilm")
    assert "--features is needed too" in refusal(train_bert.JOB, *flags)
