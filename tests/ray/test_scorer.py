"""The model actor by itself: what it answers when shards are given to it again and again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from job_runs import Trained

from jobs.scorer import ERROR, REPORT, Scorer, Work
from jobs.scoring_progress import ScoringBoard
from sentiment.bundle import Bundle
from sentiment.corpora.folder import Folder
from sentiment.corpora.parts import PartWriter
from sentiment.corpora.planning import plan
from sentiment.corpora.reading import read_shards
from sentiment.corpora.shards import group_shards
from sentiment.schema import REJECTED, REJECTED_SCHEMA, SCORE_FIELDS, SCORED, SOURCE_FIELDS

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_shard_that_actors_die_with_is_given_up(trained: Trained, tmp_path: Path) -> None:
    """Ray would give it to a new actor for ever."""
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "lovely day"}) + "\n")
    reads = plan([str(tmp_path / "in.jsonl")], reserved=[field.name for field in SCORE_FIELDS])
    schemas = {SCORED: pa.schema([*reads.columns, *SOURCE_FIELDS, *SCORE_FIELDS]), REJECTED: REJECTED_SCHEMA}
    writer = PartWriter(Folder(str(tmp_path / "out")), "tag", schemas)
    writer.make_folders()
    work = Work(
        model=str(trained.bundle),
        model_id=Bundle.open(trained.bundle).model_id,
        precision="float32",
        use_gpu=False,
        num_threads=1,
        slice_rows=100,
        strict=False,
        writer=writer,
    )
    (block,) = ray.get(read_shards(reads, group_shards(reads, 100), {}, num_cpus=0.2).to_arrow_refs())
    board = ray.remote(ScoringBoard).options(num_cpus=0).remote(stored_bytes=0, rows=0, rejected=0, bytes_done=0)
    scorer = ray.remote(Scorer).options(num_cpus=0).remote(work, board)
    answers = [ray.get(scorer.__call__.remote(block)).to_pylist()[0] for _ in range(9)]
    assert all(answer[ERROR] is None and answer[REPORT] for answer in answers[:8])
    assert "in.jsonl: 8 model actors died with the same shard (1 rows)" in answers[8][ERROR]
