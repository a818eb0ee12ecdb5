"""What scoring says: what it refuses before anything is started, and the line it shows while it works."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sentiment.data.manifest import commonest, reason_lines
from sentiment.data.read_plan import ReadPlan, plan
from sentiment.errors import ConfigError, DataError
from sentiment.schema import SCORE_FIELDS, SOURCE_FIELDS
from sentiment.scoring import pipeline, progress
from sentiment.scoring.progress import ScoringBoard, describe
from sentiment.settings import ScoreSettings


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ((0.0, 0, None, 0.0), "0 rows/s, 0 rejected"),
        ((1234.4, 7, None, 0.5), "1,234 rows/s, 7 rejected"),
        ((1234.6, 12_345, 0.0, 0.0), "1,235 rows/s, 0%, 12,345 rejected"),
        ((20_000.0, 0, 0.5, 0.001), "20,000 rows/s, 50%, 0:08:20 left, 0 rejected"),
        ((20_000.0, 0, 0.25, 0.75 / 200_000), "20,000 rows/s, 25%, 2 days, 7:33:20 left, 0 rejected"),
        ((5.0, 1, 1.0, 0.1), "5 rows/s, 100%, 0:00:00 left, 1 rejected"),
        ((5.0, 1, 1.3, 0.1), "5 rows/s, 100%, 0:00:00 left, 1 rejected"),
    ],
)
def test_progress_in_words(told: tuple[float, int, float | None, float], said: str) -> None:
    assert describe(*told) == said


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "time", lambda: 1110.0)


@pytest.mark.usefixtures("clock")
def test_shards_done_twice_count_once() -> None:
    board = ScoringBoard(stored_bytes=1000, rows=50, rejected=5, bytes_done=100)
    assert (board.read().done, board.read().note) == (50, "")
    for began in (1020.0, 1010.0, 1030.0):
        board.begin(f"at {began}", began)
    board.shard("a", 60, 2, 50)
    board.shard("b", 100, 1, 100)
    board.shard("a", 20, 0, 20)  # Begun again, elsewhere.
    board.shard("a", 100, 3, 100)
    news = board.read()
    assert (news.done, news.note) == (250, "2 rows/s, 30%, 0:05:50 left, 9 rejected")
    assert news.measured == {"rows": 241, "stored_bytes": 300, "share": 0.3}


def test_what_ray_warns_of_is_explained() -> None:
    board = ScoringBoard(stored_bytes=0, rows=0, rejected=0, bytes_done=0)
    for _ in range(2):
        board.begin("000000-000001", 1.0)
        board.begin_reading("a.csv")
    assert board.read().lines == [
        "a model actor was lost, another one scores its shard 000000-000001",
        "a reader was lost, another one reads a.csv",
    ]
    board.end_reading("a.csv", True)
    board.begin_reading("a.csv")
    assert board.read().lines == []


@pytest.mark.usefixtures("clock")
def test_input_of_unknown_size_has_no_share() -> None:
    board = ScoringBoard(stored_bytes=0, rows=0, rejected=0, bytes_done=0)
    board.begin("a", 1010.0)
    board.shard("a", 300, 0, 0)
    news = board.read()
    assert news.note == "3 rows/s, 0 rejected"
    assert news.measured == {"rows": 300, "stored_bytes": 0}


@pytest.fixture
def reads(tmp_path: Path) -> ReadPlan:
    (tmp_path / "a.csv").write_text("id,text\n1,hello\n")
    return plan([str(tmp_path)])


def check(reads: ReadPlan, **chosen: Any) -> None:
    settings = ScoreSettings(model="bundle", input=["a.csv"], output="out", **chosen)
    pipeline.check(settings, reads, [*reads.columns, *SOURCE_FIELDS, *SCORE_FIELDS])


def test_columns_and_files_as_they_must_be(reads: ReadPlan) -> None:
    check(reads, partition_by=["label", "id", "source_file"], strict=True)


def test_partitions_that_are_not_there(reads: ReadPlan) -> None:
    names = "id, text, source_file, source_row, label, score, p_positive, model_id"
    with pytest.raises(ConfigError, match=f"^--partition-by 'nope': no such column; there are {names}$"):
        check(reads, partition_by=["label", "nope"])
    nested = dataclasses.replace(reads, columns=pa.schema([("tags", pa.list_(pa.string())), ("text", pa.string())]))
    with pytest.raises(ConfigError, match="'tags': no such column; there are text, source_file"):
        check(nested, partition_by=["tags"])


def test_strict_refuses_files_that_cannot_be_opened(tmp_path: Path, reads: ReadPlan) -> None:
    (tmp_path / "b.csv.gz").write_bytes(b"not gzip")
    damaged = plan([str(tmp_path)])
    check(damaged)
    check(reads, strict=True)
    with pytest.raises(DataError, match=rf"^--strict: {tmp_path}/b\.csv\.gz: "):
        check(damaged, strict=True)


def test_reasons_in_words() -> None:
    reasons = {"no text": 3, "not valid JSON": 1200, **{f"kind {number}": 1 for number in range(12)}}
    lines = reason_lines(reasons).splitlines()
    assert lines[:3] == ["rejected rows: 1,215", "       1,200  not valid JSON", "           3  no text"]
    assert (len(lines), lines[-1]) == (12, "and 4 more")
    assert commonest(reasons) == "not valid JSON (1,200 of 1,215 rejected rows)"
