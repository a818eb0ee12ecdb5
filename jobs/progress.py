"""Progress that a person can read, from wherever the work runs.

Workers tell a small actor; a thread of the driver shows it on stderr, as a bar on a terminal and as a line every 30 s
in a log.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

_POLL_S = 0.5
_LOG_EVERY_S = 30.0


@dataclass
class News:
    """What happened since the board was last read.

    Attributes:
        lines: To be printed as they are.
        label: Beside the bar.
        done: Units done, of `total`; 0 where that isn't known.
        note: Behind them.
        measured: Figures for a meter, as they were last set.
    """

    lines: list[str] = field(default_factory=list)
    label: str = ""
    done: int = 0
    total: int = 0
    note: str = ""
    measured: dict[str, float] = field(default_factory=dict)


class Board:
    """The actor that workers tell."""

    def __init__(self) -> None:
        self._news = News()

    def say(self, line: str) -> None:
        """Have a line printed."""
        self._news.lines.append(line)

    def add(self, count: int) -> None:
        """Count units."""
        self._news.done += count

    def show(self, label: str, done: int, total: int) -> None:
        """Set everything."""
        self._news.label, self._news.done, self._news.total = label, done, total

    def measure(self, figures: dict[str, float]) -> None:
        """Set figures for a meter."""
        self._news.measured |= figures

    def read(self) -> News:
        """What there is to show; lines are given once."""
        news, self._news = self._news, dataclasses.replace(self._news, lines=[])
        return news


class Progress:
    """Shows the board for the length of a `with` block; `board` goes to the workers.

    Args:
        label: Beside the bar.
        unit: What is counted, e.g. "rows".
        board: The actor's class.
        meter: Gets the news too, about twice a second.
        told: What its constructor is given.
    """

    def __init__(
        self,
        label: str,
        unit: str,
        board: type[Board] = Board,
        *,
        meter: Callable[[News], None] | None = None,
        **told: Any,
    ) -> None:
        # Beside the driver: another node may go.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.board: Any = ray.remote(board).options(num_cpus=0, scheduling_strategy=here).remote(**told)
        self._label = label
        self._unit = unit
        self._meter = meter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._bar: tqdm[Any] | None = None
        self._logged_at = time.monotonic()

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        ray.kill(self.board)

    def _show(self) -> None:
        if sys.stderr.isatty():
            self._bar = tqdm(desc=self._label, unit=f" {self._unit}", leave=False, dynamic_ncols=True)
        stopped = False
        while not stopped:
            # One more look after the stop, so that the last words are shown.
            stopped = self._stop.wait(_POLL_S)
            try:
                news: News = ray.get(self.board.read.remote(), timeout=10)
            except ray.exceptions.RayError:
                break  # The cluster is gone; whoever waits for the work says so.
            self._print(news)
            if self._meter is not None:
                self._meter(news)
        if self._bar is not None:
            self._bar.close()

    def _print(self, news: News) -> None:
        for line in news.lines:
            tqdm.write(line, file=sys.stderr)
        if self._bar is not None:
            self._bar.total = news.total or None
            self._bar.set_description(news.label or self._label, refresh=False)
            self._bar.set_postfix_str(news.note, refresh=False)
            self._bar.n = news.done
            self._bar.refresh()
        elif news.done and time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            of = f" of {news.total:,}" if news.total else ""
            note = f", {news.note}" if news.note else ""
            print(f"{news.label or self._label}: {news.done:,}{of} {self._unit}{note}", file=sys.stderr, flush=True)
