"""The form of log messages on stderr: a line for people, or a JSON object a line for a cluster's log collector.

Modules log to `logging.getLogger(__name__)`; a command calls `configure` once. Without it (as a library) nothing is
configured, and Python shows warnings alone. Levels: INFO tells what happens, WARNING what a user should look at, ERROR
what ends the command, DEBUG what helps to find a fault.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from sentiment.errors import ConfigError, SentimentError

VARIABLE = "SENTIMENT_LOG"
LOGGERS = ("sentiment", "serve_app", "benchmarks")


class _Formatter(logging.Formatter):
    """Messages as people read them: warnings begin with "warning:", errors with the command's name."""

    def __init__(self, command: str, as_json: bool) -> None:
        super().__init__()
        self._command, self._as_json = command, as_json

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if self._as_json:
            line = {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
                "level": record.levelname.lower(),
                "command": self._command,
                "logger": record.name,
                "message": message,
            }
            return json.dumps(line | ({"traceback": self.formatException(record.exc_info)} if record.exc_info else {}))
        prefix = {logging.WARNING: "warning: ", logging.ERROR: f"{self._command}: "}.get(record.levelno, "")
        return prefix + message + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class _Stderr(logging.Handler):
    """Writes to whatever is stderr at the time, or nowhere if that is closed."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            print(self.format(record), file=sys.stderr, flush=True)


def configure(command: str, *, verbose: bool = False, quiet: bool = False, as_json: bool = False) -> None:
    """Show log messages on stderr from now on; called again, it replaces what was set.

    Args:
        command: Its name, which stands before errors.
        verbose: Show debug messages too.
        quiet: Show warnings and errors alone.
        as_json: One JSON object a line, as with SENTIMENT_LOG=json.

    Raises:
        ConfigError: SENTIMENT_LOG is neither text nor json.
    """
    form = os.environ.get(VARIABLE) or "text"
    handler = _Stderr()
    handler.setFormatter(_Formatter(command, as_json or form == "json"))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    if form not in ("text", "json"):
        raise ConfigError(f"{VARIABLE} is text or json, got {form!r}")


def run_command(command: str, work: Callable[[], int], *, as_json: bool = False) -> int:
    """Do a command's work with logging configured, and report a user's mistake in one line.

    Returns:
        The exit code: that of `work`, 2 for a `SentimentError`, 130 for Ctrl-C. An unexpected error is raised, but
        logged where logs are JSON, with exit code 1.
    """
    logger = logging.getLogger("sentiment")
    try:
        configure(command, as_json=as_json)
        return work()
    except SentimentError as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted")
        return 130
    except Exception as error:
        if not (as_json or os.environ.get(VARIABLE) == "json"):
            raise
        logger.exception("%s: %s", type(error).__name__, error)
        return 1
