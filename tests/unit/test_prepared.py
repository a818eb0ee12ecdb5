"""Prepared data read back: the same rows in the same order anywhere, and a clear word where it is no such folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment.data.prepared import PreparedData
from sentiment.errors import DataError
from sentiment.schema import PREPARED_SCHEMA
from sentiment.tokenizers import WordTokenizer

ROWS = [(row, row % 2, list(range(row, row + row % 5))) for row in range(40)]


def shard(folder: Path, name: str, rows: list[tuple[int, int, list[int]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "row_id": [row for row, _, _ in rows],
        "label": [label for _, label, _ in rows],
        "text": ["t"] * len(rows),
        "ids": [ids for _, _, ids in rows],
        "source_file": ["f"] * len(rows),
        "source_row": [row for row, _, _ in rows],
    }
    # Small row groups, so that a shard comes back in several pieces.
    pq.write_table(pa.table(columns, schema=PREPARED_SCHEMA), folder / name, row_group_size=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": {"train": {"rows": 40}}}))
    WordTokenizer.train(["a b c"]).save(tmp_path / "tokenizer.json")
    return tmp_path


def rows_of(folder: Path, split: str = "train") -> list[tuple[int, list[int]]]:
    examples = PreparedData(folder).examples(split)
    assert examples.offsets[0] == 0
    assert examples.offsets[-1] == len(examples.ids)
    spans = zip(examples.offsets, examples.offsets[1:], examples.labels_N, strict=False)
    return [(int(label), examples.ids[start:stop].tolist()) for start, stop, label in spans]


def test_rows_come_in_the_order_of_their_ids(folder: Path) -> None:
    """Whatever the shards are called and in whatever order they hold them: the seed's batches hang on it."""
    shard(folder / "train", "z.parquet", ROWS[0:9])
    shard(folder / "train", "a.parquet", ROWS[30:20:-1])
    shard(folder / "train", "m.parquet", [*ROWS[31:], *ROWS[9:21]])
    assert rows_of(folder) == [(label, ids) for _, label, ids in ROWS]


def test_rows_without_a_token_are_kept(folder: Path) -> None:
    shard(folder / "train", "a.parquet", [(0, 1, []), (1, 0, [5]), (2, 1, [])])
    assert rows_of(folder) == [(1, []), (0, [5]), (1, [])]
    assert len(PreparedData(folder).examples("train")) == 3


def test_types_are_those_of_batching(folder: Path) -> None:
    shard(folder / "train", "a.parquet", ROWS)
    examples = PreparedData(folder).examples("train")
    assert (examples.ids.dtype, examples.offsets.dtype, examples.labels_N.dtype) == (np.int32, np.int64, np.int32)
    assert examples.lengths_N.tolist() == [len(ids) for _, _, ids in ROWS]


def test_empty_split(folder: Path) -> None:
    (folder / "validation").mkdir()
    shard(folder / "test", "a.parquet", [])
    for split in ("train", "validation", "test"):
        assert rows_of(folder, split) == []
        assert len(PreparedData(folder).examples(split)) == 0


def test_split_of_rows_without_tokens(folder: Path) -> None:
    shard(folder / "train", "a.parquet", [(0, 1, []), (1, 0, [])])
    assert rows_of(folder) == [(1, []), (0, [])]


def test_manifest_and_tokenizer(folder: Path) -> None:
    prepared = PreparedData(str(folder))
    assert prepared.manifest["splits"]["train"]["rows"] == 40
    assert prepared.tokenizer().tokens == ["<unk>", "<pad>", "a", "b", "c"]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        prepared.tokenizer()


def test_train_rows_of_one_label_are_refused(folder: Path) -> None:
    splits = {"train": {"rows": 40, "negative": 1, "positive": 39}, "test": {"rows": 0, "negative": 0, "positive": 0}}
    (folder / "manifest.json").write_text(json.dumps({"splits": splits}))
    PreparedData(folder).require("train")
    with pytest.raises(DataError, match="has no test rows"):
        PreparedData(folder).require("train", "test")
    splits["train"] = {"rows": 40, "negative": 0, "positive": 40}
    (folder / "manifest.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(DataError, match=rf"^all 40 train rows of {folder} are labeled POSITIVE"):
        PreparedData(folder).require("train")


def test_digest_names_the_content(tmp_path: Path) -> None:
    """A resumed run refuses other data by it, and takes the same data prepared elsewhere and at another time."""
    manifest = {
        "inputs": [{"path": "/a/tweets.csv", "bytes": 7, "sha256": "ab"}],
        "settings": {"input": ["/a/tweets.csv"], "seed": 1, "rows_per_file": 9},
        "splits": {"train": {"rows": 40}},
        "created": "2026-01-01",
    }

    def digest(words: str = "{}", **change: object) -> str:
        (tmp_path / "tokenizer.json").write_text(words)
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        return PreparedData(tmp_path).digest

    moved = {"input": ["/b/tweets.csv"], "seed": 1, "rows_per_file": 5}
    inputs = [{"path": "/b/tweets.csv", "bytes": 7, "sha256": "ab"}]
    assert digest(inputs=inputs, settings=moved, created="2026-02-02") == digest()
    assert digest(settings={**moved, "seed": 2}) != digest()
    assert digest(words='{"other": 1}') != digest()
    assert digest(inputs=[{"path": "/a/tweets.csv", "bytes": 7, "sha256": "cd"}]) != digest()
    assert digest(splits={"train": {"rows": 41}}) != digest()


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00"])
def test_not_prepared_data(folder: Path, content: bytes | None) -> None:
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"{folder} is no prepared data \(manifest\.json .*run `sentiment prepare "):
        PreparedData(folder)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is no prepared data .*--output .*nowhere"):
        PreparedData(tmp_path / "nowhere")
