"""README's examples: commands that there are, and answers as the page shows them ("…" stands for what varies)."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from served import Served, serve_app

from jobs import evaluate, prepare, score, train_lstm
from sentiment import commands, demo, predict
from sentiment.batching import Examples, LengthBucketedBatches
from sentiment.bundle import BundleConfig, write_bundle
from sentiment.data.synthetic import Tweet, tweets
from sentiment.models.build import build_model
from sentiment.models.config import RecurrentConfig
from sentiment.observability import log
from sentiment.text import normalize
from sentiment.tokenizers import WordTokenizer
from sentiment.training.loop import fit
from sentiment.training.recipes import OptimizerConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
JOBS = {job.JOB.name: job.JOB for job in (prepare, train_lstm, score, evaluate)}


def examples(kind: str) -> list[tuple[str, list[str]]]:
    """What stands in the blocks of a kind, as commands with the comment lines below each."""
    found: list[tuple[str, list[str]]] = []
    for text in (text for name, text in BLOCKS if name == kind):
        below: list[str] = []
        for line in text.splitlines():
            if line.startswith("# "):
                below.append(line.removeprefix("# "))
            elif line:
                found.append((line, below := []))
    return found


def only(start: str) -> tuple[str, list[str]]:
    (one,) = [example for example in examples("sh") if example[0].startswith(start)]
    return one


def looks_like(shown: str, got: str) -> bool:
    """Whether an answer is the one shown, spaces and what "…" stands for aside."""
    parts = [re.escape("".join(part.split())) for part in shown.split("…")]
    return re.fullmatch(".*?".join(parts), "".join(got.split())) is not None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the demo's corpus, as `make demo` trains it but small: seconds."""
    train, held_out = (corpus := list(tweets(7_000)))[:6_000], corpus[6_000:]
    tokenizer = WordTokenizer.train((normalize(tweet.text) for tweet in train), min_frequency=2)

    def batches(some: list[Tweet], batch_size: int) -> LengthBucketedBatches:
        rows = tokenizer.encode([normalize(tweet.text) for tweet in some])
        encoded = Examples(
            ids=np.fromiter(itertools.chain.from_iterable(rows), np.int32),
            offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
            labels_N=np.array([tweet.shown_label for tweet in some], np.int32),
        )
        return LengthBucketedBatches(encoded, batch_size=batch_size, pad_id=tokenizer.pad_id, max_length=64)

    shape = RecurrentConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        **{"embedding_dim": 50, "embedding_std": 0.3, "hidden_dim": 48, "num_layers": 1, "bidirectional": True},
        **{"dropout": 0.1, "word_dropout": 0.05, "pad_id": tokenizer.pad_id, "unk_id": tokenizer.unk_id},
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Of steps this small two threads make slow ones where others work too.
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trained = fit(
            build_model(shape),
            batches(train, 64),
            batches(held_out, 256),
            OptimizerConfig(epochs=3, learning_rate=1e-2, schedule="one-cycle"),
            seed=1,
            device=torch.device("cpu"),
            precision="float32",
        )
    torch.set_num_threads(threads)
    return write_bundle(
        tmp_path_factory.mktemp("readme") / "bundle",
        config=BundleConfig(recipe="readme", model=shape, max_length=64),
        weights=trained.best_weights,
        tokenizer=tokenizer,
        metrics={},
        card="# readme\n",
    ).path


@pytest.fixture
def in_place(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that looks as after the commands before: the bundles are there."""
    for there in ("runs/demo/model", "runs/model"):
        (tmp_path / there).mkdir(parents=True)
        (tmp_path / there / "bundle").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SENTIMENT_MODEL", raising=False)


@pytest.fixture
def client(bundle: Path) -> Iterator[Served]:
    yield from serve_app(bundle)


def test_every_command_is_one_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = [shlex.split(command, comments=True) for command, _ in examples("sh")]
    assert len(lines) > 10
    for line in lines:
        match list(itertools.takewhile(lambda word: word not in "<>", line)):
            case ["make", *words]:
                assert {word for word in words if "=" not in word} <= set(targets)
            case ["sentiment", "predict", *flags]:
                predict.parse(flags)
            case ["sentiment", "train", "lstm", *flags]:
                JOBS["train_lstm"].parse(flags)
            case ["sentiment", command, *flags]:
                JOBS[command].parse(flags)
            case other:
                assert other[0] in (".", "curl")


@pytest.mark.usefixtures("in_place")
def test_texts_are_labelled_as_shown(capsys: pytest.CaptureFixture[str]) -> None:
    command, shown = only('sentiment predict "')
    assert commands.main(shlex.split(command)[1:]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(shown) == 2
    for line, expected in zip(lines, shown, strict=True):
        assert looks_like(expected, line), line


def test_requests_are_answered_as_shown(client: Served) -> None:
    command, (shown,) = only("curl localhost:8000/predict")
    words = shlex.split(command)
    kind, value = words[words.index("-H") + 1].split(": ")
    answer = client.client.post("/predict", headers={kind: value}, content=words[words.index("-d") + 1])
    assert answer.status_code == 200
    assert looks_like(shown, answer.text), answer.text
    assert only("curl localhost:8000/score")[0].split()[2:4] == ["-X", "POST"]
    lines = client.client.post("/score", content='{"text": "lovely"}\n').text.splitlines()
    assert json.loads(lines[0])["label"] == "POSITIVE"


@pytest.mark.usefixtures("in_place")
def test_python_answers_as_shown() -> None:
    (block,) = [text for name, text in BLOCKS if name == "python"]
    *before, last = ast.parse(block).body
    assert isinstance(last, ast.Expr)
    names: dict[str, Any] = {}
    exec(compile(ast.Module(before, []), "README.md", "exec"), names)
    answer = eval(compile(ast.Expression(last.value), "README.md", "eval"), names)
    assert looks_like(block.splitlines()[-1].removeprefix("# "), repr(answer)), answer


def test_the_demo_ends_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `make demo` prints of the figures that the page shows; that it runs, CI sees."""
    (shown,) = [text for _, text in BLOCKS if text.startswith("test accuracy")]
    scored_texts = shown.split("\n\n")[1]
    rows = [re.fullmatch(r"(NEGATIVE|POSITIVE) +([\d.]+)% positive   (.*)", line) for line in scored_texts.splitlines()]
    values = [(float(row[2]) / 100, row[1], row[3]) for row in rows if row]
    assert len(values) == len(rows) == 2
    monkeypatch.chdir(tmp_path)
    Path("runs/demo/scored/scored").mkdir(parents=True)
    columns = dict(zip(("p_positive", "label", "text"), map(list, zip(*values, strict=True)), strict=True))
    pq.write_table(pa.table(columns), "runs/demo/scored/scored/a.parquet")
    trained = {"test_accuracy": 0.9539, "rows_per_s": 1087, "workers": 2, "precision": "bf16"}
    trained |= {"curve": "runs/demo/model/curve.png", "bundle": "runs/demo/model/bundle"}
    counts = {"rows_in": 20_000, "rows_scored": 19_800, "rows_rejected": 200, "rows_per_s": 2955.8}
    log.configure("demo")
    demo._show(trained, {**counts, "output": "runs/demo/scored"}, 0.95, 99.0)
    printed = capsys.readouterr().err.splitlines()
    assert [line for line in shown.splitlines() if line not in printed] == []
