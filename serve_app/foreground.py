"""Serving in the foreground until a signal: what `python -m serve_app` does on Ray."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import os
import signal
import socket
import threading
import time
from contextlib import redirect_stdout, suppress

from ray import serve
from ray.serve.config import HTTPOptions

from sentiment.bundle import Bundle
from sentiment.errors import ResourceError
from sentiment.observability.status import status_line
from sentiment.session import require_capacity
from sentiment.settings import RaySettings, ServeSettings
from sentiment.storage.filesystems import absolute
from serve_app import haproxy
from serve_app.app import api_key_digests, application

_log = logging.getLogger(__name__)

# A connection that HAProxy has reset stays in the replica's memory, 10 kB of it, until this has passed: uvicorn doesn't
# cancel its timer then. By default it is 90 s, and under a flood there are hundreds a second. Longer than HAProxy keeps
# an idle connection to a replica (5 s), so that none is used which is just being closed.
KEEP_ALIVE_S = 10
# Ray's and HAProxy's time limits are so many seconds longer than the service's own, whose error says more.
LATE_S = 5
# Ports that HAProxy listens at beside the service's, on loopback, by the variable that changes them.
_HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}


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
        _log.info(f"serving at {url}: a page to try it; {url}/docs describes the endpoints; Ctrl-C ends it")
        if settings.host not in ("127.0.0.1", "localhost", "::1") and not api_key_digests(settings):
            _log.warning("everybody who reaches this address can use it: --api-keys-file asks for keys")
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
