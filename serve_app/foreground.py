"""Serving as long as somebody wants to: what `python -m serve_app` does on Ray."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading

from ray import serve
from ray.serve.config import HTTPOptions

from sentiment.bundle import Bundle
from sentiment.errors import ResourceError
from sentiment.session import require, wait_for_room
from sentiment.settings import RaySettings, ServeSettings
from sentiment.stores import absolute
from serve_app.deployment import api_key_digests, application

# A connection that HAProxy has reset stays in the replica's memory, 10 kB of it, until this has passed: uvicorn doesn't
# cancel its timer then. By default it is 90 s, and under a flood there are hundreds a second. Longer than HAProxy keeps
# an idle connection to a replica (5 s), so that none is used which is just being closed.
KEEP_ALIVE_S = 10
# Ports that HAProxy listens at beside the service's, on all addresses, by the variable that changes them.
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
    _check_port(settings.host, settings.port, "--port")
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        for variable, port in _HAPROXY_PORTS.items():
            _check_port("0.0.0.0", int(os.environ.get(variable, port)), variable)  # noqa: S104  (as HAProxy does)


def _check_port(host: str, port: int, setting: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(f"can't listen at {host}:{port} ({error.strerror}): try another {setting}") from None


def serve_until_interrupted(settings: ServeSettings, ray_settings: RaySettings) -> None:
    """Serve on the Ray that is connected, until SIGINT or SIGTERM.

    Args:
        settings: Section serve, checked.
        ray_settings: How long to wait for nodes.

    Raises:
        ResourceError: There is no room for it, Ray Serve is in use already, or couldn't bring it up.
    """
    _check_cluster(settings, ray_settings)
    # A replica may run in another folder, or on another node.
    settings = settings.model_copy(update={"model": absolute(settings.model)})
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options=HTTPOptions(
            host=settings.host, port=settings.port, request_timeout_s=None, keep_alive_timeout_s=KEEP_ALIVE_S
        )
    )
    # Also while it loads.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _say(f"loading {settings.model}")
        try:
            serve.run(application(settings), name=settings.name, route_prefix="/")
        except RuntimeError as error:
            raise ResourceError(f"the service didn't come up: {' '.join(str(error).split())[:500]}") from error
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{host}:{settings.port}"
        _say(f"serving at {url}: a page to try it; {url}/docs describes the endpoints; Ctrl-C ends it")
        if settings.host not in ("127.0.0.1", "localhost", "::1") and not api_key_digests(settings):
            _say("everybody who reaches this address can use it: --api-keys-file asks for keys")
        threading.Event().wait()
    except KeyboardInterrupt:
        _say("stopping")
    finally:
        serve.shutdown()


def _check_cluster(settings: ServeSettings, ray_settings: RaySettings) -> None:
    """Refuse what would wait for ever, or take others' applications along when it ends."""
    running = serve.status()
    if running.applications or running.proxies:
        there = ", ".join(sorted(running.applications)) or "without an application"
        raise ResourceError(
            f"Ray Serve runs on this cluster already ({there}): serve deploy cluster/serve.yaml puts a model there, "
            "serve shutdown ends it"
        )
    each = {"cpus": settings.cpus_per_replica, "gpus": settings.gpus_per_replica}
    if any(each.values()):
        wait_for_room(ray_settings, max(1, settings.min_replicas), "replicas", **each)
        require(max(1, settings.min_replicas), "replicas", **each)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
