"""The model behind the endpoints: texts in, scores out, with all limits held; knows nothing of HTTP or Ray.

A bundle can be replaced while requests are under way: each keeps the model that its text was encoded for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sentiment.predictor import Predictor
from sentiment.settings import ServeSettings
from serve_app.batcher import Batcher, BatchFacts, ClosedError, QueueFullError
from serve_app.errors import ApiError, invalid

# Texts, and characters of all of them, up to which encoding takes less time than handing it to a thread.
_INLINE_TEXTS, _INLINE_CHARS = 4, 2_000
# A batch that takes so long beyond the patience of a request, s, or so many that fail one after the other: something
# is broken that only a new process mends, such as a GPU's state.
_STUCK_S, _MOST_FAILURES = 60.0, 10


class Meter(Protocol):
    """Where measurements go."""

    def tokenised(self, seconds: float) -> None:
        """Time that encoding the texts of a request took."""
        ...

    def batch(self, facts: BatchFacts) -> None:
        """What a batch was like."""
        ...


@dataclass(frozen=True)
class Scores:
    """What a model says of some texts.

    Attributes:
        model_id: Of the bundle that it was.
        logits: One float32 logit of the positive class for each text.
    """

    model_id: str
    logits: npt.NDArray[np.float32]

    @property
    def p_positive(self) -> npt.NDArray[np.float64]:
        """Probability of the positive label for each text."""
        return 1 / (1 + np.exp(-self.logits.astype(np.float64)))


class Engine:
    """One replica's model, queue and limits; belongs to one event loop.

    Args:
        settings: Limits, precision.
        meter: Where measurements go.
    """

    def __init__(self, settings: ServeSettings, meter: Meter) -> None:
        self.settings = settings
        self._meter = meter
        self._predictor: Predictor | None = None
        self._batcher = Batcher(settings.max_batch_tokens, settings.max_queued_texts, meter.batch)

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
        self, texts: Sequence[str], *, field: str = "inputs", truncate: bool = True, is_patient: bool = False
    ) -> Scores:
        """Score texts.

        Args:
            texts: Any texts.
            field: Where they stood in the request, for messages.
            truncate: Cut texts that are too long for the model; otherwise they are refused.
            is_patient: However long it takes; otherwise it fails after `request_timeout_s`.

        Raises:
            ApiError: A limit is exceeded, the queue is full, it took too long, or there is no model yet.
        """
        predictor = self.predictor
        self._check_size(texts, field)
        try:
            self._batcher.check_room(len(texts))
            ids = await self._encode(predictor, texts, field, truncate)
            async with asyncio.timeout(None if is_patient else self.settings.request_timeout_s):
                logits = await self._batcher.run(predictor, ids)
        except QueueFullError:
            raise ApiError(
                429,
                "overloaded",
                f"{self._batcher.waiting} texts wait already, {self.settings.max_queued_texts} may: try again later",
                retry_after_s=self.settings.retry_after_s,
            ) from None
        except ClosedError:
            raise ApiError(503, "unhealthy", "the service is being stopped", self.settings.retry_after_s) from None
        except TimeoutError:
            raise ApiError(
                504, "timeout", f"no answer within {self.settings.request_timeout_s:g} s: try fewer texts, or later"
            ) from None
        return Scores(predictor.model_id, logits)

    def check_health(self) -> None:
        """Find out whether the model still works.

        Raises:
            RuntimeError: A batch takes far longer than any should, or one after the other fails.
        """
        if self._batcher.busy_s > self.settings.request_timeout_s + _STUCK_S:
            raise RuntimeError(f"a batch has been under way for {self._batcher.busy_s:.0f} s")
        if self._batcher.failures >= _MOST_FAILURES:
            raise RuntimeError(f"{self._batcher.failures} batches in a row have failed")

    async def close(self) -> None:
        """Stop."""
        await self._batcher.close()

    def _check_size(self, texts: Sequence[str], field: str) -> None:
        limits = self.settings
        if len(texts) > limits.max_texts:
            raise invalid(f"{field}: at most {limits.max_texts} texts, got {len(texts)}", 413)
        for number, text in enumerate(texts):
            if len(text) > limits.max_text_chars:
                where = f"{field}.{number}" if len(texts) > 1 else field
                raise invalid(f"{where}: at most {limits.max_text_chars} characters, got {len(text)}", 413)

    async def _encode(
        self, predictor: Predictor, texts: Sequence[str], field: str, truncate: bool
    ) -> Sequence[Sequence[int]]:
        began = time.monotonic()
        if len(texts) <= _INLINE_TEXTS and sum(map(len, texts)) <= _INLINE_CHARS:
            ids = _encode(predictor, texts, field, truncate)
        else:
            ids = await asyncio.to_thread(_encode, predictor, texts, field, truncate)
        self._meter.tokenised(time.monotonic() - began)
        return ids


def _encode(predictor: Predictor, texts: Sequence[str], field: str, truncate: bool) -> Sequence[Sequence[int]]:
    if not truncate:
        most = predictor.config.max_length
        for number, tokens in enumerate(predictor.count_tokens(texts)):
            if tokens > most:
                raise invalid(f"{field}.{number}: the model reads {most} tokens, got {tokens}; allow truncation", 413)
    return predictor.encode(texts)
