"""A scoring run on several Ray nodes of this machine whose actors have no model: what is left is what Ray and we add.

Run by `benchmarks/scale.py` in a process for each size: `python benchmarks/scale_nodes.py JSON`.

Planning, reading, actors, progress, Parquet files, reports and the last check are the job's own; only the tokenizer and
the forward pass are left out. The nodes share two cores, so shards/s here are those of two cores for everything; the
seconds of CPU that the driver's process takes for a shard are what a driver of its own would take.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster
from score_job import members

import jobs.ray_scoring
import sentiment.corpora.shards
from jobs.ray_scoring import Totals, score_archive
from jobs.scorer import Scorer
from jobs.scoring_progress import ScoringBoard
from jobs.scoring_run import Identity, ScoringRun
from sentiment.corpora.folder import Folder
from sentiment.corpora.planning import ReadPlan, plan
from sentiment.corpora.shards import Shard
from sentiment.schema import SCORE_FIELDS, SOURCE_FIELDS
from sentiment.session import ray_session
from sentiment.settings import RaySettings, ScoreSettings

_STORE_BYTES = 200 << 20
_BOARD_CALLS = 5_000
_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}


class IdleScorer(Scorer):
    """A scorer without a model: every row is as likely positive as not."""

    def _load(self) -> Any:
        return SimpleNamespace(model_id=self._work.model_id)

    def _forward(
        self, shard: Shard, texts: list[str | None], reasons: list[str | None], raws: list[str | None]
    ) -> npt.NDArray[np.float32]:
        self._board.shard.remote(shard.name, len(texts), 0, shard.stored_bytes)
        return np.full(len(texts), 0.5, dtype=np.float32)


def measure(nodes: int, cpus: int, files: int, shards: int, rows: int) -> dict[str, Any]:
    """Score an archive without a model.

    Args:
        nodes: Ray nodes.
        cpus: Logical CPUs, and so actors, of each.
        files: Input files, each a group.
        shards: Of each file.
        rows: Of each shard.
    """
    os.environ.update(_ENVIRONMENT)
    folder = Path(tempfile.mkdtemp(prefix="scale-nodes-"))
    sentiment.corpora.shards._GROUP_FILES = 1  # Small as they are, each file is a group, as a large one is.
    jobs.ray_scoring.Scorer = IdleScorer  # type: ignore[misc]
    cluster = Cluster(initialize_head=True, head_node_args=_node(cpus))
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**_node(cpus))
        with ray_session(RaySettings(address=cluster.address)):
            figures = {"nodes": nodes, "actors": nodes * cpus, "groups": files, "shards": files * shards}
            figures |= _run(folder, _archive(folder, files, shards * rows), rows)
            figures |= {"nodes_call_ms": _nodes_call_ms(), "board_cpu_us_per_call": _board_cpu_us_per_call()}
    finally:
        cluster.shutdown()
        shutil.rmtree(folder)
    return figures


def _node(cpus: int) -> dict[str, Any]:
    return {"num_cpus": cpus, "object_store_memory": _STORE_BYTES, "include_dashboard": False}


def _archive(folder: Path, files: int, rows: int) -> ReadPlan:
    """Links to one small Parquet file."""
    one = folder / "one.parquet"
    pq.write_table(pa.table({"id": range(rows), "text": [f"tweet number {at}" for at in range(rows)]}), one)
    (folder / "archive").mkdir()
    for number in range(files):
        os.link(one, folder / "archive" / f"tweets-{number:06}.parquet")
    return plan([str(folder / "archive")])


def _run(folder: Path, reads: ReadPlan, rows_per_shard: int) -> dict[str, Any]:
    output = Folder(str(folder / "scored"))
    settings = ScoreSettings(model="none", input=["none"], output=output.uri, precision="float32")
    driver, began_at = psutil.Process(), time.time()
    before, all_before = driver.cpu_times(), _cpu_s()
    run = ScoringRun(output, Identity.of(reads, "none", {}))
    columns = [*reads.columns, *SOURCE_FIELDS, *SCORE_FIELDS]
    totals: list[Totals] = []
    ends: list[float] = []

    def conclude(found: Totals) -> dict[str, Any]:
        totals.append(found)
        ends.append(time.time())
        return {}

    score_archive(reads, settings, run, columns, conclude, rows_per_file=rows_per_shard)
    after = driver.cpu_times()
    reported = sorted(entry.stat().st_mtime for entry in os.scandir(output.inner("_run/done")))
    shards = len(totals[0].report.parts)
    # The first quarter is the start: processes that load their modules.
    quarter = len(reported) // 4
    return {
        "run_s": round(ends[0] - began_at, 1),
        "driver_cpu_ms_per_shard": round(1e3 * (after.user + after.system - before.user - before.system) / shards, 2),
        "all_cpu_ms_per_shard": round(1e3 * (_cpu_s() - all_before) / shards, 2),
        "shards_per_s": round((len(reported) - quarter) / (reported[-1] - reported[quarter]), 1),
        "first_report_s": round(reported[0] - began_at, 1),
        "after_last_report_s": round(ends[0] - reported[-1], 2),
        "driver_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _cpu_s() -> float:
    """Of all processes of this session: driver, actors, and Ray's own."""
    total = 0.0
    for process in members(os.getsid(0)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def _nodes_call_ms() -> float:
    """What the driver's watch asks every two seconds."""
    started = time.perf_counter()
    for _ in range(20):
        ray.nodes()
    return round((time.perf_counter() - started) / 20 * 1e3, 2)


class _TimedBoard(ScoringBoard):
    def cpu_s(self) -> float:
        """Of the actor's process so far."""
        return time.process_time()


def _board_cpu_us_per_call() -> float:
    """What the progress actor takes for one call of a scorer."""
    board = ray.remote(_TimedBoard).options(num_cpus=0).remote(1, 0, 0, 0)
    before = ray.get(board.cpu_s.remote())
    for number in range(_BOARD_CALLS):
        board.shard.remote(f"{number:06}", 4096, 0, 1)
    cpu_s: float = ray.get(board.cpu_s.remote()) - before
    ray.kill(board)
    return round(cpu_s / _BOARD_CALLS * 1e6)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
