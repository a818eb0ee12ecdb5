"""A scoring run and its folder: the same command resumes it, another one is refused, and two never work at once."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sentiment.data.read_plan import plan
from sentiment.errors import ConfigError, DataError
from sentiment.scoring.run_state import STATE, SUCCESS, Identity, ScoringRun
from sentiment.storage.lock import LOCK, Lock
from sentiment.storage.output_directory import OutputDirectory

ROOT = Path(__file__).parents[2]
INPUTS = [["a.csv", 10, 111], ["b.csv", 20, None], ["c.csv", 30, 2**60 + 1]]
IDENTITY = Identity(INPUTS, "model 1", {"precision": "fp32", "partition_by": []})
MANIFEST = {"rows_in": 3, "output": "größer"}


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> OutputDirectory:
    """A folder that isn't there yet, on the disk or behind an fsspec URI."""
    return OutputDirectory(str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}/out")


@pytest.fixture
def disk(tmp_path: Path) -> OutputDirectory:
    """For tests with threads, which can't share fsspec's files in memory."""
    return OutputDirectory(str(tmp_path))


def is_there(folder: OutputDirectory, name: str) -> bool:
    return folder.fs.get_file_info(folder.inner(name)).is_file


def other(**changes: Any) -> Identity:
    return dataclasses.replace(IDENTITY, **changes)


def test_identity_of_a_plan_reads_back_from_json(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).write_text("text\nhello\n")
    reads = plan([str(tmp_path)])
    identity = Identity.of(reads, "model 1", {"partition_by": ("label",), "batch_rows": 7})
    assert identity.inputs[0][:3] == [f"{tmp_path}/a.csv", 11, (tmp_path / "a.csv").stat().st_mtime_ns]
    back = Identity(**json.loads(json.dumps(vars(identity))))
    assert (back, back.differences(identity)) == (identity, [])


def test_what_was_seen_in_a_file_counts(tmp_path: Path) -> None:
    """Its size and time are the same, but not what the plan makes of it."""
    (tmp_path / "a.csv").write_text("text,tweet\nhello,you\n")
    now, was = (Identity.of(plan([str(tmp_path)], text_column=name), "m", {}) for name in ("text", "tweet"))
    assert now.differences(was) == [f"--input: {tmp_path}/a.csv has changed"]
    assert "another version" in dataclasses.replace(was, layout=0).differences(was)[0]


def test_differences_are_said() -> None:
    changed = {"precision": "bf16", "partition_by": ["label"]}
    for now, said in (
        (IDENTITY, ""),
        (other(model="model 2"), "--model is model 2 now, was model 1"),
        (other(settings=changed), "--partition-by is ['label'] now, was []; --precision is bf16 now, was fp32"),
        (other(inputs=[*INPUTS, ["d.csv", 1, 1]]), "--input: d.csv is new"),
        (other(inputs=INPUTS[2:]), "--input: a.csv (and 1 more) is gone"),
        (other(inputs=[["a.csv", 10, 9], ["x", 1, 1], *INPUTS[1:]]), "--input: x is new; --input: a.csv has changed"),
        (other(inputs=[[name, 9, at] for name, _, at in INPUTS]), "--input: a.csv (and 2 more) has changed"),
    ):
        assert "; ".join(now.differences(IDENTITY)) == said


def test_a_run_from_start_to_end(folder: OutputDirectory) -> None:
    run = ScoringRun(folder, IDENTITY)
    assert run.finished(overwrite=False) is None
    run.begin(1000, overwrite=False)
    assert (run.rows_per_shard, run.attempts) == (1000, 1)
    again = ScoringRun(folder, IDENTITY)
    assert again.finished(overwrite=False) is None
    # Its shards are those of the first start, and so are the names of its files.
    again.begin(7, overwrite=False)
    assert (again.rows_per_shard, again.tag, again.attempts) == (1000, run.tag, 2)
    run.finish(MANIFEST)
    assert json.loads(folder.read("manifest.json")) == again.finished(overwrite=False) == MANIFEST
    folder.write_text("_run/done/000000-000000.json", "of the run that goes")
    assert again.finished(overwrite=True) is None
    again.begin(7, overwrite=True)
    assert (again.rows_per_shard, again.attempts) == (7, 1)
    assert again.tag != run.tag
    assert not is_there(folder, "_run/done/000000-000000.json")
    assert not is_there(folder, SUCCESS)


