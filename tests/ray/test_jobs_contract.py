"""The contract for scripts around us: stdout, stderr, exit codes and clusters, of jobs run as their users run them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_runs import Corpus, Trained, finished, job_of, only_line, started, wait_for
from test_watching import comes_to, series, value

MARKER = "xylophonist"


def write_marked(path: Path) -> int:
    """Write rows, good and bad in all ways, that all hold a word which must not show up on a terminal."""
    text = f"{MARKER} at breakfast, so lovely"
    lines = [json.dumps({"text": f"{text} {number}", "label": number % 2}).encode() for number in range(60)]
    lines += [
        f'{{"text": "{text}", "label": '.encode(),
        json.dumps({"text": [text], "label": 1}).encode(),
        json.dumps({"text": text, "label": MARKER}).encode(),
        json.dumps({"text": None, "label": 1, "note": text}).encode(),
        f'{{"text": "{MARKER} caf'.encode() + b'\xe9\xff", "label": 1}',
        f"{MARKER} and no JSON at all".encode(),
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return len(lines)


def test_score_prints_one_object_no_texts_and_is_counted(ray_cluster: str, trained: Trained, tmp_path: Path) -> None:
    rows = write_marked(tmp_path / "marked.jsonl")
    with started(
        "score",
        *("--model", trained.bundle, "--input", tmp_path / "marked.jsonl", "--output", tmp_path / "out"),
        *("--num-actors", 1),
        address=ray_cluster,
    ) as process:
        assert wait_for("job on the cluster that RAY_ADDRESS names", lambda: job_of(process), process)
        stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert stdout.count("\n") == 1
    assert json.loads(stdout)["rows_in"] == rows
    assert MARKER not in stdout + stderr
    assert "Traceback" not in stderr
    # What takes seconds is told before it begins.
    steps = ["loading PyTorch and Ray…", "checking the model and the input…", f"joining Ray at {ray_cluster}…"]
    steps += ["loading the model in 1 actor(s)…", "leaving Ray…"]
    assert [line for line in stderr.splitlines() if line.endswith("…")] == steps

    # The process ended right behind the last row, and didn't take its counts with it.
    manifest, run = json.loads((tmp_path / "out" / "manifest.json").read_text()), {"output": f"{tmp_path.name}/out"}
    comes_to(lambda: value("ray_sentiment_scoring_rows_total", **run), manifest["rows_scored"])
    stored_bytes = (tmp_path / "marked.jsonl").stat().st_size
    comes_to(lambda: value("ray_sentiment_scoring_input_bytes_total", **run), stored_bytes)
    by_reason = {(reason.split(":")[0].replace("…", "#"),): n for reason, n in manifest["rejected_by_reason"].items()}
    comes_to(lambda: series("ray_sentiment_scoring_rejected_rows_total", **run), by_reason)
    assert sum(by_reason.values()) == manifest["rows_rejected"] > 0


def test_prepare_prints_one_object_and_no_texts(ray_cluster: str, tmp_path: Path) -> None:
    rows = write_marked(tmp_path / "marked.jsonl")
    with started(
        "prepare",
        *("--input", tmp_path / "marked.jsonl", "--output", tmp_path / "out", "--address", ray_cluster),
        address=None,
    ) as process:
        assert wait_for("job on the cluster that --address names", lambda: job_of(process), process)
        stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert stdout.count("\n") == 1
    result = json.loads(stdout)
    assert (result["rows_in"], result["rejected"]) == (rows, 6)
    assert MARKER not in stdout + stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("job", "flags", "said"),
    [
        ("prepare", ["--input", "nowhere.csv", "--output", "OUT"], "nowhere.csv"),
        ("train_lstm", ["--data", "nowhere", "--output", "OUT"], "nowhere"),
        ("score", ["--model", "nowhere", "--input", "nowhere.csv", "--output", "OUT"], "nowhere"),
        ("evaluate", ["--model", "nowhere", "--inputt", "x", "--output", "OUT"], "--input"),
    ],
)
def test_mistake_is_one_line_and_exit_2(job: str, flags: list[str], said: str, tmp_path: Path) -> None:
    flags = [str(tmp_path / "out") if flag == "OUT" else flag for flag in flags]
    done = finished(job, *flags, address=None)
    assert (done.returncode, done.stdout) == (2, "")
    line = only_line(done.stderr)
    assert line.startswith(f"{job}: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_cluster_that_is_not_there_is_one_line_and_exit_2(corpus: Corpus, tmp_path: Path) -> None:
    # Nothing listens on port 1 of this machine.
    done = finished(
        "prepare",
        *("--input", corpus.folder, "--output", tmp_path / "out", "--address", "127.0.0.1:1"),
        address=None,
        timeout_s=120,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "127.0.0.1:1" in only_line(done.stderr)
