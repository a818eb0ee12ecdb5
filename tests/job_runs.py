"""Running jobs the way their users do, in this process or in one of their own, and the data they run on here."""

from __future__ import annotations

import contextlib
import csv
import io
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray._private import state
from told import told

from sentiment.cli import Job
from sentiment.data.synthetic import write_sentiment140

REPOSITORY = Path(__file__).parents[1]
# A tenth of a second a step on a loaded machine would still be seconds an epoch: small, but with dropout on.
RECIPE_FLAGS = (
    *("--embedding-dim", 16, "--hidden-dim", 16, "--num-layers", 1, "--batch-size", 64, "--epochs", 4),
    *("--learning-rate", 0.01, "--precision", "float32", "--num-workers", 2, "--seed", 7),
)
TWEETS, MORE = "tweets.csv", "more.jsonl"
ROWS, OWN_WORDS = 1_200, 200
# Long enough for a machine that others use too; waiting ends as soon as the condition holds.
PATIENCE_S = 120.0

T = TypeVar("T")


@dataclass(frozen=True)
class Corpus:
    """Labeled files and what is wrong with them.

    Attributes:
        folder: Holds `tweets.csv` (Sentiment140's form) and `more.jsonl`.
        rows: Records of both files.
        neutral: Rows with Sentiment140's neutral label.
        bad: (file name, source_row, beginning of the reason) of each row that must be rejected, neutral ones aside.
    """

    folder: Path
    rows: int
    neutral: int
    bad: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True)
class Prepared:
    """What `jobs/prepare.py` made: the folder and its JSON."""

    folder: Path
    result: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """What `jobs/train_lstm.py` made: the output folder and its JSON."""

    output: Path
    result: dict[str, Any]

    @property
    def bundle(self) -> Path:
        return Path(self.result["bundle"])


def write_corpus(folder: Path) -> Corpus:
    """Write made-up tweets with bad rows behind them, and JSON lines in which each row has a word of its own."""
    write_sentiment140(folder / TWEETS, ROWS, seed=3)
    first = (folder / TWEETS).read_bytes().split(b"\n", 1)[0].decode("latin-1")
    bad_tweets = [
        ("neutral", '"2","9000001","Mon May 11 03:17:40 UTC 2009","kindle2","someone","a neutral text"'),
        ("unknown label '7'", '"7","9000002","Mon May 11 03:17:40 UTC 2009","q","someone","a strange label"'),
        ("no text", '"0","9000003","Mon May 11 03:17:40 UTC 2009","q","someone",""'),
        ("quote opened and never closed", '"0","9000004","Mon May 11 03:17:40 UTC 2009","q","someone","cut sho'),
        ("3 fields where the header has 6", '"0","9000005","three fields"'),
        ("no text", '"4","9000006","Mon May 11 03:17:40 UTC 2009","q","someone","  \x07 "'),
        ("duplicate", first.upper()),
        ("neutral", '"2","9000007","Mon May 11 03:17:40 UTC 2009","kindle2","someone","another neutral text"'),
    ]
    with (folder / TWEETS).open("ab") as file:
        file.write("".join(line + "\n" for _, line in bad_tweets).encode("latin-1"))
    words = ["".join("abcdefghij"[int(digit)] for digit in f"{number:04}") for number in range(OWN_WORDS)]
    good = [
        json.dumps({"text": f"zq{word} zq{word} so lovely", "label": "positive"}).encode()
        if number % 2
        else json.dumps({"text": f"zq{word} zq{word} so awful", "label": "negative"}).encode()
        for number, word in enumerate(words)
    ]
    bad_more = [
        ("not valid UTF-8 (byte 0xe9", b'{"text": "caf\xe9\xff again", "label": "positive"}'),
        ("not valid JSON", b'{"text": "cut off'),
        ("text is a number", b'{"text": 42, "label": "negative"}'),
        ("no label", b'{"text": "nobody says whether this is good"}'),
        ("a list, not a JSON object", b"[1, 2]"),
    ]
    (folder / MORE).write_bytes(b"".join(line + b"\n" for line in [*good, *(line for _, line in bad_more)]))
    bad = [(TWEETS, ROWS + at, reason) for at, (reason, _) in enumerate(bad_tweets)]
    bad += [(MORE, OWN_WORDS + at, reason) for at, (reason, _) in enumerate(bad_more)]
    return Corpus(
        folder,
        rows=ROWS + len(bad_tweets) + OWN_WORDS + len(bad_more),
        neutral=sum(reason == "neutral" for *_, reason in bad),
        bad=tuple(row for row in bad if row[2] not in ("neutral", "duplicate")),
    )


