"""Progress that a person can read, from wherever the work runs.

Workers tell a small actor; a thread of the driver shows it on stderr, as a bar on a terminal and as a line every 30 s
in a log.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import ray
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
    """

    lines: list[str] = field(default_factory=list)
    label: str = ""
    done: int = 0
    total: int = 0


class _Board:
    """The actor that workers tell."""

    def __init__(self) -> None:
        self._news = News()

        self._began: float | None = None
        self._rows_read: dict[str, int] = {}

    def begin(self, at: float) -> None:
        self._began = min(at, self._began or at)

    def began(self) -> float | None:
        return self._began

    def add_read(self, rows: dict[str, int]) -> None:
        # A read that Ray runs again counts the same rows: set, not added.
        self._rows_read.update(rows)

    def rows_read(self) -> dict[str, int]:
        return self._rows_read

    def say(self, line: str) -> None:
        self._news.lines.append(line)

    def add(self, count: int) -> None:
        self._news.done += count

    def show(self, label: str, done: int, total: int) -> None:
        self._news.label, self._news.done, self._news.total = label, done, total

    def read(self) -> News:
        news, lines = self._news, self._news.lines
        self._news = News([], news.label, news.done, news.total)
        return News(lines, news.label, news.done, news.total)


class Progress:
    """Shows the board for the length of a `with` block; `board` goes to the workers.

    Args:
        label: Beside the bar.
        unit: What is counted, e.g. "rows".
    """

    def __init__(self, label: str, unit: str) -> None:
        self.board: Any = ray.remote(_Board).options(num_cpus=0).remote()
        self._label = label
        self._unit = unit
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
                self._print(ray.get(self.board.read.remote(), timeout=10))
            except ray.exceptions.RayError:
                break  # The cluster is gone; whoever waits for the work says so.
        if self._bar is not None:
            self._bar.close()

    def _print(self, news: News) -> None:
        for line in news.lines:
            tqdm.write(line, file=sys.stderr)
        if self._bar is not None:
            self._bar.total = news.total or None
            self._bar.set_description(news.label or self._label, refresh=False)
            self._bar.n = news.done
            self._bar.refresh()
        elif news.done and time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            of = f" of {news.total:,}" if news.total else ""
            print(f"{news.label or self._label}: {news.done:,}{of} {self._unit}", file=sys.stderr, flush=True)
