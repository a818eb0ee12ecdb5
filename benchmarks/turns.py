"""What benchmarks share: contenders that take turns, programs in processes of their own, and what is said meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# Contender → its figures, one for each turn.
Turns = dict[str, list[dict[str, Any]]]


def take_turns(repeats: int, contenders: Mapping[str, Callable[[], dict[str, Any]]]) -> Turns:
    """Measure each, again and again: what slows the machine down for a while hits all of them.

    Args:
        repeats: Turns.
        contenders: Name → what measures it once.

    Returns:
        Their figures.
    """
    turns: Turns = {name: [] for name in contenders}
    for number in range(repeats):
        for name, measure in contenders.items():
            say(f"turn {number + 1} of {repeats}: {name}")
            turns[name].append(measure())
            say(f"  {json.dumps(turns[name][-1])}")
    return turns


def program(script: str, *arguments: str) -> dict[str, Any]:
    """Run a program of this folder in a process of its own.

    Args:
        script: Its file.
        arguments: Its arguments.

    Returns:
        What its last line says, which is JSON.
    """
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    done = subprocess.run(command, check=False, cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{script} failed; see above")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def say(line: str) -> None:
    """Tell whoever waits."""
    print(line, file=sys.stderr, flush=True)
