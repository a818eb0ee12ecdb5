"""Progress of scoring: rows, rows/s, share, time left, rejected, as far as they can be known."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from typing import Any

from sentiment.data.workers import WorkerLog
from sentiment.observability.progress import ProgressActor, ProgressState
from sentiment.observability.prometheus import ROWS, SHARE, STORED_BYTES


class ScoringBoard(ProgressActor, WorkerLog):
    """The actor that model actors and readers report to.

    How far a shard is gets set, not added: one that Ray runs again counts once.

    Args:
        stored_bytes: All input, stored.
        rows: Rows that were done before.
        rejected: How many of them were rejected.
        bytes_done: What was done before, stored.
    """

    def __init__(self, stored_bytes: int, rows: int, rejected: int, bytes_done: int) -> None:
        ProgressActor.__init__(self)
        WorkerLog.__init__(self)
        self._stored_bytes, self._before = stored_bytes, (rows, rejected, bytes_done)
        self._shards: dict[str, tuple[int, int, int]] = {}
        self._sums = [0, 0, 0]
        self._began: float | None = None
        self._attempts: Counter[str] = Counter()
        self._actors: list[Any] = []

    def begin(self, name: str, began: float) -> int:
        """Note that a shard was begun; work began at the earliest time that anybody gives.

        Returns:
            How often this shard was begun.
        """
        self._began = min(began, self._began or began)
        self._attempts[name] += 1
        if self._attempts[name] > 1:
            self.say(f"a model actor was lost, another one scores its shard {name}")
        return self._attempts[name]

    def begin_reading(self, path: str) -> int:
        """Note that a reader begins, as `WorkerLog` does, and say so if it isn't the first."""
        started = super().begin_reading(path)
        if started > 1:
            self.say(f"a reader was lost, another one reads {path}")
        return started

    def join(self, actor: Any) -> None:
        """Note a model actor."""
        self._actors.append(actor)

    def actors(self) -> list[Any]:
        """The model actors."""
        return self._actors

    def shard(self, name: str, rows: int, rejected: int, stored_bytes: int) -> None:
        """Set how far a shard is."""
        new, old = (rows, rejected, stored_bytes), self._shards.get(name, (0, 0, 0))
        self._shards[name] = new
        self._sums = [total + after - before for total, after, before in zip(self._sums, new, old, strict=True)]

    def read(self) -> ProgressState:
        """Work out what there is to show."""
        rows, rejected, stored = (new + old for new, old in zip(self._sums, self._before, strict=True))
        self._state.done = rows
        share = stored / self._stored_bytes if self._stored_bytes else None
        self._state.measured = {ROWS: rows - rejected, STORED_BYTES: stored}
        if share is not None:
            self._state.measured[SHARE] = min(1.0, share)
        if self._began is not None:
            self._state.label = "score"
            elapsed_s = max(1e-3, time.time() - self._began)
            share_per_s = self._sums[2] / self._stored_bytes / elapsed_s if self._stored_bytes else 0.0
            self._state.note = describe(self._sums[0] / elapsed_s, rejected, share, share_per_s)
        return super().read()


def describe(rows_per_s: float, rejected: int, share: float | None, share_per_s: float) -> str:
    """The line behind the number of rows.

    Args:
        rows_per_s: Of this run.
        rejected: Rows.
        share: How much of the input is done, from 0 to 1; None if nobody knows.
        share_per_s: How much of that a second does.
    """
    words = [f"{rows_per_s:,.0f} rows/s"]
    if share is not None:
        share = min(1.0, share)
        words.append(f"{share:.0%}")
        if share_per_s > 0:
            words.append(f"{timedelta(seconds=round((1 - share) / share_per_s))} left")
    return ", ".join([*words, f"{rejected:,} rejected"])
