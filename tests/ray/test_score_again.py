"""An output that is there already: gone on with, left alone, refused or replaced; and what its folders look like."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pytest
from job_runs import Trained, call_job, read_rows, refusal, run_job

from jobs import score
from sentiment.data.read_plan import plan
from sentiment.data.synthetic import tweets

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROWS = 120


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files; every tenth row has no text, the last row of the second isn't JSON."""
    folder = tmp_path_factory.mktemp("archive")
    texts = [tweet.text for tweet in tweets(ROWS, seed=31)]
    lines = [
        json.dumps({"key": f"k{at}", "lang": "en" if at % 3 else None, "text": text if at % 10 else " "})
        for at, text in enumerate(texts)
    ]
    (folder / "a.jsonl").write_text("".join(f"{line}\n" for line in lines[: ROWS // 2]))
    (folder / "b.jsonl").write_text("".join(f"{line}\n" for line in lines[ROWS // 2 :]) + "{\n")
    return folder


def flags(trained: Trained, archive: Path, output: Path, *more: object) -> tuple[object, ...]:
    shared = ("--rows-per-file", 25, "--num-actors", 1, "--precision", "float32")
    return ("--model", trained.bundle, "--input", archive, "--output", output, *shared, *more)


@pytest.fixture(scope="module")
def scored(trained: Trained, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, scored, with folders by label and language and an id column."""
    output = tmp_path_factory.mktemp("scored") / "out"
    more = ("--partition-by", "label", "lang", "--id-column", "key")
    result = run_job(score.JOB, *flags(trained, archive, output, *more))
    assert (result["rows_in"], result["rows_rejected"]) == (ROWS + 1, ROWS // 10 + 1)
    return output


def test_partitions_read_back(scored: Path) -> None:
    table = pyarrow.dataset.dataset(scored / "scored", partitioning="hive").to_table()
    assert sorted(table["key"].to_pylist()) == sorted(f"k{at}" for at in range(ROWS) if at % 10)
    for row in table.to_pylist():
        assert row["lang"] == ("en" if int(row["key"][1:]) % 3 else None)
        assert row["label"] == ("POSITIVE" if row["p_positive"] >= 0.5 else "NEGATIVE")
    assert {path.name for path in (scored / "scored").iterdir()} == {"label=POSITIVE", "label=NEGATIVE"}


def test_rejected_rows_keep_their_id(scored: Path) -> None:
    rejected = read_rows(scored / "rejected").to_pylist()
    assert {row["id"] for row in rejected if row["id"]} == {f"k{at}" for at in range(0, ROWS, 10)}
    assert [row["reason"][:14] for row in rejected if row["id"] is None] == ["not valid JSON"]


def test_finished_run_is_left_alone(scored: Path, trained: Trained, archive: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in scored.rglob("*")}
    more = ("--partition-by", "label", "lang", "--id-column", "key", "--num-actors", 2)
    code, stdout, stderr = call_job(score.JOB, *flags(trained, archive, scored, *more))
    assert (code, json.loads(stdout)["rows_in"]) == (0, ROWS + 1)
    assert "is complete: nothing to do" in stderr
    assert {path: path.stat().st_mtime_ns for path in scored.rglob("*")} == before


def test_another_run_is_refused(scored: Path, trained: Trained, archive: Path, tmp_path: Path) -> None:
    more = ("--partition-by", "label", "lang", "--id-column", "key")
    message = refusal(
        score.JOB, *flags(trained, archive, scored, *more, "--sort-window-rows", 64, "--id-column", "lang")
    )
    assert "--sort-window-rows is 64 now, was 4096" in message
    assert "--id-column is lang now, was key" in message
    message = refusal(score.JOB, *flags(trained, archive / "a.jsonl", scored, *more))
    assert f"{archive}/b.jsonl is gone" in message
    assert all(words in message for words in ("name another --output", "--overwrite"))
    shutil.copytree(archive, tmp_path / "in")
    message = refusal(score.JOB, *flags(trained, tmp_path / "in", scored, *more))
    assert "is new" in message


def test_lost_file_is_found_out_and_mended(trained: Trained, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_job(score.JOB, *flags(trained, archive, output))
    before = read_rows(output / "scored")
    lost = sorted((output / "scored").glob("*.parquet"))[1]
    lost.unlink()
    (output / "_SUCCESS").unlink()
    assert f"scored/{lost.name} is missing" in refusal(score.JOB, *flags(trained, archive, output))
    assert not (output / "_SUCCESS").exists()
    (output / "_run" / "done" / f"{lost.stem.removeprefix('part-')}.json").unlink()
    code, stdout, stderr = call_job(score.JOB, *flags(trained, archive, output))
    assert code == 0, stderr
    assert "resuming: " in stderr
    assert json.loads(stdout)["rows_in"] == ROWS + 1
    # In the order of the input, and the same to the last bit.
    assert read_rows(output / "scored").equals(before)
    assert before["key"].to_pylist() == [f"k{at}" for at in range(ROWS) if at % 10]


def test_overwrite_starts_clean(scored: Path, trained: Trained, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(scored, output)
    run_job(score.JOB, *flags(trained, archive, output, "--overwrite"))
    assert read_rows(output / "scored").num_rows == ROWS - ROWS // 10
    assert json.loads((output / "manifest.json").read_text())["attempts"] == 1
    (output / "notes.txt").write_text("mine")
    assert "notes.txt" in refusal(score.JOB, *flags(trained, archive, output, "--overwrite"))


def test_columns_that_are_not_there(trained: Trained, archive: Path, tmp_path: Path) -> None:
    for flag in ("--partition-by", "--id-column"):
        message = refusal(score.JOB, *flags(trained, archive, tmp_path / "out", flag, "nope"))
        assert all(repr(word) in message or word in message for word in ("nope", "key", "lang"))
    (tmp_path / "wide.csv").write_text("text\n" + "".join(f"word{at}\n" for at in range(300)))
    more = ("--rows-per-file", 1000, "--partition-by", "text")
    message = refusal(score.JOB, *flags(trained, tmp_path / "wide.csv", tmp_path / "out", *more))
    assert "300 folders for 300 rows" in message


def test_strings_and_numbers_share_a_column(trained: Trained, tmp_path: Path) -> None:
    """`rows_in` counts both, whichever file decides the type."""
    (tmp_path / "in").mkdir()
    pyarrow.parquet.write_table(pa.table({"text": ["lovely day"], "n": [1]}), tmp_path / "in" / "a.parquet")
    pyarrow.parquet.write_table(pa.table({"text": ["awful day"], "n": ["x"]}), tmp_path / "in" / "b.parquet")
    result = run_job(score.JOB, *flags(trained, tmp_path / "in", tmp_path / "out"))
    assert result["rows_scored"] == 2
    assert sorted(read_rows(tmp_path / "out" / "scored")["n"].to_pylist()) == ["1", "x"]


def test_a_file_that_changes_under_way_is_told(
    trained: Trained, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(archive, tmp_path / "in")

    def plan_then_change(*args: object, **how: object) -> object:
        reads = plan(*args, **how)
        with (tmp_path / "in" / "b.jsonl").open("a") as file:
            file.write('{"text": "one more"}\n')
        return reads

    monkeypatch.setattr("sentiment.scoring.pipeline.plan", plan_then_change)
    message = refusal(score.JOB, *flags(trained, tmp_path / "in", tmp_path / "out"))
    assert "b.jsonl changed while it was read" in message
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_file_that_goes_away_is_no_rejected_row(
    trained: Trained, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(archive, tmp_path / "in")
    output, gone, kept = tmp_path / "out", tmp_path / "in" / "b.jsonl", tmp_path / "b.jsonl"

    def plan_then_lose(*args: object, **how: object) -> object:
        reads = plan(*args, **how)
        gone.rename(kept)
        return reads

    with monkeypatch.context() as patched:
        patched.setattr("sentiment.scoring.pipeline.plan", plan_then_lose)
        message = refusal(score.JOB, *flags(trained, tmp_path / "in", output))
    assert "b.jsonl can't be read now" in message
    assert "once that is mended, the same command resumes the run" in message
    kept.rename(gone)
    assert run_job(score.JOB, *flags(trained, tmp_path / "in", output))["rows_in"] == ROWS + 1
