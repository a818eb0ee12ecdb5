"""Scoring: every row exactly once with everything it came with, whatever is bad, in the way or killed on the way."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_runs import Trained, actors_of, finished, read_rows, refusal, run_job, started, wait_for

from jobs import score
from sentiment.bundle import Bundle
from sentiment.data.synthetic import tweets, write_archive
from sentiment.predictor import Predictor
from sentiment.schema import LABELS, REJECTED_SCHEMA, SCORE_FIELDS

pytestmark = pytest.mark.usefixtures("ray_cluster")

PLAIN, PACKED, TABLE, COLUMNS = "plain.jsonl", "packed.jsonl.gz", "table.csv", "columns.parquet"
ARCHIVE_ROWS, TABLE_ROWS = 1_150, 60
# The start of the reason that the readers give for each way in which a line of the synthetic archive is bad.
REASON_OF = {
    "broken_json": "not valid JSON",
    "text_null": "no text",
    "text_missing": "no text",
    "text_blank": "no text",
    "text_not_string": "text is a number",
    "invalid_utf8": "not valid UTF-8",
}


@dataclass(frozen=True)
class Scored:
    """One scored folder of many formats."""

    inputs: Path
    output: Path
    result: dict[str, Any]
    bad: Counter[str]


def address_of(row: dict[str, Any]) -> tuple[str, int]:
    return Path(row["source_file"]).name, row["source_row"]


@pytest.fixture(scope="module")
def scored(ray_cluster: str, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """An archive of four files, two of which name the text in another way and one of which has labels, scored."""
    inputs, output = tmp_path_factory.mktemp("archive"), tmp_path_factory.mktemp("scored") / "out"
    plain = write_archive(inputs / PLAIN, ARCHIVE_ROWS, seed=21)
    packed = write_archive(inputs / PACKED, ARCHIVE_ROWS, seed=22)
    made = [tweet.text for tweet in tweets(2 * TABLE_ROWS, seed=23)]
    with (inputs / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "tweet", "note"])
        writer.writerows([number, text, f"keep {number}"] for number, text in enumerate(made[:TABLE_ROWS]))
    columns = {
        "text": pa.array(made[TABLE_ROWS:]),
        "likes": pa.array(range(TABLE_ROWS), pa.int64()),
        "score": pa.array([number / 8 for number in range(TABLE_ROWS)], pa.float64()),
        "source_row": pa.array([f"theirs {number}" for number in range(TABLE_ROWS)]),
    }
    pq.write_table(pa.table(columns), inputs / COLUMNS)
    result = run_job(
        score.JOB,
        *("--model", trained.bundle, "--input", inputs, "--output", output),
        *("--precision", "float32", "--num-actors", 2, "--batch-rows", 512, "--rows-per-file", 700),
    )
    return Scored(inputs, output, result, Counter(plain.bad) + Counter(packed.bad))


def test_counts_add_up(scored: Scored, trained: Trained) -> None:
    result = scored.result
    assert {"rows_in", "rows_scored", "rows_rejected", "rows_per_s", "output", "model_id"} <= result.keys()
    assert result["rows_in"] == result["rows_scored"] + result["rows_rejected"] == 2 * (ARCHIVE_ROWS + TABLE_ROWS)
    assert result["rows_rejected"] == scored.bad.total() > 0
    assert read_rows(scored.output / "scored").num_rows == result["rows_scored"]
    assert read_rows(scored.output / "rejected").num_rows == result["rows_rejected"]
    assert result["model_id"] == trained.result["model_id"]
    assert result["rows_per_s"] > 0


def test_every_row_is_there_once(scored: Scored) -> None:
    rows = [
        address_of(row)
        for folder in ("scored", "rejected")
        for row in read_rows(scored.output / folder).select(["source_file", "source_row"]).to_pylist()
    ]
    expected = {(name, number) for name in (PLAIN, PACKED) for number in range(ARCHIVE_ROWS)}
    expected |= {(name, number) for name in (TABLE, COLUMNS) for number in range(TABLE_ROWS)}
    assert len(rows) == len(expected)
    assert set(rows) == expected


def test_columns_come_through(scored: Scored) -> None:
    found = {address_of(row): row for row in read_rows(scored.output / "scored").to_pylist()}
    packed = gzip.decompress((scored.inputs / PACKED).read_bytes())
    for name, content in ((PLAIN, (scored.inputs / PLAIN).read_bytes()), (PACKED, packed)):
        lines = content.split(b"\n")
        numbers = [number for file, number in found if file == name]
        for number in numbers:
            came = json.loads(lines[number])
            assert came == {key: found[name, number][key] for key in came}
    made = [tweet.text for tweet in tweets(2 * TABLE_ROWS, seed=23)]
    for number in range(TABLE_ROWS):
        row = found[TABLE, number]
        assert (row["input_label"], row["tweet"], row["note"]) == (str(number), made[number], f"keep {number}")
        assert row["text"] is row["id_str"] is row["likes"] is None
        row = found[COLUMNS, number]
        assert (row["text"], row["likes"]) == (made[TABLE_ROWS + number], number)
        assert (row["input_score"], row["input_source_row"]) == (number / 8, f"theirs {number}")


def test_added_columns_are_as_promised(scored: Scored, trained: Trained) -> None:
    rows = read_rows(scored.output / "scored")
    for field in SCORE_FIELDS:
        assert rows.schema.field(field.name).equals(field)
    assert rows["model_id"].unique().to_pylist() == [trained.result["model_id"]]
    for row in rows.select(["label", "score", "p_positive"]).to_pylist():
        p_positive = row["p_positive"]
        assert 0 <= p_positive <= 1
        assert row["label"] == LABELS[p_positive >= 0.5]
        assert row["score"] == pytest.approx(max(p_positive, 1 - p_positive), abs=1e-6)
    assert set(rows["label"].to_pylist()) == set(LABELS)


def test_scores_are_the_predictors(scored: Scored, trained: Trained) -> None:
    rows = read_rows(scored.output / "scored").to_pylist()
    texts = [row["tweet"] if row["text"] is None else row["text"] for row in rows]
    predictions = Predictor.load(trained.bundle, use_gpu=False, precision="float32").predict(texts)
    # Other batches, so other orders of summing: float32 leaves 1e-7, the predictor promises 1e-5.
    assert [row["p_positive"] for row in rows] == pytest.approx([p.p_positive for p in predictions], abs=1e-5)
    sure = [at for at, prediction in enumerate(predictions) if abs(prediction.p_positive - 0.5) > 1e-5]
    assert [rows[at]["label"] for at in sure] == [predictions[at].label for at in sure]


def test_rejected_rows_have_reasons(scored: Scored) -> None:
    rejected = read_rows(scored.output / "rejected")
    assert rejected.schema.equals(REJECTED_SCHEMA)
    found = Counter(
        next(start for start in REASON_OF.values() if row["reason"].startswith(start)) for row in rejected.to_pylist()
    )
    expected: Counter[str] = Counter()
    for kind, count in scored.bad.items():
        expected[REASON_OF[kind]] += count
    assert found == expected
    assert all(row["line"] == row["source_row"] + 1 for row in rejected.to_pylist())


def test_manifest_is_true_and_last(scored: Scored) -> None:
    path, success = scored.output / "manifest.json", scored.output / "_SUCCESS"
    manifest = json.loads(path.read_text())
    assert {name: manifest[name] for name in scored.result} == scored.result
    assert manifest["renamed_columns"] == {
        "label": "input_label",
        "score": "input_score",
        "source_row": "input_source_row",
    }
    rejected = Counter(Path(row["source_file"]).name for row in read_rows(scored.output / "rejected").to_pylist())
    rows = {PLAIN: ARCHIVE_ROWS, PACKED: ARCHIVE_ROWS, TABLE: TABLE_ROWS, COLUMNS: TABLE_ROWS}
    assert [(Path(line["path"]).name, line["rows"], line["rejected"]) for line in manifest["inputs"]] == [
        (name, rows[name], rejected[name]) for name in sorted(rows)
    ]
    labels = Counter(read_rows(scored.output / "scored")["label"].to_pylist())
    assert {label: said["rows"] for label, said in manifest["labels"].items()} == labels
    assert sum(manifest["p_positive_histogram"]) == manifest["rows_scored"]
    assert sum(manifest["rejected_by_reason"].values()) == manifest["rows_rejected"]
    others = [file for file in scored.output.rglob("*") if file.is_file() and file not in (path, success)]
    assert success.stat().st_mtime_ns >= path.stat().st_mtime_ns >= max(file.stat().st_mtime_ns for file in others)
    assert not [file.name for file in others if file.name.startswith(".") or file.name == "lock.json"], "left over"
    assert len(list((scored.output / "scored").glob("*.parquet"))) > 1


def test_tampered_bundle_is_refused(scored: Scored, trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    weights = tmp_path / "bundle" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    flags = ("--model", tmp_path / "bundle", "--input", scored.inputs, "--output", tmp_path / "out")
    assert str(weights) in refusal(score.JOB, *flags)
    weights.unlink()
    assert str(weights) in refusal(score.JOB, *flags)
    (tmp_path / "bundle" / "MANIFEST.json").unlink()
    assert "MANIFEST.json" in refusal(score.JOB, *flags)
    assert not (tmp_path / "out").exists()


def test_unknown_text_column_is_refused(scored: Scored, trained: Trained, tmp_path: Path) -> None:
    message = refusal(
        score.JOB,
        *("--model", trained.bundle, "--input", scored.inputs / TABLE, "--output", tmp_path / "out"),
        *("--text-column", "txet"),
    )
    assert all(repr(name) in message for name in ("txet", "label", "tweet", "note"))
    assert not (tmp_path / "out").exists()


def test_archive_of_bad_rows_alone(trained: Trained, tmp_path: Path) -> None:
    # The first and the last line say nothing that is left after normalizing; only the model's side finds that out.
    lines = ['{"text": "\\u200b \\u0007"}', '{"text": " "}', '{"text": null}', "{", '{"text": "\\u0000"}']
    (tmp_path / "bad.jsonl").write_text("".join(line + "\n" for line in lines))
    message = refusal(
        score.JOB,
        *("--model", trained.bundle, "--input", tmp_path / "bad.jsonl", "--output", tmp_path / "out"),
        *("--num-actors", 1),
    )
    assert f"no row could be scored: no text (4 of 5 rejected rows); {tmp_path}/out/rejected has them all" in message
    rejected = read_rows(tmp_path / "out" / "rejected").sort_by("source_row")
    assert [reason[:14] for reason in rejected["reason"].to_pylist()] == ["no text"] * 3 + ["not valid JSON", "no text"]
    assert not list((tmp_path / "out" / "scored").glob("*.parquet"))
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_one_cpu_is_enough(trained: Trained, tmp_path: Path) -> None:
    # On its own embedded Ray: were the actor to take the whole CPU, the read would wait for ever.
    for name in ("one", "two"):
        write_archive(tmp_path / "in" / f"{name}.jsonl", 300, seed=24)
    done = finished(
        "score",
        *("--model", trained.bundle, "--input", tmp_path / "in", "--output", tmp_path / "out", "--num-cpus", 1),
        address=None,
        timeout_s=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows_in"] == 600


@pytest.mark.chaos
def test_killed_actor_loses_no_row(ray_cluster: str, trained: Trained, tmp_path: Path) -> None:
    rows = 12_000
    with (tmp_path / "long.jsonl").open("w", encoding="utf-8") as file:
        texts = [tweet.text for tweet in tweets(200, seed=25)]
        for number in range(rows):
            text = " ".join(texts[(number + step) % len(texts)] for step in range(12))
            file.write(json.dumps({"number": number, "text": text}) + "\n")
    with started(
        "score",
        *("--model", trained.bundle, "--input", tmp_path / "long.jsonl", "--output", tmp_path / "out"),
        *("--num-actors", 2, "--batch-rows", 256, "--rows-per-file", 500),
        address=ray_cluster,
    ) as process:
        wait_for("first file", lambda: list((tmp_path / "out" / "scored").glob("*.parquet")), process)
        actors = [actor for actor in actors_of(process, "MapWorker") if actor["State"] == "ALIVE"]
        os.kill(actors[0]["Pid"], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        assert sum(actor["NumRestarts"] for actor in actors_of(process, "MapWorker")) == 1, "killed too late"
    assert json.loads(stdout)["rows_scored"] == rows
    found = read_rows(tmp_path / "out" / "scored")
    assert sorted(found["source_row"].to_pylist()) == sorted(found["number"].to_pylist()) == list(range(rows))
    assert found["model_id"].unique().to_pylist() == [Bundle.open(trained.bundle).model_id]
