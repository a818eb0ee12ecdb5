"""pip with signs of life: which package, how many MB so far, and for how long already.

  python .ci/install.py .venv/bin/python --constraint constraints.txt --editable .

pip itself says nothing for a minute while it unpacks, and in a log nothing of a download until it is done; what was
there already it lists in hundreds of lines. What it prints is kept and shown if it fails. Needs nothing installed.
"""

from __future__ import annotations

import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

# Files that take no time aren't worth a line in a log.
_LARGE_MB = 5.0
_LINE_S, _REDRAW_S = 3.0, 0.5
_UNITS_MB = {"bytes": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}
_FILE = re.compile(r"\s*(?:Downloading|Using cached) (\S+) \(([\d.]+) (bytes|kB|MB|GB)\)")


class Progress:
    """What pip is doing, from its lines.

    Attributes:
        now: The latest step, for people.
        total_mb: Size of the files so far.
    """

    def __init__(self) -> None:
        self.now, self.total_mb = "asking the index", 0.0

    def take(self, line: str) -> bool:
        """Take a line of pip's; tells whether it is worth one in a log."""
        if file := _FILE.match(line):
            name = "-".join(file[1].rpartition("/")[2].split("-")[:2])
            size_mb = float(file[2]) * _UNITS_MB[file[3]]
            self.total_mb += size_mb
            self.now = f"fetching {name} ({size_mb:,.0f} MB; {self.total_mb:,.0f} MB of about 2,000 so far)"
            return size_mb >= _LARGE_MB
        if line.startswith("Collecting "):
            self.now = f"looking for {line.split()[1]}"
        elif line.startswith("Processing "):
            self.now = f"looking at {line.split()[1].rpartition('/')[2]}"
        elif line.startswith("Installing collected packages: "):
            self.now = f"unpacking {line.count(',') + 1} packages"
            return True
        return False


def main(argv: Sequence[str]) -> int:
    """Run pip; returns its exit code."""
    python, *arguments = argv
    command = [python, "-u", "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", *arguments]
    lines: queue.Queue[str | None] = queue.Queue()
    said: list[str] = []
    progress, began, is_terminal = Progress(), time.monotonic(), sys.stderr.isatty()
    with subprocess.Popen(  # noqa: S603  (what the Makefile says)
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        due = began
        while True:
            try:
                line = lines.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                pass
            else:
                if line is None:
                    break
                said.append(line)
                if not progress.take(line) and time.monotonic() < due:
                    continue
            _show(f"{progress.now}, {time.monotonic() - began:.0f} s", is_terminal)
            due = time.monotonic() + (_REDRAW_S if is_terminal else _LINE_S)
    if is_terminal:
        _show("", is_terminal)
    if process.returncode:
        sys.stderr.write("".join(said[-40:]))
    return process.returncode


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _show(line: str, is_terminal: bool) -> None:
    """In place on a terminal, whose width a line mustn't pass, or it stays."""
    width = shutil.get_terminal_size().columns - 1
    sys.stderr.write(f"\r\x1b[K{line[:width]}" if is_terminal else f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
