"""The application with a small model, as tests use it."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import uvicorn
from fastapi.testclient import TestClient
from job_runs import free_port

from sentiment.bundle import BundleConfig, write_bundle
from sentiment.corpora.synthetic import tweets
from sentiment.models import build_model
from sentiment.settings import ServeSettings
from sentiment.shapes import RecurrentConfig
from sentiment.text import normalise
from sentiment.tokenizers import WordTokenizer
from serve_app.batcher import BatchFacts
from serve_app.engine import Engine
from serve_app.web import create_app


@dataclass
class Notes:
    """What the service measured."""

    batches: list[BatchFacts] = field(default_factory=list)
    answers: list[tuple[str, int, str | None]] = field(default_factory=list)

    def tokenised(self, seconds: float) -> None:
        assert seconds >= 0

    def batch(self, facts: BatchFacts) -> None:
        self.batches.append(facts)

    def answered(self, route: str, status: int, seconds: float, error_type: str | None) -> None:
        self.answers.append((route, status, error_type))


@dataclass
class Served:
    """The application and what belongs to it."""

    client: TestClient
    engine: Engine
    notes: Notes


def make_bundle(folder: Path, seed: int) -> Path:
    """A bundle of random weights: what it says doesn't matter, that it says the same each time does."""
    texts = [normalise(tweet.text) for tweet in tweets(300, seed=3)]
    tokenizer = WordTokenizer.train(texts, vocabulary_size=400)
    shape = RecurrentConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        embedding_dim=16,
        embedding_std=1.0,
        hidden_dim=24,
        num_layers=1,
        bidirectional=True,
        dropout=0.0,
        word_dropout=0.0,
        pad_id=tokenizer.pad_id,
        unk_id=tokenizer.unk_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(shape)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    written = write_bundle(
        folder,
        config=BundleConfig(recipe=f"seed-{seed}", model=shape, max_length=32),
        weights=model.state_dict(),
        tokenizer=tokenizer,
        metrics={},
        card="# random\n",
    )
    return written.path


def digests(keys: Iterable[str]) -> list[bytes]:
    return [hashlib.sha256(key.encode()).digest() for key in keys]


def serve_app(bundle: Path, *keys: str, **settings: object) -> Iterator[Served]:
    notes = Notes()
    engine = Engine(ServeSettings.model_validate({"model": str(bundle), **settings}), notes)
    with TestClient(create_app(engine, notes, digests(keys))) as client:
        assert client.portal is not None
        client.portal.call(engine.load, str(bundle))
        yield Served(client, engine, notes)


@contextmanager
def listening(bundle: Path, *keys: str, **settings: object) -> Iterator[str]:
    """The application behind a real HTTP server, without Ray; gives its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app="", host="127.0.0.1", port=port, log_level="error"))

    async def main() -> None:
        notes = Notes()
        engine = Engine(ServeSettings.model_validate({"model": str(bundle), **settings}), notes)
        await engine.load(str(bundle))
        server.config.app = create_app(engine, notes, digests(keys))
        await server.serve()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server didn't start"
            assert time.monotonic() < end
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
