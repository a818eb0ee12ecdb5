"""Dynamic batching by tokens, without waiting: whatever has come in while the model was busy is its next batch.

`serve.batch` isn't used, for it forms batches ahead: with the model busy and no waiting time, each request becomes a
batch of its own that queues for the model, and with a waiting time every request pays it, also the only one. Here an
idle model starts at once, and a busy one finds all that has gathered in the queue, up to a budget of tokens. The
forward pass has a thread of its own, so that the event loop keeps reading requests meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

_LOG = logging.getLogger("ray.serve")
FloatArray = npt.NDArray[np.float32]
# A model's forward pass: one logit for each row of token ids.
Forward = Callable[[Sequence[Sequence[int]]], FloatArray]


class Metrics(Protocol):
    """Where the service's measurements go."""

    def tokenized(self, seconds: float) -> None:
        """Record how long it took to encode the texts of a request, s."""
        ...

    def batch(self, texts: int, tokens: int, queued_s: float, inference_s: float) -> None:
        """Record a batch: its texts, their tokens without padding, the wait of its oldest text, the forward pass."""
        ...

    def answered(self, route: str, status: int, seconds: float, error_type: str | None) -> None:
        """Record an answer and how long it took from the request on, s."""
        ...


class QueueFullError(Exception):
    """More texts wait than may."""


class ClosedError(Exception):
    """The batcher has been closed and computes nothing more."""


@dataclass(eq=False)
class _Item:
    """Texts of one request that go through the model together."""

    forward: Forward
    ids: Sequence[Sequence[int]]
    tokens: int
    logits: asyncio.Future[FloatArray]
    queued_at: float


class Batcher:
    """Gathers encoded texts into batches for one model at a time; belongs to one event loop.

    Args:
        max_tokens: Tokens of a batch, about; a single text may have more.
        max_texts: Texts that may wait.
        metrics: Told of each batch.

    Attributes:
        waiting: Texts that wait or are being computed.
        failures: Batches that have failed since one succeeded.
    """

    def __init__(self, max_tokens: int, max_texts: int, metrics: Metrics) -> None:
        self._max_tokens, self._max_texts, self._metrics = max_tokens, max_texts, metrics
        self.waiting = self.failures = 0
        self._queue: deque[_Item] = deque()
        self._batch: list[_Item] = []  # the one that the model computes
        self._batch_started_at: float | None = None
        self._has_items = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def busy_s(self) -> float:
        """How long the batch that the model computes has taken so far, s; 0 if there is none."""
        return 0.0 if self._batch_started_at is None else time.monotonic() - self._batch_started_at

    def check_room(self, texts: int) -> None:
        """Find out whether so many texts may come in; asked before they are encoded, a refusal costs little.

        An empty queue takes any number.

        Raises:
            QueueFullError: Too many wait already.
        """
        if self.waiting + texts > self._max_texts and self.waiting:
            raise QueueFullError

    async def run(self, forward: Forward, ids: Sequence[Sequence[int]]) -> FloatArray:
        """Compute the logits of encoded texts.

        Texts for more than a batch go in one after another, so that others get their turn between them.

        Args:
            forward: Forward pass of their model; a batch is of one model only, so models can change under load.
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
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._compute_batches())
        # Counted as waiting until they are done, also those that aren't queued yet.
        self.waiting += len(ids)
        answers, start = [], 0
        try:
            while start < len(ids):
                end, tokens = start + 1, len(ids[start])
                while end < len(ids) and tokens + len(ids[end]) <= self._max_tokens:
                    tokens += len(ids[end])
                    end += 1
                item = _Item(forward, ids[start:end], tokens, loop.create_future(), time.monotonic())
                self._queue.append(item)
                self._has_items.set()
                answers.append(await item.logits)
                start = end
        finally:
            self.waiting -= len(ids)
        return np.concatenate(answers) if len(answers) != 1 else answers[0]

    async def close(self) -> None:
        """Stop; whoever still waits gets a `ClosedError`."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for item in (*self._batch, *self._queue):
            if not item.logits.done():
                item.logits.set_exception(ClosedError())
        self._queue.clear()
        self._thread.shutdown(wait=False)

    async def _compute_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._has_items.wait()
            # Requests whose bytes have come are read first: they fill the batch instead of waiting behind it.
            await asyncio.sleep(0)
            if batch := self._next_batch():
                ids: list[Sequence[int]] = []
                for item in batch:
                    ids.extend(item.ids)
                self._batch, self._batch_started_at = batch, (started_at := time.monotonic())
                try:
                    logits = await loop.run_in_executor(self._thread, batch[0].forward, ids)
                except Exception as error:  # Whoever waits is told; the next batch may well succeed.
                    self.failures += 1
                    for item in batch:
                        if not item.logits.done():
                            item.logits.set_exception(error)
                else:
                    self.failures = 0
                    self._distribute(batch, logits, started_at)
                self._batch, self._batch_started_at = [], None
            if not self._queue:
                self._has_items.clear()

    def _next_batch(self) -> list[_Item]:
        """Take what fits a batch, in the order of arrival; items whose client has gone are left out."""
        batch: list[_Item] = []
        tokens = 0
        while self._queue:
            item = self._queue[0]
            if batch and (item.forward != batch[0].forward or tokens + item.tokens > self._max_tokens):
                break
            self._queue.popleft()
            if not item.logits.done():
                batch.append(item)
                tokens += item.tokens
        return batch

    def _distribute(self, batch: list[_Item], logits: FloatArray, started_at: float) -> None:
        start = tokens = 0
        for item in batch:
            end = start + len(item.ids)
            if not item.logits.done():
                item.logits.set_result(logits[start:end])
            start, tokens = end, tokens + item.tokens
        try:
            self._metrics.batch(start, tokens, started_at - batch[0].queued_at, time.monotonic() - started_at)
        except Exception as error:  # No answer depends on it, nor do the batches to come.
            _LOG.error("a batch wasn't measured: %s", type(error).__name__)
