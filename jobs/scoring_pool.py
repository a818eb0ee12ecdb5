"""The pool of model actors: how many fit the cluster, and what happens when it shrinks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from jobs.background import Background
from sentiment.session import node_resources, require, room, wait_for_room
from sentiment.settings import EvaluateSettings, RaySettings, ScoreSettings

# Shares of a CPU; together under 1, so that on a single CPU both can run.
ACTOR_CPUS, READ_CPUS = 0.75, 0.2
_WATCH_S, _ANSWER_S = 2.0, 10.0


@dataclass(frozen=True)
class Pool:
    """Model actors.

    Attributes:
        size: How many.
        num_threads: Threads of torch of each.
        cpus: CPUs that each reserves.
        gpus: GPUs, or the share of one, that each reserves.
    """

    size: int
    num_threads: int
    cpus: float
    gpus: float

    @classmethod
    def of(cls, settings: ScoreSettings | EvaluateSettings, at_most: int | None = None) -> Pool:
        """What fits the cluster as it is.

        Args:
            settings: What is asked for.
            at_most: Actors, if there were more nodes before.

        Raises:
            ResourceError: Nothing, or not what was asked for.
        """
        nodes = node_resources()
        cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
        gpus_each = settings.gpus_per_actor if settings.use_gpu else 0.0
        most = room(ACTOR_CPUS, gpus_each, READ_CPUS) if settings.use_gpu else sum(cpus)
        size = settings.num_actors or max(1, most)
        if at_most is not None:
            size = max(1, min(size, at_most, most))
        num_threads = 1
        if not settings.use_gpu:
            # Threads for the CPUs that fewer actors leave idle, as far as one node has them.
            num_threads = max(1, min(sum(cpus) // size, min(cpus, default=1)))
        _on_nodes(require, size, settings, num_threads)
        return cls(size, num_threads, ACTOR_CPUS * num_threads, gpus_each)

    @staticmethod
    def wait(settings: ScoreSettings | EvaluateSettings, ray_settings: RaySettings) -> None:
        """Wait for room for the actors that are asked for, or for one: the pool is made of what there is then.

        Args:
            settings: What is asked for.
            ray_settings: How long.
        """
        _on_nodes(partial(wait_for_room, ray_settings), settings.num_actors or 1, settings, 1)

    @property
    def fits(self) -> bool:
        """Whether it still does: nodes may have gone."""
        return room(self.cpus, self.gpus, spare_cpus=READ_CPUS) >= self.size


def _on_nodes(
    act: Callable[..., None], size: int, settings: ScoreSettings | EvaluateSettings, num_threads: int
) -> None:
    """Require so many actors, or wait for them: on CPUs each has its threads', beside a GPU what reading leaves."""
    if settings.use_gpu:
        act(size, "model actors", cpus=ACTOR_CPUS, gpus=settings.gpus_per_actor, spare_cpus=READ_CPUS)
    else:
        act(size, "model actors", cpus=num_threads)


def watch(pool: Pool, board: Any) -> Background:
    """End a pass whose pool no longer fits, for a `with` block.

    Ray keeps calls of an actor whose node has gone until there is room for it elsewhere, which may be never. Killed for
    good, the pool's calls fail and the pass with them; the next one has a pool that fits.

    Args:
        pool: The pool.
        board: A `ScoringBoard`, which knows its actors.
    """

    def look() -> None:
        # Whatever goes wrong while nodes come and go: the next look may succeed, and without any nobody would.
        with contextlib.suppress(Exception):
            if not pool.fits:
                for actor in ray.get(board.actors.remote(), timeout=_ANSWER_S):
                    ray.kill(actor)

    return Background("watch", _WATCH_S, look)
