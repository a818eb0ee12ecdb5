"""What a row takes: in the object store, in Parquet, in the driver of prepare, in a training worker."""

from __future__ import annotations

import functools
import gzip
import json
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scale_driver import timed, traced
from score_archive import archive_of, texts_of
from turns import ROOT

from sentiment.batching import LengthBucketedBatches
from sentiment.corpora.cleaning import Survey, clean
from sentiment.corpora.files import read_file
from sentiment.corpora.folder import Folder
from sentiment.corpora.parts import PartWriter
from sentiment.corpora.planning import ReadPlan, plan
from sentiment.corpora.prepared import PreparedData
from sentiment.corpora.shards import Shard, group_shards, shards_of
from sentiment.predictor import labels_and_scores
from sentiment.schema import IDS, LABEL, MODEL_ID, P_POSITIVE, ROW_ID, SCORE, SCORE_FIELDS, SCORE_LABEL, SCORED
from sentiment.schema import SOURCE_FIELDS as SOURCE
from sentiment.text import normalise
from sentiment.tokenizers import WordTokenizer

# Tokens of a tweet: the mean that docs/results/scoring.json has, rounded up.
_TOKENS = 16
_MODEL_ID = "bilstm-06fc983c1f7d"


def shards(folder: Path, texts: Path, rows: int, rows_per_shard: Sequence[int]) -> dict[str, Any]:
    """Read an archive as shards and write them as scored ones: bytes a row, and rows/s of one process.

    Scores are drawn, not computed: they take as much as real ones.
    """
    figures: dict[str, Any] = {"rows": rows, "shards": {}, "read": {}}
    archive = archive_of(texts, rows, folder)
    figures["input_bytes_per_row"] = round(archive.stat().st_size / rows, 1)
    for wanted in rows_per_shard:
        figures["shards"][str(wanted)] = _one_size(folder / str(wanted), archive, wanted)
    for path in (archive, *_other_forms(archive, folder)):
        reads = plan([str(path)])
        started = time.perf_counter()
        found = sum(shard.table.num_rows for shard in _shards(reads, 65_536))
        assert found == rows
        rate = round(rows / (time.perf_counter() - started))
        figures["read"]["".join(path.suffixes)[1:]] = {"rows_per_s": rate, "bytes": path.stat().st_size}
    return figures


def _one_size(output: Path, archive: Path, rows_per_shard: int) -> dict[str, Any]:
    reads = plan([str(archive)], reserved=[field.name for field in SCORE_FIELDS])
    schema = pa.schema([*reads.columns, *SOURCE, *SCORE_FIELDS])
    writer = PartWriter(Folder(str(output)), "0123456789ab", {SCORED: schema})
    writer.make_folders()
    memory, count, largest, rows = 0, 0, 0, 0
    for shard in _shards(reads, rows_per_shard):
        writer.write(shard.name, {SCORED: _scored(shard.table)})
        memory, count, rows = memory + shard.table.nbytes, count + 1, rows + shard.table.num_rows
        largest = max(largest, shard.table.nbytes)
    written = sum(path.stat().st_size for path in (output / SCORED).iterdir())
    return {
        "files": count,
        "rows_per_shard": round(rows / count),
        "memory_bytes_per_row": round(memory / rows, 1),
        "largest_shard_mb": round(largest / 1e6, 1),
        "output_bytes_per_row": round(written / rows, 1),
    }


def _shards(reads: ReadPlan, rows_per_shard: int) -> list[Shard]:
    return [shard for group in group_shards(reads, rows_per_shard) for shard in shards_of(group, reads)]


def _scored(table: pa.Table) -> pa.Table:
    p_positive = np.random.default_rng(1).beta(0.5, 0.5, table.num_rows).astype(np.float32)
    labels, scores = labels_and_scores(p_positive)
    added = {SCORE_LABEL: pa.array(labels), SCORE: pa.array(scores), P_POSITIVE: pa.array(p_positive)}
    for name, column in {**added, MODEL_ID: pa.repeat(_MODEL_ID, table.num_rows)}.items():
        table = table.append_column(name, column)
    return table


