"""Reading through Ray Data: every row once, in blocks that several workers can share."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import ray.data

from sentiment.data.ray_source import read, read_groups
from sentiment.data.read_plan import plan

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_rows_come_once_in_small_blocks(tmp_path: Path) -> None:
    body = "".join(f"{number},tweet number {number} about nothing in particular\n" for number in range(50_000))
    (tmp_path / "big.csv").write_text(f"id,text\n{body}")
    (tmp_path / "small.jsonl").write_text('{"id": "s", "text": "small"}\n{broken\n')
    read_plan = plan([str(tmp_path)])
    before = ray.data.DataContext.get_current().target_max_block_size

    def seen(block: pa.Table) -> pa.Table:
        return block.select(["source_file", "source_row", "reason"]).append_column(
            "block_rows", pa.array([block.num_rows] * block.num_rows, pa.int64())
        )

    dataset = read(read_plan, num_cpus=0.5)
    assert dataset.schema().names == read_plan.schema.names
    mapped = dataset.map_batches(seen, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
    out = mapped.take_all()
    assert len(out) == len({(row["source_file"], row["source_row"]) for row in out}) == 50_002
    assert sum(row["reason"] is not None for row in out) == 1
    assert 1_000 < max(row["block_rows"] for row in out) <= 16_384
    # Fused, the read would be done by the worker that does the work: a file would keep only one of them busy.
    assert "ReadArchive->" not in mapped.stats()
    assert ray.data.DataContext.get_current().target_max_block_size == before


def test_reviews_are_read_many_to_a_task(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / split / "pos"
        folder.mkdir(parents=True)
        for number in range(20):
            (folder / f"{number}_8.txt").write_text(f"review {number}")
    read_plan = plan([str(tmp_path)])
    assert len(read_groups(read_plan)) == 1
    assert sorted(row["text"] for row in read(read_plan).take_all()) == sorted(
        f"review {n}" for n in range(20) for _ in "ab"
    )
