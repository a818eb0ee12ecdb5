"""What the chaos tests found, as docs/results/chaos.md shows it: `make chaos` writes it, `make test` doesn't."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from job_runs import wait_for
from ray.cluster_utils import Cluster

from sentiment.data.manifest import machine, machine_line

_HEAD = """# Chaos, measured

Made by `make chaos`: real jobs and a real service on a Ray cluster of several nodes on one machine
(`ray.cluster_utils.Cluster`; nodes are killed, not drained), each followed by a check that nothing is missing, doubled
or different. Raw numbers in [chaos.json](chaos.json).

| what was done | to | what finished | lost | recovered after | how it is known |
| --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Recovery:
    """One case.

    Attributes:
        done: What was killed or broken.
        to: Which work.
        finished: What came of it.
        lost: What is missing; "nothing" if the test is to pass.
        recovered: Seconds, and from when to when.
        known: How the test knows.
    """

    done: str
    to: str
    finished: str
    lost: str
    recovered: str
    known: str


@contextmanager
def second_node(cluster: Cluster) -> Iterator[Any]:
    """A node of two CPUs for a `with` block, in which it may be killed."""
    node = cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
    try:
        yield node
    finally:
        if node in cluster.list_all_nodes():
            cluster.remove_node(node, allow_graceful=False)


def seconds_until_more(what: str, look: Callable[[], Any], before: Any, process: subprocess.Popen[str]) -> float:
    """Wait until `look` gives more than before; gives how long that took."""
    since = time.monotonic()
    wait_for(f"another {what}", lambda: look() > before, process)
    return time.monotonic() - since


class Recoveries:
    """Cases of a test session, kept beside those of earlier ones."""

    def __init__(self) -> None:
        self._folder = os.environ.get("CHAOS_RESULTS")

    def note(self, **words: str) -> None:
        """Keep a case, if results are wanted; an older one of the same is replaced."""
        case = Recovery(**words)
        print(case)
        if self._folder is None:
            return
        raw = Path(self._folder, "chaos.json")
        kept: dict[str, Any] = json.loads(raw.read_text()) if raw.exists() else {"cases": []}
        others = [one for one in kept["cases"] if (one["done"], one["to"]) != (case.done, case.to)]
        cases = sorted([*others, asdict(case)], key=lambda one: (one["to"], one["done"]))
        created = datetime.now(UTC).date().isoformat()
        kept = {"machine": machine("ray", "torch", "pyarrow", "fsspec"), "created": created, "cases": cases}
        raw.write_text(json.dumps(kept, indent=1) + "\n")
        rows = "".join(f"| {' | '.join(one.values())} |\n" for one in cases)
        where = f"\nOn {machine_line(kept['machine'])}; {created}.\n"
        Path(self._folder, "chaos.md").write_text(_HEAD + rows + where)
