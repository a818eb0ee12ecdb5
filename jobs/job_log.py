"""A submitted job's log, as it comes: each line once, and the line that is the job's result told from the others."""

from __future__ import annotations

import json
from collections.abc import Callable


class JobLog:
    """Takes pieces of a log and shows its lines.

    A connection that was lost begins again at the log's start; what came before is known by its place. The last
    line that is a JSON object is held back: all that a job prints on stdout, which is one with stderr on a cluster.

    Args:
        show: Called with each line but the one that is held back.

    Attributes:
        result: The line that is held back, if there is one.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self.result: str | None = None
        self._show = show
        self._taken = 0
        self._rest = ""

    def take(self, text: str, at: int) -> None:
        """Take what is new of a piece.

        Args:
            text: The piece.
            at: Its place, in characters from the log's start; no further on than what was taken so far.
        """
        new = text[max(0, self._taken - at) :]
        self._taken += len(new)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """Show what stands behind the last line break."""
        if self._rest:
            self._line(self._rest)
            self._rest = ""

    def _line(self, line: str) -> None:
        if not _is_object(line):
            self._show(line)
            return
        if self.result is not None:
            self._show(self.result)
        self.result = line


def _is_object(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