def test_files_that_crash_their_reader_are_remembered(folder: OutputDirectory) -> None:
    run = ScoringRun(folder, IDENTITY)
    run.begin(1000, overwrite=False)
    assert run.crashing == []
    for path in ("b.csv", "a.csv"):
        run.note_crashing(path)
    again = ScoringRun(folder, IDENTITY)
    again.begin(1000, overwrite=False)
    assert again.crashing == run.crashing == ["b.csv", "a.csv"]
    run.begin(1000, overwrite=True)
    assert run.crashing == []


def test_another_run_is_refused(folder: OutputDirectory) -> None:
    ScoringRun(folder, IDENTITY).begin(1000, overwrite=False)
    run = ScoringRun(folder, other(model="model 2"))
    for _ in ("begun", "finished"):
        with pytest.raises(ConfigError, match=rf"^{folder.uri} holds another run: --model is model 2 now.*--overwrite"):
            run.finished(overwrite=False)
        assert run.finished(overwrite=True) is None
        ScoringRun(folder, IDENTITY).finish(MANIFEST)


def test_another_run_that_began_meanwhile_is_refused(folder: OutputDirectory) -> None:
    """Both looked at an empty folder; the slower one gets the lock when the other has finished."""
    slow = ScoringRun(folder, other(model="model 2"))
    assert slow.finished(overwrite=False) is None
    ScoringRun(folder, IDENTITY).begin(1000, overwrite=False)
    with pytest.raises(ConfigError, match="--model is model 2 now"):
        slow.begin(7, overwrite=False)


def test_what_no_job_wrote_is_refused(folder: OutputDirectory) -> None:
    run = ScoringRun(folder, IDENTITY)
    folder.write_text("precious.txt", "mine")
    with pytest.raises(ConfigError, match="isn't empty"):
        run.finished(overwrite=False)
    folder.write_text("manifest.json", "{}")
    for _ in ("nothing begun", "begun"):
        with pytest.raises(ConfigError, match=r"'precious\.txt', which no job wrote"):
            run.finished(overwrite=True)
        run.begin(1000, overwrite=False)


def test_a_run_killed_before_it_said_what_it_is_goes_on(folder: OutputDirectory) -> None:
    """The lock is there about a second before run.json."""
    run = ScoringRun(folder, IDENTITY)
    with Lock(folder, beat_s=2):
        assert run.finished(overwrite=False) is None
    folder.write_text("_run/.run.json.5e.tmp", "half of")
    assert run.finished(overwrite=False) is None


@pytest.mark.parametrize("content", ["", '{"identity": {"inp', "[]", "{}", '{"identity": null}', '{"identity": {}}'])
def test_a_damaged_state(folder: OutputDirectory, content: str) -> None:
    folder.write_text(STATE, content)
    with pytest.raises(DataError, match=rf"^{folder.uri}/{STATE} is damaged; start clean with --overwrite"):
        ScoringRun(folder, IDENTITY).finished(overwrite=False)
    ScoringRun(folder, IDENTITY).begin(1000, overwrite=True)
    folder.write_text(SUCCESS, "{}\n")
    with pytest.raises(DataError, match=rf"^{folder.uri}/manifest\.json is damaged"):
        ScoringRun(folder, IDENTITY).finished(overwrite=False)


HOLDER = """
import sys
from sentiment.storage.lock import Lock
from sentiment.storage.output_directory import OutputDirectory
with Lock(OutputDirectory(sys.argv[1]), beat_s=0.05):
    print("held", flush=True)
    sys.stdin.read()
"""
A_WHILE_S = 60.0


