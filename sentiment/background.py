"""Work that is repeated in a thread beside other work: heartbeats, watching, running clocks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self


class Background:
    """Calls a function every few seconds in a thread of its own, for a `with` block; what it raises ends the thread.

    `every_s` are the seconds before each call, or a function that gives them.
    """

    def __init__(self, name: str, every_s: float | Callable[[], float], call: Callable[[], None]) -> None:
        self._every_s, self._call = every_s, call
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s() if callable(self._every_s) else self._every_s):
            self._call()
