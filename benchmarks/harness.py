"""What every benchmark shares: its command line, contenders that take turns, processes of their own, and result pages.

A benchmark is a program with named lanes, each of which measures one thing. Its figures are kept under the lane's name
in one JSON file, and the tables that follow from them are written into the marked blocks of a Markdown page; what else
is on the page is written by hand. Lanes that aren't run keep their figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import IO, Any, Self

import psutil
import pyarrow.dataset

from sentiment.data.manifest import machine, machine_line

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
CORES = len(os.sched_getaffinity(0))
Figures = dict[str, Any]
# Contender → its figures, one entry for each turn.
Turns = dict[str, list[Figures]]
# Measures, and yields each result's key in the JSON file with its figures. Gets the arguments and a scratch folder.
Lane = Callable[[argparse.Namespace, Path], Iterator[tuple[str, Figures]]]
# Lane → what writes the tables of its runs.
Sections = Mapping[str, Callable[..., str]]

# Percent of the CPUs that other processes may use before a lane begins; with more, program and page say so.
MAX_BUSY_PERCENT = 5.0
POLL_S, SAMPLE_S = 0.05, 0.5
# Time for a session's first process to end after SIGTERM (replicas behind HAProxy drain for 30 s), and for the others:
# some agents of Ray never end by themselves.
DRAIN_S, GRACE_S = 60.0, 10.0
# What of a shell would make a contender another one than it is meant to be.
FOREIGN = ("SENTIMENT_", "RAY_", "RAYON_", "OMP_", "MKL_")
# In a page: the comment that begins a block, with its lane and the program, the tables, the comment that ends it.
BLOCK = re.compile(r"(<!-- ([\w-]+): written by (benchmarks/\w+\.py) -->\n).*?(<!-- end -->)", re.DOTALL)
FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json"}


def parser_of(doc: str | None, lanes: Iterable[str]) -> argparse.ArgumentParser:
    """Make the command line that all benchmarks have; `doc` says what the program measures, with examples."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lane", choices=[*lanes, "page"], help="what to measure; page: only write the tables again")
    parser.add_argument("--model", type=absolute, help="bundle of the model that is measured")
    parser.add_argument("--input", type=absolute, help="Parquet, csv or JSON lines file of real texts, column `text`")
    parser.add_argument("--rows", type=int, help="rows to measure with")
    parser.add_argument("--repeats", type=int, default=3, help="times that each contender is measured (3)")
    parser.add_argument("--results", type=absolute, default=RESULTS, help="folder of the JSON file and the page")
    return parser


