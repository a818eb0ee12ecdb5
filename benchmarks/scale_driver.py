"""What the driver of a scoring run does for each input file and each shard, measured without Ray or a model."""

from __future__ import annotations

import gc
import json
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.scoring_progress import ScoringBoard
from jobs.scoring_run import Identity
from sentiment.corpora.folder import Folder
from sentiment.corpora.inputs import list_inputs
from sentiment.corpora.parts import Part, PartWriter, Report, ShardReport, check_parts, read_reports
from sentiment.corpora.planning import plan
from sentiment.corpora.shards import default_rows, group_shards, shard_name
from sentiment.corpora.synthetic import tweets
from sentiment.schema import SCORE_FIELDS, SCORED

# Rows of a generated input file: enough for the sample of 256 KiB that planning reads of a text file.
_FILE_ROWS = 2_000
# Memory is traced over fewer: tracing slows Python down.
_TRACED = 2_000
_TAG = "0123456789ab"


@contextmanager
def timed(into: dict[str, Any], name: str) -> Iterator[None]:
    """Note the seconds that a block takes."""
    started = time.perf_counter()
    yield
    into[name] = round(time.perf_counter() - started, 4)


def traced(make: Callable[[], object]) -> tuple[int, int]:
    """Bytes that what a function returns holds, and the most that was held while it was made."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = make()
    gc.collect()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return now - before, peak - before


def planning(folder: Path, form: str, files: int) -> dict[str, Any]:
    """Plan an archive of many files.

    They are links to one file: what is measured is the driver's work, not the disk's.

    Args:
        folder: Where they are made.
        form: parquet or jsonl.
        files: How many.
    """
    names = _links(_input_file(folder / f"one.{form}"), folder / form, files)
    figures: dict[str, Any] = {"files": files}
    with timed(figures, "list_s"):
        list_inputs([str(folder / form)])
    reserved = [field.name for field in SCORE_FIELDS]
    with timed(figures, "plan_s"):
        reads = plan([str(folder / form)], reserved=reserved)
    with timed(figures, "identity_s"):
        identity = Identity.of(reads, "model", {})
    with timed(figures, "group_s"):
        group_shards(reads, default_rows(reads, 2))
    figures["run_json_bytes"] = len(json.dumps(vars(identity), indent=2))
    line = {"path": reads.files[0].path, "bytes": reads.files[0].size_bytes, "rows": _FILE_ROWS, "rejected": 0}
    figures["manifest_bytes_per_file"] = len(json.dumps({"inputs": [line]}, indent=2))
    few = [str(name) for name in names[:_TRACED]]
    held, _ = traced(lambda: (held := plan(few, reserved=reserved), Identity.of(held, "model", {})))
    figures["bytes_per_file"] = round(held / len(few))
    return figures


def reports(folder: Path, shards: int) -> dict[str, Any]:
    """Write and read the reports of many shards, add them up, and hold the files against them."""
    output, schema = Folder(str(folder / "scored-archive")), pa.schema([pa.field("id", pa.int64())])
    writer = PartWriter(output, _TAG, {SCORED: schema})
    writer.make_folders()
    made = [_report(number) for number in range(shards)]
    figures: dict[str, Any] = {"shards": shards, "bytes_per_report": len(made[-1].to_json().encode())}
    with timed(figures, "write_s"):
        for report in made:
            writer.report(shard_name(report.group, report.number), report)
    with timed(figures, "read_s"):
        found = read_reports(output, _TAG)
    assert len(found) == shards
    total = Report()
    with timed(figures, "add_s"):
        for report in found:
            total.add(report.report)
    del made, found
    one = folder / "part.parquet"
    pq.write_table(pa.table({"id": range(100)}, schema=schema), one)
    for path in total.parts:
        os.link(one, output.inner(path))
    with timed(figures, "check_s"):
        check_parts(output, (SCORED,), dict.fromkeys(total.parts, Part(100, one.stat().st_size)))
    text = _report(0).to_json()
    held, _ = traced(lambda: [ShardReport.from_json(text) for _ in range(_TRACED)])
    figures["bytes_per_shard"] = round(held / _TRACED)
    held, _ = traced(lambda: _board(_TRACED))
    figures["board_bytes_per_shard"] = round(held / _TRACED)
    return figures


def _input_file(path: Path) -> Path:
    """Tweets with ten columns, as an API gives them."""
    rows = [
        {
            "id": 1_200_000_000_000_000_000 + number,
            "text": tweet.text,
            "created_at": f"2021-03-{number % 28 + 1:02} 12:{number % 60:02}:00",
            "user": f"user_{number * 7919 % 100_003}",
            "lang": "en",
            "retweets": number % 13,
            "likes": number % 29,
            "replies": number % 5,
            "source": "Twitter for iPhone",
            "place": None,
        }
        for number, tweet in enumerate(islice(tweets(_FILE_ROWS), _FILE_ROWS))
    ]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _links(one: Path, folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    names = [folder / f"tweets-2021-{number:07}{one.suffix}" for number in range(count)]
    for name in names:
        os.link(one, name)
    return names


def _report(number: int) -> ShardReport:
    """As a shard of one large file has it; eleven shards to a file."""
    group, shard = divmod(number, 11)
    report = Report(
        scored=262_140,
        rejected=4,
        labels={"NEGATIVE": 131_070, "POSITIVE": 131_070},
        histogram=[13_107] * 20,
        reasons={"no text": 4},
        files={f"s3://bucket/archive/2021/tweets-2021-{group:07}.parquet": [262_144, 4]},
        parts={f"scored/part-{shard_name(group, shard)}-{_TAG}.parquet": Part(262_140, 12_345_678)},
    )
    return ShardReport(group, shard, shard == 10, report, 11_783_932)


def _board(shards: int) -> ScoringBoard:
    board = ScoringBoard(stored_bytes=shards * 1000, rows=0, rejected=0, bytes_done=0)
    for number in range(shards):
        name = shard_name(*divmod(number, 11))
        board.begin(name, 1e9 + number)
        board.shard(name, 262_144 + number, 4, 11_783_932 + number)
    return board
