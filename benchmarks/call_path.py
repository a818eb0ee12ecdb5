"""Counts our functions and files that a text passes through, by a profiler: how far somebody has to read to follow it.

    python benchmarks/call_path.py score     # a small clean file: from its bytes to scored Parquet
    python benchmarks/call_path.py predict   # one POST /predict: from the ASGI application to its answer

"path" counts what a row passes: the plan of how its file is read, the read task, the model actor's calls; "model" is
the prediction's part of that. "all" also counts what a job does once: settings, lock, progress.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import secrets
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from unittest.mock import Mock

import ray
from fastapi.testclient import TestClient

from sentiment.bundle import BundleConfig, write_bundle
from sentiment.commands import SCORE
from sentiment.models.build import build_model
from sentiment.models.config import RecurrentConfig
from sentiment.settings import ServeSettings
from sentiment.tokenizers import WordTokenizer
from serve_app.asgi import create_app
from serve_app.engine import Engine

ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(str(ROOT / name) + os.sep for name in ("sentiment", "jobs", "serve_app"))
MODEL = tuple(f"sentiment/{name}" for name in ("predictor", "text.py", "tokenizers", "batching", "devices", "models/"))
# Where a file's rows pass: planning how it is read, reading a group of files, scoring a shard.
ENTRIES = {"plan", "detect", "read_within", "Scorer.__call__"}

PARSER = argparse.ArgumentParser(description="Count the functions of ours that a text passes through.")
PARSER.add_argument("what", choices=("score", "predict"), help="score a small file, or answer one request")


def note_calls(folder: str, is_on: threading.Event | None = None) -> None:
    """Profile this process, while `is_on`: each function of ours is noted in a file of the folder, once."""
    seen: set[object] = set()
    notes = Path(folder, f"{os.getpid()}.txt").open("a", buffering=1)  # noqa: SIM115

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(OURS) or (is_on and not is_on.is_set()):
            return
        # Lambdas and comprehensions are part of the function that they stand in; what isn't optimized is a class body.
        if code.co_name.startswith("<") or not code.co_flags & inspect.CO_OPTIMIZED:
            return
        is_on_path, outer = is_on is not None, frame
        while outer is not None and not is_on_path:
            is_on_path, outer = outer.f_code.co_qualname in ENTRIES, outer.f_back  # type: ignore[assignment]
        if (code, is_on_path) not in seen:
            seen.add((code, is_on_path))
            where = f"{Path(code.co_filename).relative_to(ROOT)} {code.co_qualname}"
            notes.write(f"{'path' if is_on_path else 'once'} {where}\n")

    threading.setprofile(profile)
    sys.setprofile(profile)


def write_model(folder: Path) -> Path:
    """A small untrained bundle."""
    tokenizer = WordTokenizer.train(["what a lovely day", "what an awful day"], min_frequency=1)
    sizes = {"embedding_dim": 8, "hidden_dim": 8, "num_layers": 1, "bidirectional": True, "embedding_std": 1.0}
    sizes |= {"pad_id": tokenizer.pad_id, "unk_id": tokenizer.unk_id, "vocabulary_size": tokenizer.vocabulary_size}
    shape = RecurrentConfig.model_validate({**sizes, "dropout": 0.0, "word_dropout": 0.0})
    weights = build_model(shape).state_dict()
    config = BundleConfig(recipe="untrained", model=shape, max_length=32)
    write_bundle(folder, config=config, weights=weights, tokenizer=tokenizer, metrics={}, card="# untrained\n")
    return folder


def score(work: Path, notes: str) -> None:
    """Score a hundred tweets as `jobs/score.py` does, in a Ray whose workers are profiled too."""
    (work / "in.csv").write_text("id,text\n" + "".join(f"{row},a lovely day number {row}\n" for row in range(100)))
    model = str(write_model(work / "model"))
    hook = {"worker_process_setup_hook": lambda: note_calls(notes)}
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Else Ray leaves one in the home directory.
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=hook, log_to_driver=False, logging_level="ERROR")
    note_calls(notes)
    code = SCORE.main(["--model", model, "--input", str(work / "in.csv"), "--output", str(work / "out")])
    sys.setprofile(None)
    ray.shutdown()
    assert code == 0, "the job failed"


def predict(work: Path, notes: str) -> None:
    """Answer one request in this process."""
    is_on = threading.Event()
    note_calls(notes, is_on)
    engine = Engine(ServeSettings.model_validate({"model": str(write_model(work / "model"))}), Mock())
    with TestClient(create_app(engine, Mock())) as client:
        assert client.portal is not None
        client.portal.call(engine.load, engine.settings.model)
        client.post("/predict", json={"inputs": "the first request waits for what is imported late"})
        is_on.set()
        assert client.post("/predict", json={"inputs": "what a lovely day"}).status_code == 200
        is_on.clear()


def main() -> None:
    """Run, list the functions, print the counts."""
    what = PARSER.parse_args().what
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as notes:
        (score if what == "score" else predict)(Path(work), notes)
        called = sorted({line for file in Path(notes).iterdir() for line in file.read_text().splitlines()})
    print("\n".join(called))
    calls = {"all": {line[5:] for line in called}, "path": {line[5:] for line in called if line.startswith("path")}}
    calls["model"] = {call for call in calls["path"] if call.startswith(MODEL)}
    files = {name: {call.split(" ")[0] for call in found} for name, found in calls.items()}
    counts = {name: {"functions": len(found), "files": len(files[name])} for name, found in calls.items()}
    print(json.dumps({"what": what, **counts}))


if __name__ == "__main__":
    main()
