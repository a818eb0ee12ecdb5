"""How many model actors a cluster gets: never more than still fit it when somebody looks a moment later."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from sentiment import session
from sentiment.errors import ResourceError
from sentiment.scoring import actors
from sentiment.scoring.actors import Pool
from sentiment.settings import ScoreSettings

CPUS, GPUS, SHARES = (1, 2, 3, 4, 6, 8, 9, 12, 16, 96), (0, 1, 2, 4, 8), (1, 0.5, 0.25, 0.2, 0.125)


def given(monkeypatch: pytest.MonkeyPatch, *nodes: tuple[float, float]) -> None:
    """A cluster of such nodes: CPUs and GPUs of each."""
    found: list[dict[str, float]] = [{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes]
    for module in (session, actors):
        monkeypatch.setattr(module, "node_resources", lambda: found)


def asked(**more: Any) -> ScoreSettings:
    return ScoreSettings.model_validate({"model": "m", "input": ["i"], "output": "o", **more})


@pytest.mark.parametrize("gpus", GPUS)
def test_what_is_made_fits(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """A pool that doesn't is ended and made again, for ever."""
    for cpus, others in itertools.product(CPUS, (0, 1, 3)):
        given(monkeypatch, (cpus, gpus), *[(2, 0)] * others)
        assert Pool.of(asked()).fits
        for share in SHARES if gpus and cpus > 0.95 else ():
            pool = Pool.of(asked(use_gpu=True, gpus_per_actor=share))
            assert pool.fits
            assert pool.size <= gpus / share + 1e-6


@pytest.mark.parametrize(
    ("cpus", "gpus", "share", "size"),
    [(3, 1, 0.25, 3), (4, 1, 0.25, 4), (12, 4, 0.25, 15), (8, 1, 0.5, 2), (2, 1, 0.2, 2)],
)
def test_actors_beside_gpus(monkeypatch: pytest.MonkeyPatch, cpus: int, gpus: int, share: float, size: int) -> None:
    given(monkeypatch, (cpus, gpus))
    assert Pool.of(asked(use_gpu=True, gpus_per_actor=share)).size == size
    with pytest.raises(
        ResourceError, match=rf"{size + 1} model actors .* 0.2 CPUs of each node left .* room for {size}"
    ):
        Pool.of(asked(use_gpu=True, gpus_per_actor=share, num_actors=size + 1))
