"""The service on Ray Serve: on a cluster (`serve deploy cluster/serve.yaml`), or in the foreground until a signal.

HTTP, tokenizer and model are in one replica: a second hop would cost more than the model.
"""

# Without postponed annotations: Ray Serve looks at the builder's to learn the type of its arguments.
import asyncio
import gc
import hashlib
import io
import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray._common.network_utils import is_localhost
from ray.serve._private import replica
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions
from ray.util.metrics import Counter, Histogram

from sentiment.bundle import Bundle
from sentiment.config import load
from sentiment.devices import limit_threads
from sentiment.errors import ConfigError, ResourceError, SentimentError, brief
from sentiment.observability.status import status_line
from sentiment.settings import RaySettings, ServeSettings
from sentiment.storage.filesystems import absolute
from serve_app import haproxy
from serve_app.asgi import create_app
from serve_app.engine import Engine

_LOG = logging.getLogger("ray.serve")
_SAY = logging.getLogger(__name__)  # what the person at the terminal is told
_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
_TOKENS = [16, 64, 256, 1024, 4096, 16_384]
# A connection that HAProxy has reset stays in the replica's memory, 10 kB of it, until this has passed: uvicorn doesn't
# cancel its timer then. By default it is 90 s, and under a flood there are hundreds a second. Longer than HAProxy keeps
# an idle connection to a replica (5 s), so that none is used which is just being closed.
KEEP_ALIVE_S = 10
# Ray's and HAProxy's time limits are so many seconds longer than the service's own, whose error says more.
LATE_S = 5
# Ports that HAProxy listens at beside the service's, on loopback, by the variable that changes them.
_HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}


def build(args: ServeSettings) -> serve.Application:
    """Build the application that cluster/serve.yaml names.

    Args:
        args: Fields of section serve, `model` above all; they win over the environment and ray_config.yaml.

    Raises:
        ConfigError: A value doesn't fit.
    """
    return application(load(ServeSettings, args.model_dump(exclude_unset=True)))


def application(settings: ServeSettings) -> serve.Application:
    """Give what Ray Serve deploys; a ConfigError if the API keys can't be read."""
    # Behind HAProxy a replica that goes is still sent requests for a while: the last of them has its whole time too.
    draining_s = float(os.environ.get("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "30"))
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
            # A mean over a longer time than the delay would lengthen it; Ray's replicas report every 10 s.
            look_back_period_s=min(30.0, max(11.0, settings.upscale_delay_s, settings.downscale_delay_s)),
        ),
        # The engine's own queue is shorter, and its answer says more; this is for a replica that no longer answers.
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_ongoing_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=settings.retry_after_s),
        user_config={"model": settings.model},
        health_check_period_s=5,  # by default 10 and 30
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=settings.request_timeout_s + draining_s + 5,
        max_surge_percent=25,  # at least one: a new replica is there before an old one goes
    )
    return deployment(serve.ingress()(Replica)).bind(settings, api_key_digests(settings))