def eventually(is_so: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def lock_of(folder: OutputDirectory) -> dict[str, Any]:
    return json.loads(folder.read(LOCK))


def take_over_at_once(folder: OutputDirectory) -> None:
    before, started = lock_of(folder)["run"], time.monotonic()
    with Lock(folder, beat_s=0.02, silence_s=A_WHILE_S) as lock:
        lock.check()
        assert lock_of(folder)["run"] != before
    assert time.monotonic() - started < A_WHILE_S / 2


def test_a_lock_is_held_and_released(disk: OutputDirectory) -> None:
    with Lock(disk, beat_s=0.02):
        first = lock_of(disk)
        assert (first["host"], first["pid"]) == (socket.gethostname(), os.getpid())
        eventually(lambda: lock_of(disk)["beat"] >= first["beat"] + 3)
        with pytest.raises(ConfigError, match=rf"^another run is at {disk.uri} \(process {os.getpid()} on"):
            Lock(disk, beat_s=0.02).__enter__()
    assert not is_there(disk, LOCK)
    with pytest.raises(RuntimeError, match="the job failed"), Lock(disk, beat_s=0.02):
        raise RuntimeError("the job failed")
    assert not is_there(disk, LOCK)


def test_a_lock_outlives_its_folder(folder: OutputDirectory) -> None:
    with Lock(folder, beat_s=2) as lock:
        mine = lock_of(folder)["run"]
        folder.claim(overwrite=True)
        lock.renew()
        assert lock_of(folder)["run"] == mine


def test_a_live_process_is_respected_and_a_killed_one_replaced_at_once(disk: OutputDirectory) -> None:
    command = [sys.executable, "-c", HOLDER, disk.uri]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"\(process {holder.pid} on {socket.gethostname()}\): wait until"):
            Lock(disk, silence_s=A_WHILE_S).__enter__()
        assert lock_of(disk)["pid"] == holder.pid
        holder.send_signal(signal.SIGKILL)
    assert is_there(disk, LOCK)
    take_over_at_once(disk)


def left_lock(folder: OutputDirectory, **holder: Any) -> OutputDirectory:
    folder.write_json(LOCK, {"run": "another", "host": socket.gethostname(), "beat": 3, **holder})
    return folder


def test_a_zombie_is_dead(disk: OutputDirectory) -> None:
    """Killed, and its parent hasn't asked after it: as in a container without an init."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        started = psutil.Process(process.pid).create_time()
        process.kill()
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        take_over_at_once(left_lock(disk, pid=process.pid, process_started=started))


def test_a_process_id_that_was_given_again_is_not_the_holder(disk: OutputDirectory) -> None:
    mine = psutil.Process().create_time()
    for holder in ({"pid": os.getpid(), "process_started": mine - 1000}, {"pid": os.getpid()}, {"pid": "?"}):
        take_over_at_once(left_lock(disk, **holder))
    with pytest.raises(ConfigError, match="another run is at"):
        take_over_at_once(left_lock(disk, pid=os.getpid(), process_started=mine))


ELSEWHERE = {"run": "another", "host": "elsewhere", "pid": os.getpid(), "process_started": 0, "beat": 0}


def test_another_host_is_dead_once_it_was_silent(disk: OutputDirectory) -> None:
    for content in (json.dumps(ELSEWHERE), "", "[]", '{"run": "hal'):
        disk.write_text(LOCK, content)
        until = time.monotonic() + 0.1
        with Lock(disk, beat_s=0.02, silence_s=0.1):
            assert time.monotonic() >= until
            assert lock_of(disk)["host"] == socket.gethostname()


def test_of_two_that_start_at_once_the_later_one_stays(
    folder: OutputDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sentiment.storage.lock.time.sleep", lambda _: folder.write_json(LOCK, ELSEWHERE))
    with pytest.raises(ConfigError, match="on elsewhere"):
        Lock(folder).__enter__()
    assert lock_of(folder) == ELSEWHERE


def test_another_host_that_gives_signs_of_life_is_respected(disk: OutputDirectory) -> None:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.02):
            disk.write_json(LOCK, {**ELSEWHERE, "beat": time.monotonic()})

    disk.write_json(LOCK, ELSEWHERE)
    threading.Thread(target=beat, daemon=True).start()
    try:
        with pytest.raises(ConfigError, match=r"another run is at .* on elsewhere\)"):
            Lock(disk, beat_s=0.1, silence_s=A_WHILE_S).__enter__()
    finally:
        stop.set()
    assert lock_of(disk)["host"] == "elsewhere"


def test_a_lock_that_somebody_takes_is_noticed_and_left_alone(disk: OutputDirectory) -> None:
    with Lock(disk, beat_s=0.02) as lock:
        lock.check()

        def noticed() -> bool:
            disk.write_json(LOCK, ELSEWHERE)  # Until no beat comes between.
            try:
                lock.check()
            except ConfigError as error:
                return "on elsewhere" in str(error)
            return False

        eventually(noticed)
    assert lock_of(disk) == ELSEWHERE


def test_a_lock_taken_since_the_last_beat_is_left_alone(folder: OutputDirectory) -> None:
    with Lock(folder, beat_s=5):
        folder.write_json(LOCK, ELSEWHERE)
    assert lock_of(folder) == ELSEWHERE
