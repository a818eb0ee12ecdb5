"""Progress of work that runs in other processes, shown by the driver.

Workers report to a small actor; a thread of the driver shows it on stderr, as a bar on a terminal and as a line now and
then in a log (`sentiment.observability.status` says how often).
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from sentiment.observability.status import seconds_to_next_line

_log = logging.getLogger(__name__)

_POLL_S, _ANSWER_TIMEOUT_S = 0.5, 10.0


@dataclasses.dataclass
class ProgressState:
    """How far the work is.

    Attributes:
        lines: Messages since the last read.
        label: What is being done, in front of the bar.
        done: Units done, of `total`; 0 where that isn't known.
        note: Further figures, behind the bar.
        measured: Metrics, as they were last set.
    """

    lines: list[str] = dataclasses.field(default_factory=list)
    label: str = ""
    done: int = 0
    total: int = 0
    note: str = ""
    measured: dict[str, float] = dataclasses.field(default_factory=dict)


class ProgressActor:
    """The actor that workers report to."""

    def __init__(self) -> None:
        self._state = ProgressState()

    def say(self, line: str) -> None:
        """Have a message printed."""
        self._state.lines.append(line)

    def add(self, count: int) -> None:
        """Add to the units done."""
        self._state.done += count

    def show(self, label: str, done: int, total: int) -> None:
        """Set label and units."""
        self._state.label, self._state.done, self._state.total = label, done, total

    def measure(self, figures: dict[str, float]) -> None:
        """Set metrics."""
        self._state.measured |= figures

    def read(self) -> ProgressState:
        """The state; each message is given once."""
        state, self._state = self._state, dataclasses.replace(self._state, lines=[])
        return state


def start_on_driver_node(kind: type, **arguments: Any) -> Any:
    """Start an actor on the driver's node, for another node may be lost, and without a CPU, which the work needs."""
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=driver_node).remote(**arguments)


class Progress:
    """Shows progress for the length of a `with` block; `actor` goes to the workers.

    Args:
        label: What is done until the actor has a label of its own, e.g. "starting 2 workers".
        unit: What is counted, e.g. "rows".
        kind: The actor's class.
        meter: Called with the state about twice a second, to export metrics.
        arguments: Of the actor's constructor.

    Attributes:
        actor: Handle of the `ProgressActor`.
    """

    def __init__(
        self,
        label: str,
        unit: str,
        kind: type[ProgressActor] = ProgressActor,
        *,
        meter: Callable[[ProgressState], None] | None = None,
        **arguments: Any,
    ) -> None:
        self.actor = start_on_driver_node(kind, **arguments)
        self._label, self._unit, self._meter = label, unit, meter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._bar: tqdm[Any] | None = None
        self._started = self._logged_at = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        ray.kill(self.actor)

    def _run(self) -> None:
        # A library that nobody has configured, or --quiet, shows no bar.
        if sys.stderr.isatty() and _log.isEnabledFor(logging.INFO):
            self._bar = tqdm(desc=self._label, unit=f" {self._unit}", leave=False, dynamic_ncols=True)
        else:
            _log.info(f"{self._label}…")
        state, request, is_stopped = ProgressState(), None, False
        try:
            while not is_stopped:
                is_stopped = self._stop.wait(_POLL_S)
                request = request or self.actor.read.remote()
                # The actor may take seconds to start: until it answers, the old state is shown with a later time.
                if is_stopped or ray.wait([request], timeout=0)[0]:
                    state, request = self._read(request), None
                self._show(state)
                if is_stopped:  # What was reported between the last request and the stop.
                    self._show(self._read(self.actor.read.remote()))
                state.lines.clear()
        except ray.exceptions.RayError:
            pass  # The cluster is gone; whoever waits for the work says so.
        if self._bar is not None:
            self._bar.close()

    def _read(self, request: Any) -> ProgressState:
        state: ProgressState = ray.get(request, timeout=_ANSWER_TIMEOUT_S)
        if self._meter is not None:
            self._meter(state)
        return state

    def _show(self, state: ProgressState) -> None:
        now = time.monotonic()
        for line in state.lines:
            if self._bar is not None:
                tqdm.write(line, file=sys.stderr)
            else:
                _log.info(line)
            self._logged_at = now
        if self._bar is not None:
            self._bar.total = state.total or None
            self._bar.set_description(state.label or self._label, refresh=False)
            self._bar.set_postfix_str(state.note, refresh=False)
            self._bar.n = state.done
            self._bar.refresh()
        elif now - self._logged_at >= seconds_to_next_line(now - self._started):
            self._logged_at = now
            of = f" of {state.total:,}" if state.total else ""
            note = f", {state.note}" if state.note else ""
            count = f": {state.done:,}{of} {self._unit}{note}," if state.done else "…"
            _log.info(f"{state.label or self._label}{count} {now - self._started:.0f} s")
