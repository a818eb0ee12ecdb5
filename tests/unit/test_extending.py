"""docs/extending.md: its examples, applied to a copy of the code, do what it says they do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# What has to be touched for an endpoint, a format, a model with its recipe, another recipe and a figure.
NAMES = (
    "serve_app/asgi.py",
    "serve_app/mean.py",
    "sentiment/data/formats.py",
    "sentiment/data/lines_format.py",
    "sentiment/metrics.py",
    "sentiment/models/config.py",
    "sentiment/models/convolution.py",
    "sentiment/training/recipes.py",
)
# A block of code that names its file; in a list it is indented.
BLOCK = re.compile(r'^( *)```(diff|python) title="([^"]+)"\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)

# Trains the new model on a prepared folder, writes its bundle, and predicts with what is loaded from there.
TRAIN = """
import json, sys
from pathlib import Path

import torch

from sentiment.predictor import Predictor
from sentiment.training.loop import Hooks
from sentiment.training.recipes import get_recipe
from sentiment.training.run import Rank, bundle_run, train_run
from sentiment.training.word_models import WordRun

data, folder = sys.argv[1:]
recipe = get_recipe("convolution").with_overrides({"filters": "8", "embedding_dim": "8", "learning_rate": "0.02"})
run = WordRun(recipe=recipe, data=data, seed=1, precision="float32")
metrics = train_run(run, Rank(0, 1, torch.device("cpu")), hooks=Hooks(), resume=lambda: None)
predictor = Predictor.load(bundle_run(Path(folder), run, metrics).path, use_gpu=False, precision="float32")
texts = ["I love this", "I hate this phone, it is awful and the battery died again", "good"]
scores = [prediction.p_positive for prediction in predictor.predict(texts)]
alone = [predictor.predict([text])[0].p_positive for text in texts]
print(json.dumps({"metrics": metrics, "scores": scores, "alone": alone}))
"""
# Reads a file of the new format, and one of IMDB's.
READ = """
import json, sys

from sentiment.data.formats import batches_of
from sentiment.data.read_plan import plan

tables = [batch.build() for batch in batches_of(plan([sys.argv[1]]))]
print(json.dumps({"rows": [row for table in tables for row in table.to_pylist()]}, default=str))
"""
# Asks the new endpoint, with the new model.
ASK = """
import json, sys
from unittest.mock import Mock

from fastapi.testclient import TestClient

from sentiment.settings import ServeSettings
from serve_app.asgi import create_app
from serve_app.engine import Engine

engine = Engine(ServeSettings(model=sys.argv[1], precision="float32"), Mock())
with TestClient(create_app(engine, Mock())) as client:
    client.portal.call(engine.load, sys.argv[1])
    texts = ["I love this", "I hate this phone, it is awful and the battery died again", "good"]
    answers = [client.post("/mean", json=body) for body in ({"texts": texts}, {"texts": []}, {"texts": [" "]})]
    print(json.dumps({"answers": [[answer.status_code, answer.json()] for answer in answers]}))
"""
# Measures rows that an evaluation scored: 3 of 4 positive ones are right, and 1 of 2 negative ones.
MEASURE = """
import dataclasses, json, sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sentiment.schema import P_POSITIVE
from sentiment.scoring import evaluation
from sentiment.storage.output_directory import OutputDirectory

folder = Path(sys.argv[1], "scored")
folder.mkdir(parents=True)
rows = {
    evaluation.TRUE_LABEL: pa.array([1, 1, 1, 1, 0, 0], pa.int8()),
    P_POSITIVE: pa.array([0.9, 0.8, 0.7, 0.2, 0.9, 0.1], pa.float32()),
}
pq.write_table(pa.table(rows), folder / "part.parquet")
print(json.dumps(dataclasses.asdict(evaluation.measure(OutputDirectory(sys.argv[1])))))
"""


def apply_blocks(page: str, folder: Path) -> set[Path]:
    """Do what a page's blocks say to files in a folder: new files whole, others by lines with +, - or neither."""
    files = set()
    for indent, kind, name, block in BLOCK.findall(page):
        lines = [line.removeprefix(indent) for line in block.splitlines()]
        file = folder / name
        files.add(file)
        if kind == "python":
            assert not file.exists(), f"{name} exists"
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            continue
        before, after = ("".join(line[1:] + "\n" for line in lines if not line.startswith(sign)) for sign in ("+", "-"))
        text = file.read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{name} doesn't have, or has more than once:\n{before}"
        file.write_text(text.replace(before, after), encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a copy of the packages, extended as the page says."""
    folder = tmp_path_factory.mktemp("extended")
    for package in ("sentiment", "serve_app"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    files = apply_blocks((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), folder)
    assert files == {folder / name for name in NAMES}
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the new model's bundle is written."""
    return tmp_path_factory.mktemp("trained") / "bundle"


def call(extended: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the extended package."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENTIMENT_")}
    environment |= {"PYTHONPATH": str(extended), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=extended, env=environment, capture_output=True, text=True, check=False
    )


