"""The model behind the endpoints: texts in, scores out, with all limits held; knows nothing of HTTP or Ray.

A bundle can be replaced while requests are under way: each keeps the model that its texts were encoded for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sentiment.predictor import Predictor
from sentiment.settings import ServeSettings
from serve_app.batcher import Batcher, ClosedError, Metrics, QueueFullError
from serve_app.responses import ApiError, validation_error

# Texts, and characters of all of them, up to which encoding takes less time than handing it to a thread.
_MAX_INLINE_TEXTS, _MAX_INLINE_CHARS = 4, 2_000
# A batch that takes so many seconds longer than a request may, or so many batches that fail one after the other:
# something is broken that only a new process mends, such as a GPU's state.
_STUCK_S, _MAX_FAILURES = 60.0, 10


@dataclass(frozen=True)
class Scores:
    """What a model says of some texts.

    Attributes:
        model_id: Id of the model's bundle.
        has_text: For each text whether it has anything to read in it; one that hasn't is answered by `NO_TEXT`.
        logits: One float32 logit of the positive class for each of those that have.
    """

    model_id: str
    has_text: Sequence[bool]
    logits: npt.NDArray[np.float32]

    @property
    def p_positive(self) -> npt.NDArray[np.float64]:
        """Probability of the positive label for each text that has anything to read in it."""
        return 1 / (1 + np.exp(-self.logits.astype(np.float64)))


class Engine:
    """One replica's model, queue and limits; belongs to one event loop.

    Args:
        settings: Limits, precision.
        metrics: Where measurements go.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self.settings = settings
        self._metrics = metrics
        self._predictor: Predictor | None = None
        self._batcher = Batcher(settings.max_batch_tokens, settings.max_queued_texts, metrics)

    @property
    def predictor(self) -> Predictor:
        """The model that new requests go to.

        Raises:
            ApiError: There is none yet.
        """
        if self._predictor is None:
            raise ApiError(503, "unhealthy", "the model is being loaded", retry_after_s=self.settings.retry_after_s)
        return self._predictor

    async def load(self, model: str) -> None:
        """Load a bundle, warm it up, then send new requests to it; those under way end with the one they began with.

        Args:
            model: Path of the bundle.

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
            raise validation_error(f"{field}: at most {limits.max_texts} texts, got {len(texts)}", 413)
        chars = 0
        for number, text in enumerate(texts):
            chars += len(text)
            if len(text) > limits.max_text_chars:
                place = f"{field}.{number}" if len(texts) > 1 else field
                raise validation_error(f"{place}: at most {limits.max_text_chars} characters, got {len(text)}", 413)
        try:
            self._batcher.check_room(len(texts))
            started_at = time.monotonic()
            if len(texts) <= _MAX_INLINE_TEXTS and chars <= _MAX_INLINE_CHARS:
                ids, has_text = _encode(predictor, texts, field, truncate)
            else:
                ids, has_text = await asyncio.to_thread(_encode, predictor, texts, field, truncate)
            self._metrics.tokenized(time.monotonic() - started_at)
            async with asyncio.timeout(limits.request_timeout_s if has_time_limit else None):
                logits = await self._batcher.run(predictor.logits, ids)
        except QueueFullError:
            message = f"{self._batcher.waiting} texts wait already, {limits.max_queued_texts} may: try again later"
            raise ApiError(429, "overloaded", message, limits.retry_after_s) from None
        except ClosedError:
            raise ApiError(503, "unhealthy", "the service is being stopped", limits.retry_after_s) from None
        except TimeoutError:
            message = f"no answer within {limits.request_timeout_s:g} s: try fewer texts, or later"
            raise ApiError(504, "timeout", message) from None
        return Scores(predictor.model_id, has_text, logits)

    def check_health(self) -> None:
        """Find out whether the model still works.

        Raises:
            RuntimeError: A batch takes far longer than any should, or one after the other fails.
        """
        if self._batcher.busy_s > self.settings.request_timeout_s + _STUCK_S:
            raise RuntimeError(f"a batch has been under way for {self._batcher.busy_s:.0f} s")
        if self._batcher.failures >= _MAX_FAILURES:
            raise RuntimeError(f"{self._batcher.failures} batches in a row have failed")

    async def close(self) -> None:
        """Stop; whoever still waits for scores gets a 503."""
        await self._batcher.close()


def _encode(
    predictor: Predictor, texts: Sequence[str], field: str, truncate: bool
) -> tuple[Sequence[Sequence[int]], list[bool]]:
    """Give the token ids of the texts that have anything to read in them, and for each text whether it has."""
    if not truncate:
        limit = predictor.config.max_length
        for number, tokens in enumerate(predictor.count_tokens(texts)):
            if tokens > limit:
                message = f"{field}.{number}: the model reads {limit} tokens, got {tokens}; allow truncation"
                raise validation_error(message, 413)
    ids, has_text = [], []
    for row in predictor.encode(texts):
        has_text.append(predictor.has_text(row))
        if has_text[-1]:
            ids.append(row)
    return ids, has_text
