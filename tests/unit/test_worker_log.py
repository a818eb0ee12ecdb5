"""What is known of the workers: who fell silent, and which files readers died of."""

from __future__ import annotations

import pytest

from sentiment.data import workers
from sentiment.data.workers import WorkerLog


def test_deaths_of_readers_are_counted() -> None:
    """A reader that raises came to an end; one that died didn't."""
    log = WorkerLog()
    assert [log.begin_reading("a"), log.begin_reading("b"), log.begin_reading("a")] == [1, 1, 2]
    log.end_reading("a", False)
    assert (log.begin_reading("a"), log.begin_reading("b")) == (1, 2)
    log.end_reading("of which the beginning was never heard", True)
    log.begin_reading("c")
    assert log.suspects() == ["b"]
    assert log.begin_reading("b") == 1


def test_what_was_not_read_to_its_end_is_known() -> None:
    log = WorkerLog()
    for path in ("whole", "raised", "died", "raised, then whole"):
        log.begin_reading(path)
    log.end_reading("whole", True)
    log.end_reading("raised", False)
    log.end_reading("raised, then whole", False)
    log.begin_reading("raised, then whole")
    assert log.unread() == ["died", "raised", "raised, then whole"]
    log.end_reading("raised, then whole", True)
    assert log.unread() == ["died", "raised"]


def test_the_silent_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(workers.time, "monotonic", lambda: now)
    log = WorkerLog()
    for pid in (1, 2, 3):
        log.alive("node", pid)
    now = 109.0
    log.alive("node", 2)
    log.leave("node", 3)
    now = 111.0
    assert log.silent(10.0) == [("node", 1)]
    assert log.silent(10.0) == []
    now = 130.0
    assert log.silent(10.0) == [("node", 2)]
