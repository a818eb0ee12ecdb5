"""What unit tests share: a small bundle, a small prepared folder, a ragged batch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from sentiment.bundle import Bundle, BundleConfig, write_bundle
from sentiment.data.synthetic import tweets
from sentiment.models.build import build_model
from sentiment.models.config import RecurrentConfig
from sentiment.schema import PREPARED_SCHEMA
from sentiment.text import normalize
from sentiment.tokenizers import WordTokenizer

SENTENCES = [
    "I love this phone, it is great :)",
    "I hate this phone, it is awful :(",
    "not good at all, but the screen is great",
    "bad start, yet I loved the end of it",
    "the battery died again and I don't care",
    "what a day! sunny and warm",
]


@pytest.fixture
def in_an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the checkout's ray_config.yaml nor the developer's variables take part."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("SENTIMENT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch for the length of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ragged_batch() -> tuple[Tensor, Tensor]:
    """ids_BT and lengths_B of nine rows of 1 to 17 words out of 50, padded with 1 to more than the longest needs."""
    generator = torch.Generator().manual_seed(3)
    lengths_B = torch.randint(1, 18, (9,), generator=generator)
    ids_BT = torch.randint(2, 50, (9, 20), generator=generator)
    ids_BT[torch.arange(20)[None] >= lengths_B[:, None]] = 1
    return ids_BT.int(), lengths_B


@pytest.fixture(scope="session")
def prepared_tweets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 360 invented tweets; all negative rows of a split come first."""
    folder, rows = tmp_path_factory.mktemp("prepared"), {"train": 200, "validation": 120, "test": 40}
    corpus = tweets(sum(rows.values()), seed=3)
    drawn = {split: [next(corpus) for _ in range(number)] for split, number in rows.items()}
    tokenizer = WordTokenizer.train(normalize(tweet.text) for tweet in drawn["train"])
    tokenizer.save(folder / "tokenizer.json")
    for split, some in drawn.items():
        some.sort(key=lambda tweet: tweet.shown_label)
        texts = [normalize(tweet.text) for tweet in some]
        columns = {
            "row_id": range(len(some)),
            "label": [tweet.shown_label for tweet in some],
            "text": texts,
            "ids": tokenizer.encode(texts),
            "source_file": ["f"] * len(some),
            "source_row": range(len(some)),
        }
        (folder / split).mkdir()
        pq.write_table(pa.table(columns, schema=PREPARED_SCHEMA), folder / split / "part.parquet")
    splits = {
        split: {
            "rows": len(some),
            "negative": len(some) - (positive := sum(t.shown_label for t in some)),
            "positive": positive,
        }
        for split, some in drawn.items()
    }
    (folder / "manifest.json").write_text(json.dumps({"splits": splits}))
    return folder


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Write a bundle of a small random model into `tmp_path / name`."""

    def make(
        name: str = "bundle",
        *,
        seed: int = 0,
        metrics: dict[str, Any] | None = None,
        max_length: int = 64,
        **shape: Any,
    ) -> Bundle:
        tokenizer = WordTokenizer.train([normalize(text) for text in SENTENCES])
        fields = {"embedding_dim": 12, "hidden_dim": 10, "num_layers": 2, "bidirectional": True, **shape}
        config = RecurrentConfig(
            vocabulary_size=tokenizer.vocabulary_size,
            embedding_std=1.0,
            dropout=0.3,
            word_dropout=0.1,
            pad_id=tokenizer.pad_id,
            unk_id=tokenizer.unk_id,
            **fields,
        )
        torch.manual_seed(seed)
        model = build_model(config)
        with torch.no_grad():
            # Fresh weights say much the same of every text; these have opinions on both sides.
            for key, weight in model.named_parameters():
                weight.mul_(2.0 if key.startswith("rnn.weight") else 3.0 if key == "fc.weight" else 1.0)
            model.get_parameter("fc.bias").zero_()
        return write_bundle(
            tmp_path / name,
            config=BundleConfig(recipe="small", model=config, max_length=max_length),
            weights=model.state_dict(),
            tokenizer=tokenizer,
            metrics={"validation_accuracy": 0.5} if metrics is None else metrics,
            card="# small\n\nA café of its own.\n",
        )

    return make
