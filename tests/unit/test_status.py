"""Signs of life: a line before the work, others while it lasts, and nothing left behind on a terminal."""

from __future__ import annotations

import io
import json
import logging
import re
import threading

import pytest

from sentiment.observability.log import configure
from sentiment.observability.status import seconds_to_next_line, status_line


class Stream(io.StringIO):
    """Knows when so many lines or redraws have been written."""

    def __init__(self, *, is_terminal: bool, wanted: int) -> None:
        super().__init__()
        self._is_terminal, self._left, self.is_full = is_terminal, wanted, threading.Event()

    def isatty(self) -> bool:
        return self._is_terminal

    def flush(self) -> None:
        self._left -= 1
        if not self._left:
            self.is_full.set()


def test_a_log_gets_a_line_at_once_and_others_while_it_lasts() -> None:
    configure("train")
    log = Stream(is_terminal=False, wanted=3)
    with status_line("starting Ray", log, every_s=0.01):
        assert log.getvalue().startswith("starting Ray…\n")
        assert log.is_full.wait(60)
    first, *others = log.getvalue().splitlines()
    assert first == "starting Ray…"
    assert len(others) >= 2
    assert all(re.fullmatch(r"starting Ray… \d+ s", line) for line in others)


def test_a_terminal_has_one_line_which_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    configure("train")
    monkeypatch.setenv("COLUMNS", "12")
    terminal = Stream(is_terminal=True, wanted=3)
    with status_line("starting Ray", terminal, every_s=0.01):
        assert terminal.is_full.wait(60)
    draws = terminal.getvalue().split("\r\x1b[K")
    assert draws[0] == draws[-1] == ""
    assert set(draws[1:-1]) == {"starting Ra"}, "a longer line would wrap, and stay"
    assert "\n" not in terminal.getvalue()


def test_it_goes_before_an_error_is_told() -> None:
    configure("train")
    terminal = Stream(is_terminal=True, wanted=1)
    with pytest.raises(ValueError, match="no"), status_line("reading", terminal):
        raise ValueError("no")
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert not any(thread.name == "status" for thread in threading.enumerate())


def test_a_library_says_nothing_unless_it_is_asked_to(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its user has configured no logging, or their own."""
    terminal = Stream(is_terminal=True, wanted=1)
    with status_line("starting Ray"), status_line("starting Ray", terminal):
        pass
    assert (terminal.getvalue(), capsys.readouterr(), caplog.messages) == ("", ("", ""), [])
    with caplog.at_level(logging.INFO), status_line("starting Ray"):
        pass
    assert (capsys.readouterr().err, caplog.messages) == ("", ["starting Ray…"])


def test_in_json_it_is_a_message_like_others() -> None:
    """While Ray starts, stderr leads elsewhere and the line has a stream of its own."""
    configure("train", as_json=True)
    log = Stream(is_terminal=False, wanted=1)
    with status_line("starting Ray", log):
        pass
    (line,) = map(json.loads, log.getvalue().splitlines())
    assert (line["level"], line["command"], line["message"]) == ("info", "train", "starting Ray…")


def test_without_stderr_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """`2>&-`: a line on stdout would be in the way of the result."""
    configure("train")
    monkeypatch.setattr("sys.stderr", None)
    with status_line("starting Ray"):
        pass


def test_no_log_is_silent_for_five_seconds_at_first_or_flooded_later() -> None:
    assert seconds_to_next_line(0) < 5
    assert seconds_to_next_line(3600) == 30
