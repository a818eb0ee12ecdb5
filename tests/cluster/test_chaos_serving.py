"""A node is lost while it serves: who asks then waits a little longer, or is told to come back."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import pytest
from job_runs import environment, free_port, running, wait_for
from ray.cluster_utils import Cluster
from recovery import Recoveries, second_node

pytestmark = pytest.mark.chaos
CLIENTS, GIVE_UP_S = 8, 30.0


@dataclass
class Answers:
    """What came back.

    Attributes:
        statuses: How attempts ended: status, or kind of error.
        said: What was answered, all to the same question.
        lost: Questions that never got an answer.
        slowest_s: From a question to its answer, over all attempts.
        last_refusal: When an attempt last failed.
    """

    statuses: Counter[object] = field(default_factory=Counter)
    said: set[str] = field(default_factory=set)
    lost: int = 0
    slowest_s: float = 0.0
    last_refusal: float = 0.0

    @property
    def good(self) -> int:
        return self.statuses[200]

    def ask(self, client: httpx.Client, url: str) -> None:
        """Ask until there is an answer: whatever scores texts may be asked again."""
        began, status = time.monotonic(), None
        while status != 200 and time.monotonic() < began + GIVE_UP_S:
            try:
                answer = client.post(f"{url}/predict", json={"inputs": "what a day"})
                status = answer.status_code
            except httpx.HTTPError as error:
                status = type(error).__name__
            self.statuses[status] += 1
            if status != 200:
                self.last_refusal = time.monotonic()
                time.sleep(0.05)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        if status == 200:
            self.said.add(answer.text)
        else:
            self.lost += 1


@contextmanager
def traffic(url: str) -> Iterator[Answers]:
    """Clients that ask all the time, each over a connection of its own."""
    answers, stop = Answers(), threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=GIVE_UP_S) as client:
            while not stop.is_set():
                answers.ask(client, url)

    with ThreadPoolExecutor(CLIENTS) as pool:
        tasks = [pool.submit(ask) for _ in range(CLIENTS)]
        try:
            yield answers
        finally:
            stop.set()
        for task in tasks:
            task.result()


def is_healthy(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health").status_code == 200
    return False


def test_node_lost_while_serving(nodes: Cluster, bundle: Path, recoveries: Recoveries) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Two CPUs for a replica: one fits on the head, the other on the node that is lost.
    flags = ("--model", bundle, "--port", port, "--min-replicas", 2, "--max-replicas", 2, "--cpus-per-replica", 2)
    with (
        second_node(nodes) as lost,
        running("-m", "serve_app", *flags, "--address", nodes.address, env=environment(None)) as process,
    ):
        wait_for("both replicas", lambda: is_healthy(url) and both_busy(nodes), process)
        with traffic(url) as answers:
            wait_for("traffic", lambda: answers.good > 100, process)
            nodes.remove_node(lost, allow_graceful=False)
            killed, before = time.monotonic(), answers.good
            wait_for(
                "calm",
                lambda: answers.good > before + 300 and time.monotonic() > max(killed, answers.last_refusal) + 5,
                process,
            )
            calm_s = max(0.0, answers.last_refusal - killed)
            with second_node(nodes):
                wait_for("the second replica again", lambda: both_busy(nodes), process)
    assert answers.lost == 0
    assert len(answers.said) == 1
    # Each node has a proxy. Whoever was connected to that of the lost one, and waited for an answer, has to ask again.
    cut = answers.statuses["RemoteProtocolError"] + answers.statuses["ReadError"]
    assert cut <= CLIENTS
    assert set(answers.statuses) <= {200, 503, "RemoteProtocolError", "ReadError"}, answers.statuses
    recoveries.note(
        done="node with one of two replicas killed",
        to=f"service under {CLIENTS} clients",
        finished=f"{answers.good:,} questions; {answers.statuses[503]} were refused by a 503 first, {cut} lost their "
        f"connection to the node's own proxy first; slowest answer {answers.slowest_s:.1f} s",
        lost="nothing: asked again, each was answered",
        recovered=f"{calm_s:.1f} s until the last failed attempt",
        known="every question got the same answer; a new node gets the second replica",
    )


def both_busy(nodes: Cluster) -> bool:
    """Both nodes' CPUs are taken, by a replica each."""
    free = nodes.global_state.available_resources_per_node()
    return len(free) == 2 and not any(node.get("CPU") for node in free.values())
