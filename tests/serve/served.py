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
from sentiment.data.synthetic import tweets
from sentiment.models.build import build_model
from sentiment.models.config import RecurrentConfig
from sentiment.settings import ServeSettings
from sentiment.text import normalize
from sentiment.tokenizers import WordTokenizer
from serve_app.asgi import create_app
from serve_app.engine import Engine
from serve_app.proxy import LimitedProtocol, ProxyMiddleware


@dataclass
class Notes:
    """What the service measured."""

    batches: list[tuple[int, int]] = field(default_factory=list)  # texts, tokens
    answers: list[tuple[str, int, str | None]] = field(default_factory=list)

    def tokenized(self, seconds: float) -> None:
        assert seconds >= 0

    def batch(self, texts: int, tokens: int, queued_s: float, inference_s: float) -> None:
        assert min(queued_s, inference_s) >= 0
        self.batches.append((texts, tokens))

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
    texts = [normalize(tweet.text) for tweet in tweets(300, seed=3)]
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


def settings_for(bundle: Path, **more: object) -> ServeSettings:
    """Float32, so that answers are the predictor's on any processor, in whatever batch."""
    return ServeSettings.model_validate({"model": str(bundle), "precision": "float32", **more})


def digests(keys: Iterable[str]) -> list[bytes]:
    return [hashlib.sha256(key.encode()).digest() for key in keys]


def serve_app(bundle: Path, *keys: str, **settings: object) -> Iterator[Served]:
    notes = Notes()
    engine = Engine(settings_for(bundle, **settings), notes)
    with TestClient(ProxyMiddleware(create_app(engine, notes, digests(keys)))) as client:
        assert client.portal is not None
        client.portal.call(engine.load, str(bundle))
        yield Served(client, engine, notes)


@contextmanager
def listening(bundle: Path, *keys: str, **settings: object) -> Iterator[str]:
    """The application as Ray's servers have it, behind our protocol and middleware, but without Ray; its address."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app="", host="127.0.0.1", port=port, log_level="error", http=LimitedProtocol)
    )

    async def main() -> None:
        notes = Notes()
        engine = Engine(settings_for(bundle, **settings), notes)
        await engine.load(str(bundle))
        server.config.app = ProxyMiddleware(create_app(engine, notes, digests(keys)))
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
