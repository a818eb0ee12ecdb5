"""What a replica measures, as Ray's metrics: each node's agent offers them to Prometheus, whatever replicas it has."""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

from serve_app.batcher import BatchFacts

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
_TOKENS = [16, 64, 256, 1024, 4096, 16_384]


class ServeMeter:
    """Counters and histograms of one replica; in Prometheus they are called `ray_sentiment_…`."""

    def __init__(self) -> None:
        self._requests = Counter("sentiment_requests", "Requests answered.", tag_keys=("route", "status"))
        self._failures = Counter("sentiment_failures", "Requests answered by an error.", tag_keys=("error_type",))
        self._seconds = Histogram(
            "sentiment_request_seconds", "From request to answer, s.", boundaries=_SECONDS, tag_keys=("route",)
        )
        self._tokenise = Histogram(
            "sentiment_tokenise_seconds", "Encoding the texts of a request, s.", boundaries=_SECONDS
        )
        self._queue = Histogram("sentiment_queue_seconds", "Wait of a batch's oldest text, s.", boundaries=_SECONDS)
        self._inference = Histogram("sentiment_inference_seconds", "Forward pass of a batch, s.", boundaries=_SECONDS)
        # Counters of their own: the sum of a histogram is an estimate, for Ray's agent keeps buckets, not values.
        self._all_texts = Counter("sentiment_texts", "Texts scored.")
        self._all_tokens = Counter("sentiment_tokens", "Tokens of the texts scored, without padding.")
        self._texts = Histogram("sentiment_batch_texts", "Texts of a batch.", boundaries=_SIZES)
        self._tokens = Histogram("sentiment_batch_tokens", "Tokens of a batch.", boundaries=_TOKENS)

    def tokenised(self, seconds: float) -> None:
        """Time that encoding the texts of a request took."""
        self._tokenise.observe(seconds)

    def batch(self, facts: BatchFacts) -> None:
        """What a batch was like."""
        self._all_texts.inc(facts.texts)
        if facts.tokens:  # A counter takes no 0.
            self._all_tokens.inc(facts.tokens)
        self._texts.observe(facts.texts)
        self._tokens.observe(facts.tokens)
        self._queue.observe(facts.queued_s)
        self._inference.observe(facts.inference_s)

    def answered(self, route: str, status: int, seconds: float, error_type: str | None) -> None:
        """A request was answered."""
        self._requests.inc(tags={"route": route, "status": str(status)})
        self._seconds.observe(seconds, tags={"route": route})
        if error_type is not None:
            self._failures.inc(tags={"error_type": error_type})