def run(
    parser: argparse.ArgumentParser,
    name: str,
    lanes: Mapping[str, Lane],
    sections: Sections,
    *,
    packages: Sequence[str],
    needs: Sequence[str] = ("model", "input"),
) -> None:
    """Measure a lane, keep its figures in NAME.json, and write the tables of NAME.md.

    Args:
        parser: Of `parser_of`.
        name: Of the results.
        lanes: Name → what measures it.
        sections: What writes the tables of each lane.
        packages: Whose versions matter.
        needs: Arguments that every lane needs.
    """
    args = parser.parse_args()
    if args.lane != "page" and (missing := [f"--{need}" for need in needs if not getattr(args, need)]):
        parser.error(f"{args.lane} needs {' and '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Runs `finally`, which ends what was started.
    args.results.mkdir(parents=True, exist_ok=True)
    raw, markdown = args.results / f"{name}.json", args.results / f"{name}.md"
    results: Figures = json.loads(raw.read_text()) if raw.exists() else {}
    if args.lane != "page":
        busy = psutil.cpu_percent(interval=2.0)
        if busy > MAX_BUSY_PERCENT:
            say(f"the machine is busy ({busy:.0f} %): these figures won't hold")
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as scratch:
            for key, figures in lanes[args.lane](args, Path(scratch)):
                about = {"machine": machine(*packages), "busy_before": busy}
                about["created"] = datetime.now(UTC).isoformat(timespec="seconds")
                about |= {"repeats": args.repeats} if "median" in figures or "turns" in figures else {}
                about |= {"input": args.input.name} if args.input else {}
                results[key] = {**about, **figures}
                raw.write_text(json.dumps(results, indent=1) + "\n")
    page = (markdown if markdown.exists() else RESULTS / markdown.name).read_text()
    markdown.write_text(fill(page, sections, results))


def absolute(given: str) -> Path:
    """Contenders run from the repository's root, wherever this program was called from."""
    return Path(given).resolve()


def say(line: str) -> None:
    """Tell whoever waits."""
    print(line, file=sys.stderr, flush=True)


def texts_of(path: Path) -> list[str]:
    """Read the texts of a Parquet, csv or JSON lines file with a column `text`."""
    table = pyarrow.dataset.dataset(path, format=FORMATS[path.suffix]).to_table(columns=["text"])
    return [text for text in table["text"].to_pylist() if text is not None]


def sample_of(path: Path, rows: int) -> list[str]:
    """Take texts at even distances, in the order of the file, so that a sample has the file's lengths."""
    texts = texts_of(path)
    return texts[:: max(1, len(texts) // rows)][:rows]


def take_turns(repeats: int, contenders: Mapping[str, Callable[[], Figures]]) -> Turns:
    """Measure every contender, again and again: what slows the machine down for a while hits all of them."""
    turns: Turns = {name: [] for name in contenders}
    for number in range(repeats):
        for name, measure in contenders.items():
            say(f"turn {number + 1} of {repeats}: {name}")
            turns[name].append(measure())
            say(f"  {json.dumps(turns[name][-1])}")
    return turns


def medians(turns: Turns, *names: str) -> dict[str, dict[str, float]]:
    """Median of some figures over the turns, for each contender."""
    return {one: {name: median(turn[name] for turn in found) for name in names} for one, found in turns.items()}


def in_process(function: Callable[..., Figures], *args: Any, **kwargs: Any) -> Figures:
    """Call a function of a benchmark in a fresh process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def rate_of(count: int, seconds: float, of: str = "rows") -> Figures:
    """So many a second, with what it was computed from."""
    return {of: count, "elapsed_s": round(seconds, 3), f"{of}_per_s": round(count / seconds, 1)}


def job(name: str, *flags: object) -> Figures:
    """Run jobs/NAME.py to its end, and return the JSON object that it prints."""
    command = [sys.executable, f"jobs/{name}.py", *map(str, flags)]
    say(f"$ {shlex.join(command[1:])}")
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    result: Figures = json.loads(done.stdout.splitlines()[-1])
    return result


@contextmanager
def session(
    command: Sequence[str], *, checkout: Path = ROOT, log: IO[bytes] | None = None, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own (`setsid`); no process of it is left after the block, whatever happens.

    Args:
        command: Its arguments.
        checkout: Whose code it runs.
        log: Where stdout and stderr go; without one stdout goes nowhere, stderr to ours.
        variables: Environment beside what the shell has; of that nothing which configures the contender.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment |= {"PYTHONPATH": str(checkout), **variables}
    output = log or subprocess.DEVNULL
    process = subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=output, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        # Collected before the first process ends: later nothing tells whose the ones outside the session were.
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(DRAIN_S)
        _, alive = psutil.wait_procs({*family, *members(process.pid)}, timeout=GRACE_S)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def members(session_id: int) -> list[psutil.Process]:
    """Live processes of a session: those that a program started, whatever became of their parents."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def name_of(process: psutil.Process) -> str:
    """What a process is: the title that Ray gives it, or else its script or program."""
    words = process.cmdline()
    if words and words[0].startswith("ray::"):
        return words[0].split(".")[0]  # The method that it runs comes behind the class.
    script = next((Path(word).name for word in words[1:] if word.endswith(".py")), None)
    return script if script and process.name().startswith("python") else process.name()


class MemoryWatch:
    """Samples the memory of processes during a `with` block; `processes` gives those that count, each time.

    PSS counts a page that n processes share as 1/n in each, so the sum is what the machine has to have. RSS counts it n
    times, USS not at all. `shared` is the part of RSS that files back, such as memory-mapped ones.

    Attributes:
        samples: Bytes of each kind, summed over the processes.
        at_peak: PSS by name of the process when the sum was highest.
    """

    def __init__(self, processes: Callable[[], Sequence[psutil.Process]]) -> None:
        self.samples: list[Counter[str]] = []
        self.at_peak: Counter[str] = Counter()
        self._processes, self._stop = processes, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def peak_mb(self, kind: str) -> int:
        """Highest sum of a kind, MB."""
        return round(max(sample[kind] for sample in self.samples) / 1e6)

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        sums, by_name = Counter[str](), Counter[str]()
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                name, info = name_of(process), process.memory_full_info()
                sums.update({kind: getattr(info, kind) for kind in ("pss", "uss", "rss", "shared")})
                by_name[name] += info.pss
        if by_name.total() > self.at_peak.total():
            self.at_peak = by_name
        self.samples.append(sums)


def target(found: float, kind: str, limit: float) -> str:
    """A target beside what was found, rounded as the page shows it, so that no reader has to compare.

    Args:
        found: The figure.
        kind: "at least", "at most" or "under".
        limit: What it is held against.

    Returns:
        Such as "at least 4: met".
    """
    is_met = {"at least": found >= limit, "at most": found <= limit, "under": found < limit}[kind]
    return f"{kind} {limit:g}: {'met' if is_met else '**missed**'}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in [head, ["---"] * len(head), *rows])


def fill(page: str, sections: Sections, results: Figures) -> str:
    """Write the marked blocks of a page again.

    Args:
        page: The Markdown, in which a comment at each block names a lane.
        sections: What writes the tables of each lane.
        results: Name → figures of a run; the name's first word is its lane.

    Returns:
        The page: in each block the tables, with model, input, turns, machine and day of the runs, which it names itself
        if there are several.
    """

    def write(block: re.Match[str]) -> str:
        head, lane, program, end = block.groups()
        runs = [run for name, run in results.items() if name.split()[0] == lane]
        if not runs:
            return f"{head}\nNot measured yet: `python {program} {lane} …`.\n\n{end}"
        lines = dict.fromkeys(_origin(run if len(runs) == 1 else run | {"model_id": None}) for run in runs)
        return f"{head}\n{sections[lane](*runs).rstrip()}\n\n{'; '.join(lines)}\n\n{end}"

    return BLOCK.sub(write, page)


def _origin(run: Figures) -> str:
    parts = [f"Model `{run['model_id']}`"] if run.get("model_id") else []
    parts += [f"texts of {run['input']}"] if "input" in run else []
    parts += [f"{run['repeats']} turn{'s' * (run['repeats'] != 1)}"] if "repeats" in run else []
    line = ", ".join([*parts, f"on {machine_line(run['machine'])}; {run['created'][:10]}."])
    busy: float = run.get("busy_before", 0)
    warning = f" **The machine was busy with other things ({busy:.0f} %).**" * (busy > MAX_BUSY_PERCENT)
    return f"{line[0].upper()}{line[1:]}{warning}"