def api_key_digests(settings: ServeSettings) -> tuple[bytes, ...]:
    """SHA-256 of the API keys of the file and of the environment (SENTIMENT_API_KEYS, separated by commas).

    The file is UTF-8, with a key on each line; blank lines and comments (from a # that begins a word) don't count.
    They are read where the service is deployed from: replicas have another environment. They are given the digests, so
    that no key gets into Ray's records.

    Raises:
        ConfigError: The file can't be read or holds none.
    """
    keys = os.environ.get("SENTIMENT_API_KEYS", "").split(",")
    if settings.api_keys_file is not None:
        try:
            content = Path(settings.api_keys_file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigError(f"--api-keys-file {settings.api_keys_file} can't be read ({reason})") from None
        from_file = [re.sub(r"(?:^|\s)#.*", "", line) for line in content.splitlines()]
        if not any(key.strip() for key in from_file):
            raise ConfigError(f"--api-keys-file {settings.api_keys_file} holds no key; leave it out to ask for none")
        keys += from_file
    return tuple(hashlib.sha256(key.strip().encode()).digest() for key in keys if key.strip())


class Replica:
    """One replica of the service.

    Args:
        settings: Section serve.
        key_digests: SHA-256 of the API keys, as `api_key_digests` gives them.
    """

    def __init__(self, settings: ServeSettings, key_digests: Sequence[bytes]) -> None:
        _listen_where_ray_does()
        limit_threads(max(1, int(settings.cpus_per_replica)))
        # A request makes some 50 objects that the collector counts, and hardly any cycle: by default (700) it looked at
        # all of them, connections included, once a second under load, which took nearly half of the replica's time.
        gc.set_threshold(10_000)
        self._metrics = RayMetrics()
        self._engine = Engine(settings, self._metrics)
        self._key_digests = key_digests
        self._model: str | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Make the application that this replica answers by; Ray calls it."""
        return create_app(self._engine, self._metrics, self._key_digests)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take a bundle into service; Ray calls it at the start and when `user_config` changes.

        Args:
            user_config: `model`, the bundle's path.

        Raises:
            BundleError: It can't be used, and there is none that could stay in service; so with the others.
            ConfigError: There is something else in it.
        """
        try:
            if set(user_config) != {"model"} or not isinstance(model := user_config["model"], str):
                keys = sorted(map(str, user_config))
                raise ConfigError(f"user_config holds `model`, the path of a bundle; got {keys}")
            settings = self._engine.settings
            if model != settings.model:  # That one has its root already.
                model = settings.at_root(model)
            if model != self._model:
                await self._engine.load(model)
                self._model = model
        except Exception as error:
            if self._model is None:
                raise
            # Raised, it would make Ray end this replica, and in time all of them: an outage for a typing mistake, or
            # for a GPU that has no room for two models.
            reason = error if isinstance(error, SentimentError) else brief(error)
            _LOG.error("%s stays in service: %s", self._model, reason)

    async def check_health(self) -> None:
        """Tell Ray whether this replica still works; one that doesn't is replaced. Ray calls it."""
        self._engine.check_health()


class RayMetrics:
    """Counters and histograms of one replica; each node's agent offers them to Prometheus as `ray_sentiment_…`."""

    def __init__(self) -> None:
        self._requests = Counter("sentiment_requests", "Requests answered.", tag_keys=("route", "status"))
        self._failures = Counter("sentiment_failures", "Requests answered by an error.", tag_keys=("error_type",))
        self._seconds = Histogram(
            "sentiment_request_seconds", "From request to answer, s.", boundaries=_SECONDS, tag_keys=("route",)
        )
        self._tokenize = Histogram(
            "sentiment_tokenise_seconds", "Encoding the texts of a request, s.", boundaries=_SECONDS
        )
        self._queue = Histogram("sentiment_queue_seconds", "Wait of a batch's oldest text, s.", boundaries=_SECONDS)
        self._inference = Histogram("sentiment_inference_seconds", "Forward pass of a batch, s.", boundaries=_SECONDS)
        # Counters of their own: the sum of a histogram is an estimate, for Ray's agent keeps buckets, not values.
        self._all_texts = Counter("sentiment_texts", "Texts scored.")
        self._all_tokens = Counter("sentiment_tokens", "Tokens of the texts scored, without padding.")
        self._texts = Histogram("sentiment_batch_texts", "Texts of a batch.", boundaries=_SIZES)
        self._tokens = Histogram("sentiment_batch_tokens", "Tokens of a batch.", boundaries=_TOKENS)

    def tokenized(self, seconds: float) -> None:
        """Record how long it took to encode the texts of a request, s."""
        self._tokenize.observe(seconds)

    def batch(self, texts: int, tokens: int, queued_s: float, inference_s: float) -> None:
        """Record a batch: its texts, their tokens without padding, the wait of its oldest text, the forward pass."""
        self._all_texts.inc(texts)
        if tokens:  # A counter takes no 0.
            self._all_tokens.inc(tokens)
        self._texts.observe(texts)
        self._tokens.observe(tokens)
        self._queue.observe(queued_s)
        self._inference.observe(inference_s)

    def answered(self, route: str, status: int, seconds: float, error_type: str | None) -> None:
        """Record an answer and how long it took from the request on, s."""
        self._requests.inc(tags={"route": route, "status": str(status)})
        self._seconds.observe(seconds, tags={"route": route})
        if error_type is not None:
            self._failures.inc(tags={"error_type": error_type})


def _listen_where_ray_does() -> None:
    """Have Ray open this replica's port for its proxies at loopback only, if that is where all of Ray listens.

    By default it is open at all interfaces, without Ray's token, and whatever comes there is unpickled.
    """
    add_port = replica.add_port_to_grpc_server
    if is_localhost(ray.util.get_node_ip_address()):
        replica.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", "127.0.0.1"))


def check(settings: ServeSettings) -> None:
    """Find out what can't be served before Ray starts, which takes seconds.

    Args:
        settings: Section serve.

    Raises:
        BundleError: The model can't be used.
        ConfigError: The API keys can't be read.
        ResourceError: Another program listens at a port.
    """
    Bundle.open(settings.model)
    api_key_digests(settings)
    ports = [(settings.host, settings.port, "--port")]
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        ports += [("127.0.0.1", int(os.environ.get(name, port)), name) for name, port in _HAPROXY_PORTS.items()]
    for host, port, setting in ports:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                message = f"can't listen at {host}:{port} ({error.strerror}): try another {setting}"
                raise ResourceError(message) from None


def guard_ray(settings: ServeSettings) -> None:
    """Put our limits before Ray's own servers, by the environment of the Ray that is started; a user's values win."""
    for name, value in {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.proxy:middlewares",
        # A replica that doesn't answer Ray has no end of its own either.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # By default a replica waits 30 s for load balancers to forget it.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(math.ceil(settings.request_timeout_s) + LATE_S),
    }.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" and "RAY_SERVE_HAPROXY_BINARY_PATH" not in os.environ:
        # The interpreter that its first line finds may not be ours.
        os.environ.setdefault("SENTIMENT_HAPROXY", haproxy.binary())
        os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"] = haproxy.__file__


def serve_until_interrupted(settings: ServeSettings, ray_settings: RaySettings) -> None:
    """Serve on the Ray that is connected, until SIGINT or SIGTERM; then answer the requests under way.

    Args:
        settings: Section serve, checked.
        ray_settings: How long to wait for nodes.

    Raises:
        ResourceError: There is no room for it, Ray Serve is in use already, or couldn't bring it up.
    """
    from sentiment.session import require_capacity  # noqa: PLC0415 (much of Ray, which replicas don't need)

    # What would wait for ever, or take others' applications along when it ends.
    running = serve.status()
    if running.applications or running.proxies:
        names = ", ".join(sorted(running.applications)) or "without an application"
        raise ResourceError(
            f"Ray Serve runs on this cluster already ({names}): serve deploy cluster/serve.yaml puts a model there, "
            "serve shutdown ends it"
        )
    each = {"cpus": settings.cpus_per_replica, "gpus": settings.gpus_per_replica}
    if any(each.values()):
        require_capacity(max(1, settings.min_replicas), "replicas", **each, wait_s=ray_settings.wait_for_nodes_s)
    # A replica may run in another folder, or on another node.
    settings = settings.model_copy(update={"model": absolute(settings.model)})
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with status_line("starting Ray Serve"):
        serve.start(
            http_options=HTTPOptions(
                host=settings.host,
                port=settings.port,
                # For replicas that don't answer at all. `serve_app.proxy` lets streams take as long as they take.
                request_timeout_s=settings.request_timeout_s + LATE_S,
                keep_alive_timeout_s=KEEP_ALIVE_S,
            )
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # from now on, also while it loads
    is_hurried = False
    try:
        try:
            with status_line(f"loading {settings.model}"):
                serve.run(application(settings), name=settings.name, route_prefix="/")
        except RuntimeError as error:
            raise ResourceError(f"the service didn't come up: {' '.join(str(error).split())[:500]}") from error
        url = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}"
        _SAY.info(f"serving at {url}: a page to try it; {url}/docs describes the endpoints; Ctrl-C ends it")
        if settings.host not in ("127.0.0.1", "localhost", "::1") and not api_key_digests(settings):
            _SAY.warning("everybody who reaches this address can use it: --api-keys-file asks for keys")
        threading.Event().wait()
    except KeyboardInterrupt:
        limit = f"{settings.request_timeout_s:g} s at most; the same again ends it at once"
        try:
            with status_line(f"answering what is under way ({limit})"):
                serve.delete(settings.name, _blocking=False)
                # Ray ends replicas that take longer.
                while settings.name in serve.status().applications:
                    time.sleep(0.1)
        except KeyboardInterrupt:
            is_hurried = True
    finally:
        # Ray says there that it would try its controller's end again, which has come.
        with status_line("stopping the service"), redirect_stdout(io.StringIO()):
            if is_hurried:
                with suppress(TimeoutError):
                    asyncio.run(asyncio.wait_for(serve.shutdown_async(), timeout=2))
            else:
                serve.shutdown()