def answer(extended: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a script prints in its last line."""
    done = call(extended, "-c", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def trained(extended: Path, prepared_tweets: Path, bundle: Path) -> dict[str, Any]:
    """What `TRAIN` says, and the config in its bundle."""
    told = answer(extended, TRAIN, str(prepared_tweets), str(bundle))
    return {**told, "config": json.loads((bundle / "config.json").read_text())}


def test_a_file_of_a_new_format_is_read(extended: Path, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_bytes(b"good day\r\n\nbad \xff day\nawful")
    rows = answer(extended, READ, str(tmp_path / "some.txt"))["rows"]
    assert [(row["line"], row["text"], row["reason"]) for row in rows] == [
        (1, "good day", None),
        (3, None, "not valid UTF-8 (byte 0xff at column 5)"),
        (4, "awful", None),
    ]
    review = tmp_path / "aclImdb" / "train" / "pos" / "1_9.txt"
    review.parent.mkdir(parents=True)
    review.write_text("a fine film\nof two lines")
    (row,) = answer(extended, READ, str(review))["rows"]
    assert (row["text"], row["label"], row["rating"]) == ("a fine film\nof two lines", "pos", 9)


def test_a_new_model_is_trained_and_bundled_and_predicts(trained: dict[str, Any]) -> None:
    metrics, config = trained["metrics"], trained["config"]
    assert metrics["recipe"] == config["recipe"] == "convolution"
    assert (config["model"]["kind"], config["model"]["filters"], config["model"]["window"]) == ("convolution", 8, 3)
    # 8 filters of 3 words of 8 numbers and their biases; the head.
    assert metrics["parameters"] == metrics["vocabulary"] * 8 + (8 * 3 * 8 + 8) + (8 + 1)
    losses = [epoch["train_loss"] for epoch in metrics["history"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3
    assert trained["scores"] == pytest.approx(trained["alone"], abs=1e-6), "padding changes a score"
    assert len({*trained["scores"]}) == 3


def test_a_new_recipe_is_listed_and_a_near_miss_is_told(extended: Path) -> None:
    page = call(extended, "-m", "sentiment", "train", "lstm", "--help")
    assert page.returncode == 0, page.stderr
    assert re.search(r"^  tweets-gru +as tweets, with GRU cells$", page.stdout, re.MULTILINE)
    assert re.search(r"^  convolution +convolution over three neighboring words$", page.stdout, re.MULTILINE)
    assert re.search(r"^ +--filters .*\n? +patterns that a convolution looks for", page.stdout, re.MULTILINE)
    mistyped = call(extended, "-m", "sentiment", "train", "--output", "o", "--recipe", "tweets-gur")
    assert mistyped.returncode == 2
    assert "unknown recipe 'tweets-gur'" in mistyped.stderr
    assert "did you mean tweets-gru" in mistyped.stderr
    assert not (extended / "o").exists()


def test_a_new_endpoint_answers_with_the_new_model(extended: Path, trained: dict[str, Any], bundle: Path) -> None:
    (status, mean), *wrong = answer(extended, ASK, str(bundle))["answers"]
    assert (status, mean) == (200, {"p_positive": pytest.approx(sum(trained["scores"]) / 3, abs=1e-6)})
    assert [(status, said["error_type"]) for status, said in wrong] == [(422, "validation")] * 2
    assert all("texts" in said["error"] for _, said in wrong)


def test_a_new_figure_is_in_the_metrics_of_training_and_evaluation(
    extended: Path, trained: dict[str, Any], tmp_path: Path
) -> None:
    (tn, fp), (fn, tp) = trained["metrics"]["test_confusion"]
    spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = (tp * tn - fp * fn) / spread**0.5 if spread else 0.0
    assert trained["metrics"]["test_mcc"] == pytest.approx(expected)
    figures = answer(extended, MEASURE, str(tmp_path))
    assert figures["confusion"] == [[1, 1], [1, 3]]
    assert figures["mcc"] == pytest.approx(0.25)


def test_the_extended_package_is_formatted_and_free_of_lint(extended: Path) -> None:
    if shutil.which("ruff", path=Path(sys.executable).parent) is None:
        pytest.skip("ruff isn't installed")
    config, ruff = str(ROOT / "pyproject.toml"), str(Path(sys.executable).parent / "ruff")
    for command in (("format", "--check"), ("check",)):
        words = [ruff, *command, "--no-cache", "--config", config, *NAMES]
        done = subprocess.run(words, cwd=extended, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
