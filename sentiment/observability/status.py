"""What a person sees on stderr while a command waits: a status line with the seconds that run.

A person who sees nothing for five seconds thinks that it hangs; a log that gets a line every second is unreadable.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from sentiment.background import Background

# What most commands wait for before they can do anything; importing them takes seconds.
LIBRARIES = "loading PyTorch and Ray"
# A log gets a line this often at first, and less often once the work is known to be long.
_LINE_S, _LATER_LINE_S, _LONG_S = 3.0, 30.0, 120.0
_REDRAW_S = 0.5


def seconds_to_next_line(elapsed_s: float) -> float:
    """Seconds until a log's next line of progress, for work that began `elapsed_s` ago."""
    return _LINE_S if elapsed_s < _LONG_S else _LATER_LINE_S


@contextmanager
def status_line(what: str, stream: TextIO | None = None, every_s: float | None = None) -> Iterator[None]:
    """Say what is being done for the length of a `with` block: "starting Ray…", then "starting Ray… 3 s".

    A terminal has one line whose seconds run, and which is cleared at the end; a log a line at once and others later.
    In a program that doesn't log messages of level INFO, as one that uses us as a library, nothing is said.

    Args:
        what: What is being done, without an ellipsis.
        stream: Where to write while stderr is redirected.
        every_s: Seconds between lines or redraws; by default what suits the stream.
    """
    out, logger = stream or sys.stderr, logging.getLogger("sentiment")
    if out is None or not logger.isEnabledFor(logging.INFO):  # Closed, as by `2>&-`; --quiet.
        yield
        return
    started, is_terminal = time.monotonic(), out.isatty()

    def write(line: str) -> None:
        if is_terminal:
            line = "\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]
        elif stream is None or not logger.handlers:
            logger.info(line)
            return
        else:
            record = logger.makeRecord(logger.name, logging.INFO, "", 0, line, (), None)
            line = logger.handlers[0].format(record) + "\n"
        out.write(line)
        out.flush()

    def wait_s() -> float:
        return every_s or (_REDRAW_S if is_terminal else seconds_to_next_line(time.monotonic() - started))

    write(f"{what}…")
    try:
        with Background("status", wait_s, lambda: write(f"{what}… {time.monotonic() - started:.0f} s")):
            yield
    finally:
        if is_terminal:
            write("")
