"""Workers that freeze, and workers that die of the file they read.

Ray waits without end for a process that is stopped (SIGSTOP), and starts a reader that died again for ever. So workers
report to a `WorkerLog`, an actor beside the driver: every few seconds that they are alive, from a thread of its own
however long a computation takes, and which files they begin to read. Who falls silent is killed; Ray gives its work to
another. A file whose readers died twice is read once more, alone: if it kills that reader too, it is the cause.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import psutil
import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sentiment.background import Background
from sentiment.data.byte_stream import InputFile
from sentiment.data.formats import batches_of
from sentiment.data.read_plan import ReadPlan
from sentiment.observability.progress import start_on_driver_node

_log = logging.getLogger(__name__)

CRASHES_READER = "its reader died three times"
# Deaths beside other work; the third is that of the reader that has the file for itself.
_MAX_DEATHS = 2
_CHECK_EVERY_S, _ALIVE_EVERY_S = 2.0, 5.0

T = TypeVar("T")


class ReaderDiedError(Exception):
    """Readers of the same files died again and again.

    Attributes:
        paths: The first file of each group of files that a reader had.
    """

    def __init__(self, paths: Collection[str]) -> None:
        super().__init__(", ".join(paths))
        self.paths = paths


class WorkerLog:
    """The actor that workers report to; also a base of boards."""

    def __init__(self) -> None:
        self._started: Counter[str] = Counter()
        self._failed: set[str] = set()
        self._last_alive: dict[tuple[str, int], float] = {}

    def begin_reading(self, path: str) -> int:
        """Note that a reader begins; returns how often one has, without coming to an end."""
        self._started[path] += 1
        return self._started[path]

    def end_reading(self, path: str, is_complete: bool) -> None:
        """Note that a reader came to an end: it read all, or raised."""
        del self._started[path]
        if is_complete:
            self._failed.discard(path)
        else:
            self._failed.add(path)

    def unread(self) -> list[str]:
        """What was begun and never read to its end."""
        return sorted(self._started.keys() | self._failed)

    def suspects(self) -> list[str]:
        """What readers died of more than once; all counts begin anew, for suspects are read alone next."""
        suspects = [path for path, started in self._started.items() if started >= _MAX_DEATHS]
        self._started.clear()
        return suspects

    def alive(self, node: str, pid: int) -> None:
        """Note a process's sign of life."""
        self._last_alive[node, pid] = time.monotonic()

    def leave(self, node: str, pid: int) -> None:
        """No longer expect any."""
        self._last_alive.pop((node, pid), None)

    def silent(self, timeout_s: float) -> list[tuple[str, int]]:
        """Node and process id of those that gave no sign of life for so long, each once."""
        before = time.monotonic() - timeout_s
        silent = [process for process, last in self._last_alive.items() if last < before]
        for process in silent:
            del self._last_alive[process]
        return silent


@dataclass(frozen=True)
class WorkerWatch:
    """What workers report with, and the driver acts by; picklable.

    Attributes:
        log: A `WorkerLog`.
        timeout_s: Seconds without a sign of life after which a process counts as frozen.
    """

    log: Any
    timeout_s: float

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life from this process, for the length of a `with` block."""
        process = (ray.get_runtime_context().get_node_id(), os.getpid())
        self.log.alive.remote(*process)
        with Background("alive", min(_ALIVE_EVERY_S, self.timeout_s / 10), partial(self.log.alive.remote, *process)):
            yield
        self.log.leave.remote(*process)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function, giving signs of life."""
        with self.alive():
            return function(*arguments)

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Report that files are read, for the length of a `with` block.

        Args:
            path: Of the first of them.
        """
        with self.alive():
            if ask(self.log.begin_reading.remote(path), 1) > _MAX_DEATHS:
                # What the memory monitor kills is started again however often; this counts. Not by an exception:
                # Ray would lose it, and all that is left to read, where blocks of earlier attempts are used already.
                os._exit(1)
            is_complete = False
            try:
                yield
                is_complete = True
            finally:
                ask(self.log.end_reading.remote(path, is_complete), None)

    @contextlib.contextmanager
    def naming_suspects(self) -> Iterator[None]:
        """Say whose readers died, for a `with` block around work of Ray Data.

        Raises:
            ReaderDiedError: In the place of `WorkerCrashedError`.
        """
        try:
            yield
        except WorkerCrashedError as error:
            paths: list[str] = ask(self.log.suspects.remote(), [])
            if paths:
                raise ReaderDiedError(paths) from error
            raise

    def kill_frozen(self) -> None:
        """Kill the processes that fell silent."""
        # Whatever fails while nodes come and go: the next call may succeed, and without any nobody would.
        with contextlib.suppress(RayError):
            try:
                silent = ray.get(self.log.silent.remote(self.timeout_s), timeout=self.timeout_s)
            except GetTimeoutError:
                # Frozen itself. Workers do without it.
                ray.kill(self.log)
                return
            for node, pid in silent:
                on_its_node = NodeAffinitySchedulingStrategy(node, soft=False)
                killed = _kill.options(scheduling_strategy=on_its_node).remote(pid)
                if ray.get(killed, timeout=self.timeout_s):
                    _log.warning(
                        f"process {pid} was frozen for {self.timeout_s:g} s (no sign of life) and was killed; its work "
                        "is given to another"
                    )

    def killing_frozen(self) -> Background:
        """Call `kill_frozen` again and again, for a `with` block."""
        return Background("liveness", _CHECK_EVERY_S, self.kill_frozen)


@contextlib.contextmanager
def watched_workers(timeout_s: float) -> Iterator[WorkerWatch]:
    """Watch over the workers of a job that has no board, for the length of a `with` block.

    Args:
        timeout_s: Seconds after which a frozen process is killed.
    """
    log = start_on_driver_node(WorkerLog)
    workers = WorkerWatch(log, timeout_s)
    try:
        with workers.killing_frozen():
            yield workers
    finally:
        ray.kill(log)


def ask(answer: ray.ObjectRef[T], otherwise: T, timeout_s: float = 60.0) -> T:
    """An answer of a log or board; work continues without one, too."""
    try:
        given: T = ray.get(answer, timeout=timeout_s)
        return given
    except (RayActorError, GetTimeoutError):
        return otherwise


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _kill(pid: int) -> bool:
    # The process may have ended, and its number may be another's.
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.cmdline()[0].startswith("ray::"):
            process.kill()
            return True
    return False


def find_crashing(plan: ReadPlan, num_cpus: float = 1.0) -> list[InputFile]:
    """Read each file of a plan alone, and give those that crash their reader, with that as their problem.

    Args:
        plan: Of the files that were being read when readers died.
        num_cpus: CPUs that a reader reserves.
    """
    read, crashing = _read_through.options(num_cpus=num_cpus), []
    for file in plan.files:
        try:
            ray.get(read.remote(plan.with_files([file])))
        except (WorkerCrashedError, OutOfMemoryError):
            crashing.append(replace(file, problem=CRASHES_READER))
        except RayError:
            pass  # A node went, or it can't be reached: whoever reads it next says so.
    return crashing


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def _read_through(plan: ReadPlan) -> None:
    for batch in batches_of(plan):
        batch.build()
