"""The service on Ray Serve: HTTP, tokenizer and model in one replica; a second hop would cost more than the model."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from sentiment.devices import limit_threads
from sentiment.errors import ConfigError, SentimentError, brief
from sentiment.settings import ServeSettings
from serve_app.engine import Engine
from serve_app.metrics import ServeMeter
from serve_app.web import create_app

_LOG = logging.getLogger("ray.serve")
# Replicas are looked after more often than by default (10 s, 30 s).
_HEALTH_CHECK_PERIOD_S, _HEALTH_CHECK_TIMEOUT_S = 5.0, 10.0
# Behind HAProxy a replica that goes is still sent requests for 30 s: the last of them has its whole time too.
_DRAINING_S = 35.0
# Objects, more than were given back, after which the collector looks; its default is 700.
_GC_THRESHOLD = 10_000


class _Service:
    """One replica.

    Args:
        settings: Section serve.
        key_digests: Of the API keys, as `api_key_digests` gives them.
    """

    def __init__(self, settings: ServeSettings, key_digests: Sequence[bytes]) -> None:
        limit_threads(max(1, int(settings.cpus_per_replica)))
        # A request makes some 50 objects that the collector counts, and hardly any cycle: by default it looked at all
        # of them, connections included, once a second under load, which took nearly half of the replica's time.
        gc.set_threshold(_GC_THRESHOLD)
        self._meter = ServeMeter()
        self._engine = Engine(settings, self._meter)
        self._key_digests = key_digests
        self._model: str | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Make the application that this replica answers by; Ray calls it."""
        return create_app(self._engine, self._meter, self._key_digests)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take a bundle into service; Ray calls it at the start and when `user_config` changes.

        Args:
            user_config: `model`, the bundle's path.

        Raises:
            BundleError: It can't be used, and there is none that could stay in service; so with the others.
            ConfigError: There is something else in it.
        """
        try:
            model = self._named(user_config)
            if model != self._model:
                await self._engine.load(model)
                self._model = model
        except Exception as error:
            if self._model is None:
                raise
            # Raised, it would make Ray end this replica, and in time all of them: an outage for a typing mistake, or
            # for a GPU that has no room for two models.
            _LOG.error(
                "%s stays in service: %s", self._model, error if isinstance(error, SentimentError) else brief(error)
            )

    async def check_health(self) -> None:
        """Tell Ray whether this replica still works; one that doesn't is replaced. Ray calls it."""
        self._engine.check_health()

    def _named(self, user_config: Mapping[str, Any]) -> str:
        if set(user_config) != {"model"} or not isinstance(user_config["model"], str):
            raise ConfigError(f"user_config holds `model`, the path of a bundle; got {sorted(map(str, user_config))}")
        given: str = user_config["model"]
        settings = self._engine.settings
        # What `application` puts there has been looked up already.
        return given if given == settings.model else settings.at_root(given)


def application(settings: ServeSettings) -> serve.Application:
    """What Ray Serve deploys.

    Args:
        settings: Section serve.

    Raises:
        ConfigError: The API keys can't be read.
    """
    deployment = serve.deployment(
        name=settings.name,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            initial_replicas=max(1, settings.min_replicas),
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.target_ongoing_requests,
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
        ),
        # The engine's own queue is shorter, and its answer says more; this is for a replica that no longer answers.
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_ongoing_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=settings.retry_after_s),
        user_config={"model": settings.model},
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=_HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=settings.request_timeout_s + _DRAINING_S,
    )
    return deployment(serve.ingress()(_Service)).bind(settings, api_key_digests(settings))


def api_key_digests(settings: ServeSettings) -> tuple[bytes, ...]:
    """SHA-256 of the API keys of the file and of the environment (SENTIMENT_API_KEYS, parted by commas).

    They are read where the service is deployed from, not by replicas, which have another environment; so that the keys
    themselves don't get into Ray's records, replicas are given these.

    Raises:
        ConfigError: The file can't be read or holds none.
    """
    keys = os.environ.get("SENTIMENT_API_KEYS", "").split(",")
    if settings.api_keys_file is not None:
        try:
            keys += (found := Path(settings.api_keys_file).read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--api-keys-file {settings.api_keys_file} can't be read: {type(error).__name__}"
            ) from None
        if not any(key.strip() for key in found):
            raise ConfigError(f"--api-keys-file {settings.api_keys_file} holds no key; leave it out to ask for none")
    return tuple(hashlib.sha256(key.strip().encode()).digest() for key in keys if key.strip())