def _other_forms(archive: Path, folder: Path) -> list[Path]:
    """The same rows as JSON lines, plain and gzipped, and as csv."""
    table = pq.read_table(archive)
    lines = folder / "rows.jsonl"
    with lines.open("w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
    zipped = folder / "rows.jsonl.gz"
    with lines.open("rb") as source, gzip.open(zipped, "wb", compresslevel=6) as sink:
        shutil.copyfileobj(source, sink)
    return [lines, zipped, archive_of(archive, table.num_rows, folder, "csv")]


def prepare(texts: Path, rows: int) -> dict[str, Any]:
    """What jobs/prepare.py holds of a row: the driver while it looks for duplicates, the object store meanwhile."""
    random = np.random.default_rng(1)

    def survey() -> Survey:
        numbers = [np.arange(rows), random.integers(0, 2, rows), random.integers(-(2**62), 2**62, rows)]
        return Survey(*numbers, random.integers(0, 3, rows), np.zeros(rows, bool), Counter())

    held, _ = traced(survey)
    of_all = survey()
    figures: dict[str, Any] = {"rows": rows, "survey_bytes_per_row": round(held / rows, 1)}
    with timed(figures, "duplicates_s"):
        duplicates = of_all.duplicates()
    _, peak = traced(of_all.duplicates)
    _, balance = traced(lambda: of_all.balance(duplicates))
    figures["driver_bytes_per_row"] = round((held + max(peak, balance)) / rows, 1)
    reads = plan([str(texts)], label_column=None)
    cleaned = functools.partial(clean, numbers={str(file.path): 0 for file in reads.files}, shares=(0.05, 0.1), seed=1)
    found, size = 0, 0
    for table in read_file(reads.files[0], reads):
        made = cleaned(table.append_column("__label", pa.repeat(pa.scalar(1, pa.int8()), table.num_rows)))
        found, size = found + made.num_rows, size + made.nbytes
    figures["store_bytes_per_row"] = round(size / found, 1)
    normalised = [normalise(text) for text in texts_of(texts)]
    with timed(figures, "vocabulary_s"):
        WordTokenizer.train(normalised)
    figures["vocabulary_rows_per_s"] = round(len(normalised) / figures["vocabulary_s"])
    return figures


def train(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """What a training worker holds of a row: the slope between two sizes, each in a process of its own."""
    runs = []
    for rows in sizes:
        command = [sys.executable, str(Path(__file__)), str(folder / f"prepared-{rows}"), str(rows)]
        done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE)
        runs.append(json.loads(done.stdout))
    small, large = runs[0], runs[-1]
    more = large["rows"] - small["rows"]
    slopes = {name: round((large[name] - small[name]) / more, 1) for name in ("held_bytes", "peak_bytes")}
    return {"tokens_per_row": _TOKENS, "per_row": slopes, "runs": runs}


def _worker(folder: Path, rows: int) -> dict[str, Any]:
    _prepared(folder, rows)
    data = PreparedData(folder)
    before = _resident()
    started = time.perf_counter()
    batches = LengthBucketedBatches(data.examples("train"), batch_size=128, pad_id=1, max_length=256)
    loaded_s = time.perf_counter() - started
    held = _resident() - before
    next(iter(batches.epoch(0)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shutil.rmtree(folder)
    return {"rows": rows, "load_s": round(loaded_s, 2), "held_bytes": held, "peak_bytes": peak - before}


def _prepared(folder: Path, rows: int, rows_per_file: int = 100_000) -> None:
    """A train split of made-up ids, written in small pieces: the writer must not be what the peak shows."""
    (folder / "train").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    random = np.random.default_rng(1)
    for start in range(0, rows, rows_per_file):
        count = min(rows_per_file, rows - start)
        offsets = np.concatenate([[0], np.cumsum(random.integers(2, 2 * _TOKENS - 1, count))]).astype(np.int32)
        ids = pa.array(random.integers(0, 25_000, int(offsets[-1])).astype(np.int32))
        columns = {
            ROW_ID: pa.array(np.arange(start, start + count)),
            LABEL: pa.array(random.integers(0, 2, count).astype(np.int8)),
            IDS: pa.ListArray.from_arrays(pa.array(offsets), ids),
        }
        pq.write_table(pa.table(columns), folder / "train" / f"part-{start:09}.parquet", compression="zstd")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    print(json.dumps(_worker(Path(sys.argv[1]), int(sys.argv[2]))))