def labelled_rows(corpus: Corpus) -> list[dict[str, str]]:
    """The usable rows of a corpus, as they stand in its files; the label as 0 or 4, or a word."""
    unusable = {(name, row) for name, row, _ in corpus.bad}
    with (corpus.folder / TWEETS).open(encoding="latin-1", newline="") as file:
        tweets = [next(csv.reader([line]), []) for line in file.read().split("\n")[:-1]]
    rows = [
        {"text": fields[5], "label": fields[0]}
        for number, fields in enumerate(tweets)
        if (TWEETS, number) not in unusable and fields[0] != "2"
    ]
    return rows + [json.loads(line) for line in (corpus.folder / MORE).read_bytes().split(b"\n")[:OWN_WORDS]]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call_job(job: Job[Any], *flags: object) -> tuple[int, str, str]:
    """Run a job in this process; gives exit code, stdout and stderr."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = job.main([str(flag) for flag in flags])
    return code, stdout.getvalue(), stderr.getvalue()


def run_job(job: Job[Any], *flags: object) -> dict[str, Any]:
    """Run a job in this process and give its JSON, which must be all that it prints on stdout."""
    code, stdout, stderr = call_job(job, *flags)
    assert code == 0, stderr
    lines = stdout.splitlines()
    assert len(lines) == 1, stdout
    result = json.loads(lines[0])
    assert isinstance(result, dict)
    return result


def refusal(job: Job[Any], *flags: object) -> str:
    """Run a job that must refuse: exit code 2 and one line, which is given."""
    code, stdout, stderr = call_job(job, *flags)
    assert (code, stdout) == (2, ""), stderr
    return only_line(stderr)


def only_line(stderr: str) -> str:
    """The one line that a refusal prints; what was being done and what Ray's raylet says are passed over."""
    lines = [line for line in told(stderr).splitlines() if "(raylet)" not in line]
    assert len(lines) == 1, stderr
    return lines[0]


def environment(address: str | None) -> dict[str, str]:
    """Environment of a job in a process of its own: a cluster to join, or none, and nothing that quietens Ray."""
    ours = {"RAY_ADDRESS", "RAY_BACKEND_LOG_LEVEL", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    joined = {} if address is None else {"RAY_ADDRESS": address}
    return {**kept, **joined, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}


def started(job: str, *flags: object, address: str | None) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Start `jobs/JOB.py`, as `running` does."""
    return running(f"jobs/{job}.py", *flags, env=environment(address))


@contextlib.contextmanager
def running(*arguments: object, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start Python from the repository root; whatever is left of it at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finished(
    job: str, *flags: object, address: str | None, timeout_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run `jobs/JOB.py` from the repository root to its end."""
    with started(job, *flags, address=address) as process:
        stdout, stderr = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def wait_for(what: str, look: Callable[[], T | None], process: subprocess.Popen[str] | None = None) -> T:
    """Look again and again until there is something; fails at the deadline, or when `process` ends first."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = look()
        if found:
            return found
        if process is not None and process.poll() is not None:
            stdout, stderr = process.communicate()
            raise AssertionError(f"the job ended before there was {what}: {stdout}\n{stderr}")
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {PATIENCE_S:g} s")
        time.sleep(0.02)


def job_of(process: subprocess.Popen[str]) -> str | None:
    """Id that the session's cluster gave to the job that a process drives."""
    return next((job["JobID"] for job in state.jobs() if job["DriverPid"] == process.pid), None)


def actors_of(process: subprocess.Popen[str], class_name: str) -> list[dict[str, Any]]:
    """Actors of a process's job whose class name contains `class_name`, dead ones too."""
    job = job_of(process)
    everything = state.state.actor_table(None, None, None).values() if job else ()
    return [actor for actor in everything if actor["JobID"] == job and class_name in actor["ActorClassName"]]


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a job's driver as a power cut would, and wait until the cluster has let go of what it ran."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Ray Train's cleaner of placement groups is detached on purpose: it outlives the job and then goes by itself.
    wait_for(
        "end of the killed job",
        lambda: all(actor["State"] == "DEAD" or actor["IsDetached"] for actor in actors_of(process, "")),
    )
    everything = ray.cluster_resources()["CPU"]
    wait_for("release of its CPUs", lambda: ray.available_resources().get("CPU", 0) == everything)


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    """Addresses and ports that a process and all that it started listen at."""
    found = []
    for member in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [socket.laddr for socket in member.net_connections("inet") if socket.status == psutil.CONN_LISTEN]
    return [(address.ip, address.port) for address in found]


def beyond_loopback(process: psutil.Process) -> list[tuple[str, int]]:
    """Those of them that other machines can reach."""
    return [at for at in listening(process) if not ipaddress.ip_address(at[0].removeprefix("::ffff:")).is_loopback]


def read_rows(folder: Path) -> pa.Table:
    """All rows of a folder of Parquet files."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))])
