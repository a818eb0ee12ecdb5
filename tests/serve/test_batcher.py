"""Dynamic batching: real batches under load, no wait without it, fairness, limits, models that change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from served import Notes, settings_for

from serve_app.app import RayMetrics
from serve_app.engine import Batcher
from serve_app.responses import ApiError

LIMITS = {"max_batch_tokens": 100, "max_queued_texts": 1000}


class Model:
    """Answers with each row's first number; can be made to wait."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def logits(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        self.batches.append(len(ids))
        assert self.go.wait(20)
        return np.array([row[0] for row in ids], dtype=np.float32)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def run(work: Callable[[Batcher, Model, Notes], Coroutine[None, None, None]], **limits: int) -> None:
    async def main() -> None:
        notes = Notes()
        batcher = Batcher(settings_for(Path("m"), **{**LIMITS, **limits}), notes)
        await work(batcher, Model(), notes)
        await batcher.close()

    asyncio.run(main())


def test_what_comes_while_the_model_is_busy_is_one_batch() -> None:
    async def work(batcher: Batcher, model: Model, notes: Notes) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.run(model.logits, [[7]]))
        await until(lambda: model.batches == [1])
        others = [asyncio.create_task(batcher.run(model.logits, [[number, 1]])) for number in range(30)]
        await until(lambda: batcher.waiting == 31)
        model.go.set()
        assert (await first).tolist() == [7]
        assert [answer.tolist() for answer in await asyncio.gather(*others)] == [[number] for number in range(30)]
        assert model.batches == [1, 30]
        assert notes.batches == [(1, 1), (30, 60)]

    run(work)


def test_a_batch_holds_the_budget_of_tokens() -> None:
    async def work(batcher: Batcher, model: Model, notes: Notes) -> None:
        model.go.clear()
        tasks = [asyncio.create_task(batcher.run(model.logits, [[number] * 30])) for number in range(10)]
        tasks.append(asyncio.create_task(batcher.run(model.logits, [[99] * 500])))  # More than a batch, alone.
        await until(lambda: batcher.waiting == 11)
        model.go.set()
        await asyncio.gather(*tasks)
        assert all(tokens <= 100 or texts == 1 for texts, tokens in notes.batches)
        assert sum(texts for texts, _ in notes.batches) == 11

    run(work)


def test_a_large_request_lets_others_in() -> None:
    async def work(batcher: Batcher, model: Model, notes: Notes) -> None:
        large = asyncio.create_task(batcher.run(model.logits, [[number] * 50 for number in range(40)]))
        await until(lambda: len(notes.batches) >= 1)
        small = asyncio.create_task(batcher.run(model.logits, [[5]]))
        assert (await small).tolist() == [5]
        assert not large.done()
        assert (await large).tolist() == list(range(40))

    run(work)


def test_a_full_queue_refuses_and_recovers() -> None:
    async def work(batcher: Batcher, model: Model, notes: Notes) -> None:
        model.go.clear()
        tasks = [asyncio.create_task(batcher.run(model.logits, [[1], [2]])) for _ in range(5)]
        await until(lambda: batcher.waiting == 10)
        with pytest.raises(ApiError, match="10 texts wait already, 10 may"):
            await batcher.run(model.logits, [[3]])
        model.go.set()
        await asyncio.gather(*tasks)
        # One request alone may hold more than may wait: it has to be answered some time.
        assert (await batcher.run(model.logits, [[4]] * 20)).tolist() == [4] * 20
        assert batcher.waiting == 0

    run(work, max_queued_texts=10)


def test_those_who_have_gone_are_left_out() -> None:
    async def work(batcher: Batcher, model: Model, notes: Notes) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.run(model.logits, [[1]]))
        await until(lambda: model.batches == [1])
        gone = asyncio.create_task(batcher.run(model.logits, [[2]]))
        stays = asyncio.create_task(batcher.run(model.logits, [[3]]))
        await until(lambda: batcher.waiting == 3)
        gone.cancel()
        await asyncio.wait([gone])
        model.go.set()
        assert [(await first).tolist(), (await stays).tolist()] == [[1], [3]]
        assert model.batches == [1, 1]
        assert batcher.waiting == 0

    run(work)


def test_a_batch_is_of_one_model() -> None:
    async def work(batcher: Batcher, model: Model, notes: Notes) -> None:
        after = Model()
        model.go.clear()
        tasks = [asyncio.create_task(batcher.run(which.logits, [[1]])) for which in (model, model, after, after, after)]
        await until(lambda: batcher.waiting == 5)
        model.go.set()
        await asyncio.gather(*tasks)
        assert (sum(model.batches), after.batches) == (2, [3])

    run(work)


def test_whoever_waits_at_the_end_is_told() -> None:
    async def work(batcher: Batcher, model: Model, notes: Notes) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.run(model.logits, [[1]]))
        await until(lambda: model.batches == [1])
        second = asyncio.create_task(batcher.run(model.logits, [[2]]))
        await until(lambda: batcher.waiting == 2)
        await batcher.close()
        for task in (first, second):
            with pytest.raises(ApiError, match="the service is being stopped"):
                await task
        model.go.set()

    run(work)


def test_a_failing_batch_fails_its_own_requests_only() -> None:
    class Fails(Model):
        def logits(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
            raise ValueError("broken")

    async def work(batcher: Batcher, model: Model, notes: Notes) -> None:
        with pytest.raises(ValueError, match="broken"):
            await batcher.run(Fails().logits, [[1]])
        assert (await batcher.run(model.logits, [[2]])).tolist() == [2]

    run(work)


def test_no_texts_at_all_and_the_real_meter() -> None:
    """A counter of Ray's takes no 0: what it raised once ended the batching for good."""

    async def main() -> None:
        batcher, model = Batcher(settings_for(Path("m"), **LIMITS), RayMetrics()), Model()
        assert (await batcher.run(model.logits, [])).tolist() == []
        assert (await batcher.run(model.logits, [[3]])).tolist() == [3]
        await batcher.close()
        with pytest.raises(ApiError, match="the service is being stopped"):
            await batcher.run(model.logits, [[1]])

    asyncio.run(main())


def test_measuring_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Notes):
        def batch(self, texts: int, tokens: int, queued_s: float, inference_s: float) -> None:
            raise ValueError("secret")

    async def main() -> None:
        batcher, model = Batcher(settings_for(Path("m"), **LIMITS), Broken()), Model()
        for number in (1, 2):
            assert (await batcher.run(model.logits, [[number]])).tolist() == [number]
        await batcher.close()

    asyncio.run(main())
    assert "a batch wasn't measured: ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_what_is_stuck_or_broken_can_be_seen() -> None:
    class Fails(Model):
        def logits(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
            raise ValueError("broken")

    async def work(batcher: Batcher, model: Model, notes: Notes) -> None:
        for number in (1, 2):
            with pytest.raises(ValueError, match="broken"):
                await batcher.run(Fails().logits, [[1]])
            assert batcher.failures == number
        model.go.clear()
        task = asyncio.create_task(batcher.run(model.logits, [[1]]))
        await until(lambda: batcher.busy_s > 0.02)
        model.go.set()
        await task
        assert (batcher.busy_s, batcher.failures) == (0, 0)

    run(work)
