"""What is decided before texts are encoded: whether features are kept, and that shards are shared by equals alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment.data.prepared import PreparedData
from sentiment.errors import ResourceError
from sentiment.settings import TrainBertSettings
from sentiment.training.bert_models import BertRun, plan_run
from sentiment.training.encode import plan_encoding
from sentiment.training.recipes import BERT_TWEETS

ROWS = {"train": [700, 300], "validation": [60], "test": []}


def write_prepared(folder: Path, rows: dict[str, list[int]] = ROWS) -> str:
    """As `jobs/prepare.py` leaves it, but for what nobody reads here; in row groups of 64 rows."""
    at = 0
    for split, counts in rows.items():
        (folder / split).mkdir(parents=True)
        for number, count in enumerate(counts):
            texts = [f"this phone is great {row}" for row in range(at, at + count)]
            table = {
                "row_id": pa.array(range(at, at + count)),
                "label": [row % 2 for row in range(count)],
                "text": texts,
            }
            pq.write_table(pa.table(table), folder / split / f"part-{number:06}.parquet", row_group_size=64)
            at += count
    (folder / "tokenizer.json").write_text("{}")
    splits = {split: {"rows": sum(counts)} for split, counts in rows.items()}
    (folder / "manifest.json").write_text(json.dumps({"splits": splits}))
    return str(folder)


def run_of(data: str, encoder: Path, **settings: Any) -> BertRun:
    recipe = BERT_TWEETS.with_overrides({"encoder": str(encoder), "max_length": 40, **settings})
    return plan_run(recipe, data, TrainBertSettings(precision="float32"))


def plan(run: BertRun, folder: Path, **settings: Any) -> BertRun:
    return plan_encoding(run, TrainBertSettings(precision="float32", **settings), folder)


def test_slices_are_all_rows_once(tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentiment.training.encode._MAX_SHARD_ROWS", 128)
    run = run_of(write_prepared(tmp_path / "data"), tiny_encoder)
    encoding = plan(run, tmp_path / "features")
    assert sum(part.rows for part in encoding.slices) == 1060
    assert len({part.shard(tmp_path) for part in encoding.slices}) == len(encoding.slices) == 6 + 3 + 1
    prepared = PreparedData(run.data)
    tables = [prepared.rows_of(part.split, part.file, part.start, part.rows) for part in encoding.slices]
    assert [row for table in tables for row in table["row_id"].to_pylist()] == list(range(1060))
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(("asked", "free", "kept"), [("auto", 1e9, True), ("auto", 1e5, False), ("never", 1e9, False)])
def test_features_are_kept_if_there_is_room(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, asked: Any, free: float, kept: bool
) -> None:
    """1,060 rows of 9 tokens or so, 16 wide in float32: 0.6 MB."""
    usage = shutil.disk_usage(tmp_path)._replace(free=int(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    run = run_of(write_prepared(tmp_path / "data"), tiny_encoder)
    encoding = plan(run, tmp_path / "features", cache_features=asked)
    assert encoding.caches_features == kept
    assert f"--cache-features {asked}" in encoding.cache_summary
    assert ("encoded once and kept" in encoding.cache_summary) == kept


def test_what_is_there_needs_no_room_again(tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(write_prepared(tmp_path / "data"), tiny_encoder)
    shards = Path(plan(run, tmp_path / "features").shards)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match="--cache-features always: the features don't fit"):
        plan(run, tmp_path / "features", cache_features="always")
    (shards / "train").mkdir(parents=True)
    (shards / "train" / "part-000000-000000000.safetensors").write_bytes(bytes(10_000_000))
    assert plan(run, tmp_path / "features").caches_features
    assert str(shards) == plan(run, tmp_path / "features").shards


def test_shards_are_shared_by_equals_alone(tmp_path: Path, tiny_encoder: Path) -> None:
    """Seed and head make no difference; data, its files, encoder, tokenizer and how texts are cut do."""
    data = write_prepared(tmp_path / "data")
    run = run_of(data, tiny_encoder)

    def shards(run: BertRun, **settings: Any) -> str:
        return plan(run, tmp_path / "features", **settings).shards

    assert shards(run) == shards(run_of(data, tiny_encoder, hidden_dim=8, epochs=9, batch_size=3))
    assert shards(run) == shards(dataclasses.replace(run, seed=9))
    other_files = write_prepared(tmp_path / "other", {"train": [500, 500], "validation": [60], "test": []})
    encoder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-6}))
    spelling = shutil.copytree(tiny_encoder, tmp_path / "spelling")
    for file in (spelling / "tokenizer.json", spelling / "vocab.txt"):
        file.write_text(file.read_text().replace("phone", "telephone"))
    different = [
        shards(run),
        shards(run_of(other_files, tiny_encoder)),
        shards(run_of(data, encoder)),
        shards(run_of(data, spelling)),
        shards(run_of(data, tiny_encoder, max_length=41)),
        shards(run_of(data, tiny_encoder, truncation="head+tail")),
        shards(run_of(data, tiny_encoder, unfreeze_layers=1)),
        shards(run, cache_features="never"),
        shards(dataclasses.replace(run, precision="bf16")),
    ]
    assert len(set(different)) == len(different)
