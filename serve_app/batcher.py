"""Dynamic batching by tokens, without waiting: whatever has come in while the model was busy is its next batch.

`serve.batch` isn't used, for it forms batches ahead: with the model busy and no waiting time, each request becomes a
batch of its own that queues for the model, and with a waiting time every request pays it, also the only one. Here the
queue itself is the waiting room: an idle model starts at once, a busy one finds all that has gathered, up to a budget
of tokens. The forward pass has a thread of its own, so that the event loop goes on reading requests meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

_LOG = logging.getLogger("ray.serve")
FloatArray = npt.NDArray[np.float32]


class Model(Protocol):
    """What a batch is run through."""

    def logits(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        """One logit for each row."""
        ...


class QueueFullError(Exception):
    """More texts wait than may."""


class ClosedError(Exception):
    """Nothing is computed any more."""


@dataclass(eq=False)
class _Job:
    model: Model
    ids: Sequence[Sequence[int]]
    tokens: int
    answer: asyncio.Future[FloatArray]
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class BatchFacts:
    """What a batch was like, for metrics.

    Attributes:
        texts: Rows.
        tokens: Of all of them, without padding.
        queued_s: How long its oldest text waited, s.
        inference_s: Of the forward pass, s.
    """

    texts: int
    tokens: int
    queued_s: float
    inference_s: float


class Batcher:
    """Gathers encoded texts into batches for one model at a time; belongs to one event loop.

    Args:
        max_tokens: Tokens of a batch, about; a single text may have more.
        max_texts: Texts that may wait.
        observe: Told of each batch.
    """

    def __init__(self, max_tokens: int, max_texts: int, observe: Callable[[BatchFacts], None]) -> None:
        self._max_tokens, self._max_texts, self._observe = max_tokens, max_texts, observe
        self._jobs: deque[_Job] = deque()
        self._under_way: list[_Job] = []
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loop: asyncio.Task[None] | None = None
        self._is_closed = False
        self._began: float | None = None
        self._failures = 0

    @property
    def waiting(self) -> int:
        """Texts that wait."""
        return self._waiting

    @property
    def failures(self) -> int:
        """Batches that failed since one succeeded."""
        return self._failures

    @property
    def busy_s(self) -> float:
        """How long the batch under way has been, s; 0 if there is none."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def check_room(self, texts: int) -> None:
        """Find out whether so many texts may come in; asked before they are encoded, a refusal costs little.

        An empty queue takes any number.

        Raises:
            QueueFullError: Too many wait already.
        """
        if self._waiting + texts > self._max_texts and self._waiting:
            raise QueueFullError

    async def run(self, model: Model, ids: Sequence[Sequence[int]]) -> FloatArray:
        """Compute the logits of encoded texts.

        Texts for more than a batch go in one after another, so that others get their turn between them.

        Args:
            model: What to run them through; a batch is of one model only, so models can change under load.
            ids: Token ids of each text.

        Returns:
            One float32 logit for each text, in their order.

        Raises:
            QueueFullError: Too many texts wait already.
            ClosedError: The service is being stopped.
        """
        if self._is_closed:
            raise ClosedError
        if not ids:
            return np.zeros(0, dtype=np.float32)
        self.check_room(len(ids))
        if self._loop is None:
            self._loop = asyncio.create_task(self._work())
        # Counted as waiting until they are done, also those that aren't queued yet.
        self._waiting += len(ids)
        try:
            answers = [await self._submit(model, piece) for piece in self._pieces(ids)]
        finally:
            self._waiting -= len(ids)
        return np.concatenate(answers) if len(answers) != 1 else answers[0]

    async def close(self) -> None:
        """Stop; whoever still waits is told so."""
        self._is_closed = True
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop
        for job in (*self._under_way, *self._jobs):
            if not job.answer.done():
                job.answer.set_exception(ClosedError())
        self._jobs.clear()
        self._thread.shutdown(wait=False)

    def _pieces(self, ids: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
        pieces, start, tokens = [], 0, 0
        for at, row in enumerate(ids):
            if at > start and tokens + len(row) > self._max_tokens:
                pieces.append(ids[start:at])
                start, tokens = at, 0
            tokens += len(row)
        return [*pieces, ids[start:]]

    async def _submit(self, model: Model, ids: Sequence[Sequence[int]]) -> FloatArray:
        answer: asyncio.Future[FloatArray] = asyncio.get_running_loop().create_future()
        self._jobs.append(_Job(model, ids, sum(map(len, ids)), answer))
        self._arrived.set()
        return await answer

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            # Requests whose bytes have come are read first: they fill the batch instead of waiting behind it.
            await asyncio.sleep(0)
            if batch := self._take():
                self._under_way = batch
                await self._forward(batch)
                self._under_way = []
            if not self._jobs:
                self._arrived.clear()

    def _take(self) -> list[_Job]:
        """What fits a batch, in the order of arrival; those whose client has gone are left out."""
        batch: list[_Job] = []
        tokens = 0
        while self._jobs:
            job = self._jobs[0]
            if batch and (job.model is not batch[0].model or tokens + job.tokens > self._max_tokens):
                break
            self._jobs.popleft()
            if not job.answer.done():
                batch.append(job)
                tokens += job.tokens
        return batch

    async def _forward(self, batch: list[_Job]) -> None:
        ids = [row for job in batch for row in job.ids]
        self._began = began = time.monotonic()
        try:
            logits = await asyncio.get_running_loop().run_in_executor(self._thread, batch[0].model.logits, ids)
        except Exception as error:  # Whoever waits is told; the next batch may well succeed.
            self._failures += 1
            for job in batch:
                if not job.answer.done():
                    job.answer.set_exception(error)
            return
        finally:
            self._began = None
        self._failures = 0
        start = 0
        for job in batch:
            if not job.answer.done():
                job.answer.set_result(logits[start : start + len(job.ids)])
            start += len(job.ids)
        facts = BatchFacts(
            texts=len(ids),
            tokens=sum(job.tokens for job in batch),
            queued_s=began - min(job.since for job in batch),
            inference_s=time.monotonic() - began,
        )
        try:
            self._observe(facts)
        except Exception as error:  # Nobody's answer hangs on it, nor the batches to come.
            _LOG.error("a batch wasn't measured: %s", type(error).__name__)
