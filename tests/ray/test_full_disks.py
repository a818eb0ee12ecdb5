"""Disks that fill up: jobs say so in one line, what is there stays readable, and the same command resumes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from job_runs import REPOSITORY, Trained, environment, only_line, read_rows

# A disk that fills up and is then made larger, one that only fills up, and one that is too small for anything; $0 is
# where, the rest the job.
RUN = """
run() {  # again where Ray itself doesn't come up within its 30 s, as on a busy machine
  name=$1; shift; while "$@" >$name.out 2>$name.err; code=$?; grep -q "timed out during startup" $name.err; do :; done
  echo $code; cp -r $0 $name
}
mount -t tmpfs -o size=200k tmpfs $0; run first "$@"
"""
FILLS_UP = RUN + 'mount -o remount,size=64m $0; run second "$@"\n'
IS_FULL = 'mount -t tmpfs -o size=4k tmpfs $0; "$@" >first.out 2>first.err; echo $?'


def on_a_small_disk(script: str, folder: Path, address: str | None, job: str, *flags: object) -> list[str]:
    """Run a script with a job in `folder`, in a mount namespace of its own; gives the exit codes that it prints."""
    if subprocess.run("unshare -m mount -t tmpfs tmpfs /tmp", shell=True, capture_output=True, check=False).returncode:
        pytest.skip("a small disk takes `unshare -m` and `mount`, which aren't permitted here")
    (folder / "disk").mkdir()
    command = ["sh", "-c", script, folder / "disk", sys.executable, REPOSITORY / "jobs" / f"{job}.py", *map(str, flags)]
    how: dict[str, Any] = {"cwd": folder, "env": environment(address), "start_new_session": True}
    with subprocess.Popen(["unshare", "-m", *command], stdout=subprocess.PIPE, text=True, **how) as process:
        try:
            return process.communicate(timeout=240)[0].split()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def write_archive(path: Path, rows: int) -> Path:
    """Write rows that don't compress."""
    lines = [{"text": f"so lovely {os.urandom(40).hex()}", "label": number % 2} for number in range(rows)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def said(folder: Path) -> str:
    """What the first run says."""
    return only_line((folder / "first.err").read_text())


@pytest.mark.chaos
def test_scoring_onto_a_disk_that_fills_up(trained: Trained, tmp_path: Path) -> None:
    inputs = write_archive(tmp_path / "a.jsonl", 4000)
    flags = ("--model", trained.bundle, "--input", inputs, "--output", tmp_path / "disk" / "out")
    flags = (*flags, "--num-actors", 1, "--rows-per-file", 200, "--num-cpus", 1)
    codes = on_a_small_disk(FILLS_UP, tmp_path, None, "score", *flags)
    assert codes == ["2", "0"], "".join(file.read_text() for file in tmp_path.glob("*.err"))
    for words in ("can't write the output", "No space left on device", "same command resumes"):
        assert words in said(tmp_path)
    before, after = (read_rows(tmp_path / run / "out" / "scored") for run in ("first", "second"))
    assert 400 <= before.num_rows < 4000, "readable, each of them"
    assert sorted(after["source_row"].to_pylist()) == list(range(4000))
    assert not list((tmp_path / "second" / "out" / "scored").glob(".*")), "left over"


@pytest.mark.chaos
def test_preparing_onto_a_disk_that_fills_up(tmp_path: Path) -> None:
    inputs = write_archive(tmp_path / "a.jsonl", 4000)
    flags = ("--input", inputs, "--output", tmp_path / "disk" / "out", "--num-cpus", 1)
    codes = on_a_small_disk(RUN, tmp_path, None, "prepare", *flags)
    assert codes == ["2"], (tmp_path / "first.err").read_text()
    *_, last = (tmp_path / "first.err").read_text().splitlines()
    for words in ("can't write to", "No space left on device", "--overwrite"):
        assert words in last


def test_disk_that_is_full_already(ray_cluster: str, trained: Trained, tmp_path: Path) -> None:
    inputs = write_archive(tmp_path / "a.jsonl", 1)
    flags = ("--model", trained.bundle, "--input", inputs, "--output", tmp_path / "disk" / "out", "--num-actors", 1)
    codes = on_a_small_disk(IS_FULL, tmp_path, ray_cluster, "score", *flags)
    assert codes == ["2"], (tmp_path / "first.err").read_text()
    assert "No space left on device" in said(tmp_path)
