"""Runs of jobs/score.py for `benchmarks/score.py`: timed, watched over, killed.

A run is a session of its own (`setsid`), so its processes are known whatever becomes of their parents: driver, GCS,
raylet, agents, workers, actors. Only those are ever killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from turns import ROOT

from jobs.background import Background

CORES = len(os.sched_getaffinity(0))
_KINDS = ("pss", "uss", "rss")
_SAMPLE_S = 0.5
_POLL_S = 0.02
# Processes of a run end within seconds of its driver; whoever doesn't is killed.
_GRACE_S = 30.0
_MB = 1e6


def run(model: Path, archive: Path, output: Path, *, watch_memory: bool = False) -> dict[str, Any]:
    """Score an archive, or what is left of it.

    Args:
        model: Bundle.
        archive: The file.
        output: Folder that the job writes.
        watch_memory: Sample the memory of all of its processes.

    Returns:
        Rows, the manifest's rate, the wall time of the whole command; peaks of memory if they were asked for.
    """
    started = time.perf_counter()
    with _session(model, archive, output) as job:
        watch = _Memory(job.pid) if watch_memory else contextlib.nullcontext()
        with watch:
            # Ended but not reaped: while it is a zombie, nobody else can get its number.
            status = os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)
        wall_s = time.perf_counter() - started
        if status is None or status.si_status:
            raise SystemExit("jobs/score.py failed; see above")
    manifest = json.loads((output / "manifest.json").read_text())
    kept = ("model_id", "rows_in", "rows_rejected", "rows_per_s", "files", "attempts")
    return {
        **{name: manifest[name] for name in kept},
        "wall_s": round(wall_s, 2),
        "command_rows_per_s": round(manifest["rows_in"] / wall_s, 1),
        **(watch.figures() if isinstance(watch, _Memory) else {}),
    }


def kill_after(model: Path, archive: Path, output: Path, shards: int) -> dict[str, Any]:
    """Score an archive and kill the driver's process group with SIGKILL once so many shards are done.

    Args:
        model: Bundle.
        archive: The file.
        output: Folder that the job writes.
        shards: That have a report.

    Returns:
        Rows and shards with a report when all of its processes were gone, and how long after the kill that was.
    """
    with _session(model, archive, output) as job:
        while len(_reports(output)) < shards:
            if psutil.Process(job.pid).status() == psutil.STATUS_ZOMBIE:
                raise SystemExit(f"the job ended before {shards} shards were done; score more rows")
            time.sleep(_POLL_S)
        os.killpg(job.pid, signal.SIGKILL)
        killed = time.perf_counter()
    # Actors may have finished a shard after the driver's death, so only now.
    gone_s = time.perf_counter() - killed
    reports = [json.loads(path.read_text())["report"] for path in _reports(output)]
    rows = sum(report["scored"] + report["rejected"] for report in reports)
    return {"rows_done": rows, "shards_done": len(reports), "gone_s": round(gone_s, 2)}


def count_shards(output: Path) -> int:
    """Shards of a run that are done."""
    return len(_reports(output))


def _reports(output: Path) -> list[Path]:
    return [path for path in (output / "_run" / "done").glob("*.json") if not path.name.startswith(".")]


@contextmanager
def _session(model: Path, archive: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A job in a session of its own; at the end of the block all of it is gone, one way or the other."""
    flags = ["--model", str(model), "--input", str(archive), "--output", str(output), "--num-cpus", str(CORES)]
    command = [sys.executable, "jobs/score.py", *flags]
    print("$", shlex.join(command[1:]), file=sys.stderr, flush=True)
    # Its own embedded Ray and the settings of ray_config.yaml, whatever the shell says.
    environment = {
        name: value for name, value in os.environ.items() if name != "RAY_ADDRESS" and not name.startswith("SENTIMENT_")
    }
    job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield job
    except BaseException:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    finally:
        _, alive = psutil.wait_procs([one for one in members(job.pid) if one.pid != job.pid], timeout=_GRACE_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_GRACE_S)
        job.wait()


def members(session: int) -> list[psutil.Process]:
    """Live processes of a session.

    Args:
        session: Its number, that of the process that was started with `start_new_session`.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class _Memory(Background):
    """Samples a session's memory for a `with` block: sums over its processes, and the highest sum of each kind.

    PSS counts a page that n processes share as 1/n in each, so the sum is what the machine has to have. RSS counts it n
    times, USS not at all.
    """

    def __init__(self, session: int) -> None:
        self._session = session
        self._peaks = dict.fromkeys(_KINDS, 0)
        self._at_peak: Counter[str] = Counter()
        self._samples = self._most_processes = 0
        super().__init__("memory", _SAMPLE_S, self._sample)

    def figures(self) -> dict[str, Any]:
        """Peaks in MB, and which processes the highest PSS was made of."""
        return {
            **{f"peak_{kind}_mb": round(value / _MB) for kind, value in self._peaks.items()},
            "pss_mb_at_peak": {name: round(value / _MB) for name, value in self._at_peak.most_common()},
            "most_processes": self._most_processes,
            "memory_samples": self._samples,
        }

    def _sample(self) -> None:
        sums, by_name, processes = Counter[str](), Counter[str](), members(self._session)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                name, info = _name(process), process.memory_full_info()
                sums.update({kind: getattr(info, kind) for kind in _KINDS})
                by_name[name] += info.pss
        if sums["pss"] > self._peaks["pss"]:
            self._at_peak = by_name
        self._peaks = {kind: max(value, sums[kind]) for kind, value in self._peaks.items()}
        self._samples, self._most_processes = self._samples + 1, max(self._most_processes, len(processes))


def _name(process: psutil.Process) -> str:
    """What a process is: Ray's workers say it, its other ones are scripts or programs."""
    words = process.cmdline()
    if words and words[0].startswith("ray::"):
        return words[0].split(".")[0]  # What it does just now comes behind the class.
    script = next((Path(word).name for word in words[1:] if word.endswith(".py")), None)
    return script if script and process.name().startswith("python") else process.name()
