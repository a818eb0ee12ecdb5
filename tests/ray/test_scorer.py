"""The model actor by itself: what it answers when shards are given to it again and again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from job_runs import Trained

from sentiment.bundle import Bundle
from sentiment.data.parquet_writer import ParquetWriter
from sentiment.data.ray_source import read_shards
from sentiment.data.read_plan import plan
from sentiment.data.sharding import group_files
from sentiment.data.workers import WorkerWatch
from sentiment.schema import REJECTED, REJECTED_SCHEMA, SCORE_FIELDS, SCORED, SOURCE_FIELDS
from sentiment.scoring.actors import ERROR, REPORT, Scorer
from sentiment.scoring.progress import ScoringBoard
from sentiment.settings import ScoreSettings
from sentiment.storage.output_directory import OutputDirectory

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_shard_that_actors_die_with_is_given_up(trained: Trained, tmp_path: Path) -> None:
    """Ray would give it to a new actor for ever."""
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "lovely day"}) + "\n")
    reads = plan([str(tmp_path / "in.jsonl")], reserved=[field.name for field in SCORE_FIELDS])
    schemas = {SCORED: pa.schema([*reads.columns, *SOURCE_FIELDS, *SCORE_FIELDS]), REJECTED: REJECTED_SCHEMA}
    writer = ParquetWriter(OutputDirectory(str(tmp_path / "out")), schemas)
    writer.make_folders()
    chosen = {"model": str(trained.bundle), "input": [str(tmp_path)], "output": "out", "precision": "float32"}
    (block,) = ray.get(read_shards(group_files(reads), 100, {}, num_cpus=0.2).to_arrow_refs())
    board = ray.remote(ScoringBoard).options(num_cpus=0).remote(stored_bytes=0, rows=0, rejected=0, bytes_done=0)
    scorer = (
        ray.remote(Scorer)
        .options(num_cpus=0)
        .remote(
            ScoreSettings.model_validate(chosen),
            model_id=Bundle.open(trained.bundle).model_id,
            num_threads=1,
            text_columns=reads.text_columns,
            strict=False,
            writer=writer,
            tag="0a",
            board=board,
            watch=WorkerWatch(board, 60.0),
        )
    )
    answers = [ray.get(scorer.__call__.remote(block)).to_pylist()[0] for _ in range(9)]
    assert all(answer[ERROR] is None and answer[REPORT] for answer in answers[:8])
    assert "in.jsonl: 8 model actors died with the same shard (1 rows)" in answers[8][ERROR]
