"""The model behind the endpoints: texts in, scores out, with all limits held; knows nothing of Ray.

`Engine` holds the limits of a request and the bundle, which can be replaced while requests are under way: each keeps
the model that its texts were encoded for. `Batcher` is the queue before the model: dynamic batching by tokens, without
waiting. `serve.batch` isn't used, for it forms batches ahead: with the model busy and no waiting time, each request
becomes a batch of its own that queues for the model, and with a waiting time every request pays it, also the only one.
Here an idle model starts at once, and what has come in while it was busy is its next batch, up to a budget of tokens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sentiment.predictor import FloatArray, Predictor, labels_and_scores
from sentiment.settings import ServeSettings
from serve_app.responses import ApiError

_LOG = logging.getLogger("ray.serve")
# A model's forward pass: one logit for each row of token ids.
Forward = Callable[[Sequence[Sequence[int]]], FloatArray]
# Texts, and characters of all of them, up to which encoding takes less time than handing it to a thread.
_MAX_INLINE_TEXTS, _MAX_INLINE_CHARS = 4, 2_000
# A batch that takes so many seconds longer than a request may, or so many batches that fail one after the other:
# something is broken that only a new process mends, such as a GPU's state.
_STUCK_S, _MAX_FAILURES = 60.0, 10


class Metrics(Protocol):
    """Where the service's measurements go."""

    def tokenized(self, seconds: float) -> None:
        """Record how long it took to encode the texts of a request, s."""

    def batch(self, texts: int, tokens: int, queued_s: float, inference_s: float) -> None:
        """Record a batch: its texts, their tokens without padding, the wait of its oldest text, the forward pass."""

    def answered(self, route: str, status: int, seconds: float, error_type: str | None) -> None:
        """Record an answer and how long it took from the request on, s."""


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

    The forward pass has a thread of its own, so that the event loop keeps reading requests meanwhile.

    Args:
        settings: Tokens of a batch, about (a single text may have more), and texts that may wait.
        metrics: Told of each batch.

    Attributes:
        waiting: Texts that wait or are being computed.
        failures: Batches that have failed since one succeeded.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
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
            ApiError: Too many wait already.
        """
        limit = self._settings.max_queued_texts
        if self.waiting + texts > limit and self.waiting:
            message = f"{self.waiting} texts wait already, {limit} may: try again later"
            raise ApiError(429, message, retry_after_s=self._settings.retry_after_s)

    async def run(self, forward: Forward, ids: Sequence[Sequence[int]]) -> FloatArray:
        """Compute the logits of encoded texts.

        Texts for more than a batch go in one after another, so that others get their turn between them.

        Args:
            forward: Forward pass of their model; a batch is of one model only, so models can change under load.
            ids: Token ids of each text.

        Returns:
            One float32 logit for each text, in their order.

        Raises:
            ApiError: Too many texts wait already, or the service is being stopped.
        """
        if self._is_closed:
            raise self._closed()
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
                while end < len(ids) and tokens + len(ids[end]) <= self._settings.max_batch_tokens:
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
        """Stop; whoever still waits gets a 503."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for item in (*self._batch, *self._queue):
            if not item.logits.done():
                item.logits.set_exception(self._closed())
        self._queue.clear()
        self._thread.shutdown(wait=False)

    def _closed(self) -> ApiError:
        return ApiError(503, "the service is being stopped", retry_after_s=self._settings.retry_after_s)

    async def _compute_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._has_items.wait()
            # Requests whose bytes have come are read first: they fill the batch instead of waiting behind it.
            await asyncio.sleep(0)
            if batch := self._next_batch():
                self._batch, self._batch_started_at = batch, (started_at := time.monotonic())
                ids = [row for item in batch for row in item.ids]
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
            is_over = tokens + item.tokens > self._settings.max_batch_tokens
            if batch and (is_over or item.forward != batch[0].forward):
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


@dataclass(frozen=True)
class Scores:
    """What a model says of some texts.

    Attributes:
        model_id: Id of the model's bundle.
        has_text: For each text whether it has anything to read in it; one that hasn't is answered by `NO_TEXT`.
        logits: One float32 logit of the positive class for each of those that have.
        p_positive: Probability of the positive label for each of those that have.
    """

    model_id: str
    has_text: Sequence[bool]
    logits: FloatArray
    p_positive: npt.NDArray[np.float64]

    def outputs(self) -> tuple[list[str], FloatArray, FloatArray]:
        """Likelier label, its probability and that of the positive label, as the jobs write them (float32)."""
        p_positive = self.p_positive.astype(np.float32)
        return *labels_and_scores(p_positive), p_positive

    def for_each_text(self, answers: Iterable[Any], no_text: Any) -> list[Any]:
        """Spread the answers to the texts that have anything to read in them over all texts."""
        remaining = iter(answers)
        return [next(remaining) if has_text else no_text for has_text in self.has_text]


class Engine:
    """One replica's model, queue and limits; belongs to one event loop."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self.settings = settings
        self._metrics = metrics
        self._predictor: Predictor | None = None
        self._batcher = Batcher(settings, metrics)

    @property
    def predictor(self) -> Predictor:
        """The model that new requests go to; an ApiError if there is none yet."""
        if self._predictor is None:
            raise ApiError(503, "the model is being loaded", retry_after_s=self.settings.retry_after_s)
        return self._predictor

    async def load(self, model: str) -> None:
        """Load a bundle, warm it up, then send new requests to it; those under way end with the one they began with.

        Raises:
            BundleError: It can't be used; the one before stays.
        """
        self._predictor = await asyncio.to_thread(self._open, model)

    def _open(self, model: str) -> Predictor:
        settings = self.settings
        predictor = Predictor.load(model, use_gpu=settings.gpus_per_replica > 0, precision=settings.precision)
        predictor.warm_up()
        # Single texts of any usual length too: setting up kernels for a new shape takes as long as such a text.
        for length in range(2, min(64, predictor.config.max_length) + 1, 2):
            predictor.logits([[predictor.config.model.unk_id] * length])
        return predictor

    async def score(
        self, texts: Sequence[str], *, field: str = "inputs", truncate: bool = True, has_time_limit: bool = True
    ) -> Scores:
        """Score texts.

        Args:
            texts: Any texts.
            field: Where they stood in the request, for messages.
            truncate: Cut texts that are too long for the model; otherwise they are refused.
            has_time_limit: Fail after `request_timeout_s`; otherwise it may take as long as it takes.

        Raises:
            ApiError: A limit is exceeded, the queue is full, it took too long, or there is no model yet.
        """
        predictor, limits = self.predictor, self.settings
        if len(texts) > limits.max_texts:
            raise ApiError(413, f"{field}: at most {limits.max_texts} texts, got {len(texts)}")
        chars = 0
        for number, text in enumerate(texts):
            chars += len(text)
            if len(text) > limits.max_text_chars:
                place = f"{field}.{number}" if len(texts) > 1 else field
                raise ApiError(413, f"{place}: at most {limits.max_text_chars} characters, got {len(text)}")
        self._batcher.check_room(len(texts))
        started_at = time.monotonic()
        if len(texts) <= _MAX_INLINE_TEXTS and chars <= _MAX_INLINE_CHARS:
            ids, has_text = _encode(predictor, texts, field, truncate)
        else:
            ids, has_text = await asyncio.to_thread(_encode, predictor, texts, field, truncate)
        self._metrics.tokenized(time.monotonic() - started_at)
        try:
            async with asyncio.timeout(limits.request_timeout_s if has_time_limit else None):
                logits = await self._batcher.run(predictor.logits, ids)
        except TimeoutError:
            message = f"no answer within {limits.request_timeout_s:g} s: try fewer texts, or later"
            raise ApiError(504, message) from None
        p_positive = 1 / (1 + np.exp(-logits.astype(np.float64)))
        return Scores(predictor.model_id, has_text, logits, p_positive)

    def check_health(self) -> None:
        """Raise a RuntimeError if a batch takes far longer than any should, or one after the other fails."""
        if self._batcher.busy_s > self.settings.request_timeout_s + _STUCK_S:
            raise RuntimeError(f"a batch has been under way for {self._batcher.busy_s:.0f} s")
        if self._batcher.failures >= _MAX_FAILURES:
            raise RuntimeError(f"{self._batcher.failures} batches in a row have failed")

    async def close(self) -> None:
        """Stop; whoever still waits for scores gets a 503."""
        await self._batcher.close()


def _encode(
    predictor: Predictor, texts: Sequence[str], field: str, truncate: bool
) -> tuple[list[list[int]], list[bool]]:
    """Give the token ids of the texts that have anything to read in them, and for each text whether it has."""
    if not truncate:
        limit = predictor.config.max_length
        for number, tokens in enumerate(predictor.count_tokens(texts)):
            if tokens > limit:
                raise ApiError(413, f"{field}.{number}: the model reads {limit} tokens, got {tokens}; allow truncation")
    rows = predictor.encode(texts)
    has_text = [predictor.has_text(row) for row in rows]
    return [row for row, is_text in zip(rows, has_text, strict=True) if is_text], has_text
