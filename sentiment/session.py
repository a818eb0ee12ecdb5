"""A job's connection to Ray: a cluster at an address, or an embedded Ray for as long as the job runs.

Whoever reaches Ray's ports can run code. So an embedded Ray has a token of its own, listens on loopback only, and keeps
sockets, logs and the token in a directory that other users of the machine can't enter.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

import ray
import ray.data
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError
from ray.util.placement_group import placement_group, remove_placement_group

from sentiment.errors import ConfigError, DataError, ResourceError, SentimentError, brief
from sentiment.observability.status import status_line
from sentiment.settings import RaySettings

_log = logging.getLogger(__name__)

# Environment of the embedded Ray, unless the user has set a variable.
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Train polls its workers this often; the default of 2 s is added to every epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # Watches for cloud providers that take a node back: one more process, 3 s of a start on two cores.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# The core logs to our stderr, and warns there of things that Ray Data does by design.
_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
# What keeps others out, whatever the user has set.
_SECURITY = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": None,  # Of another cluster; it would win over our file.
    # Ray's switch for systems whose firewall asks about each port that is opened: it binds all of them to loopback.
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
}
# Short names: paths of sockets have 107 characters at most.
_TOKEN, _SESSIONS = "token", "ray"
_PROBE_TIMEOUT_S = 10.0
_POLL_S = 0.5


@contextmanager
def ray_session(settings: RaySettings) -> Iterator[None]:
    """Connect to Ray for the length of a `with` block; inside another one it joins that.

    Args:
        settings: Address of a cluster (`RAY_ADDRESS` counts too), or sizes of the embedded Ray.

    Raises:
        ConfigError: The cluster asks for a token, or refuses this one.
        ResourceError: There is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    level = logging.INFO if settings.verbose else logging.ERROR
    # Jobs report progress themselves.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.train").setLevel(level)
    # What ends a pipeline is raised in the driver too; before that it is printed three times.
    logging.getLogger("ray.data").setLevel(level if settings.verbose else logging.CRITICAL)
    # A small input has fewer blocks than there are actors. That is fine.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors", category=UserWarning)
    # A training worker that is alone waits for nobody in a collective: Train finds out that it is frozen, by default
    # after ten minutes.
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(settings.worker_timeout_s))
    with nullcontext() if address else _private_environment(is_quiet=not settings.verbose) as directory:
        if address:
            _probe(address)
            token = offer_token()
            with (
                nullcontext() if settings.verbose else _core_silenced() as stream,
                status_line(f"joining Ray at {address}", stream),
            ):
                try:
                    ray.init(address=address, log_to_driver=settings.verbose, logging_level=level)
                except (AuthenticationError, ConnectionError, ValueError) as error:
                    if isinstance(error, AuthenticationError) or "AuthenticationError" in str(error.__cause__):
                        raise token_refused(address, token) from error
                    raise ResourceError(f"no Ray cluster at {address}: start it, or leave --address out") from error
        else:
            gib = settings.object_store_gib
            with nullcontext() if settings.verbose else _core_silenced() as stream, status_line("starting Ray", stream):
                context = ray.init(
                    address="local",
                    num_cpus=settings.num_cpus,
                    num_gpus=settings.num_gpus,
                    object_store_memory=None if gib is None else int(gib * 1024**3),
                    include_dashboard=settings.dashboard,
                    log_to_driver=settings.verbose,
                    logging_level=level,
                    _temp_dir=f"{directory}/{_SESSIONS}",
                )
            if settings.dashboard:
                _log.info(f"dashboard: http://{context.dashboard_url}; its token is in {directory}/{_TOKEN}")
        try:
            yield
        finally:
            with status_line("leaving Ray" if address else "stopping Ray"):
                ray.shutdown()


def offer_token() -> str | None:
    """Have Ray send the token of this user: to an address that is given, it sends one only when asked to.

    A cluster that wants none ignores it.

    Returns:
        Where the token is from; None if there is none.

    Raises:
        ConfigError: The file that RAY_AUTH_TOKEN_PATH names isn't there.
    """
    source = next((name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)), None)
    if source == "RAY_AUTH_TOKEN_PATH" and not Path(path := os.environ[source]).is_file():
        raise ConfigError(f"RAY_AUTH_TOKEN_PATH: no file at {path}")
    if not source and Path("~/.ray/auth_token").expanduser().is_file():
        source = "~/.ray/auth_token"
    if source:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        Config.initialize("")  # Ray has read the environment already, when it was imported.
    return source


def token_refused(address: str, source: str | None) -> ConfigError:
    """What to say when the cluster at an address doesn't take the token from `source` (None: there is none)."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if source and mode.lower() == "token":
        return ConfigError(f"the cluster at {address} refuses the token of {source}: it must be the head's")
    kept = f" (RAY_AUTH_MODE={mode} keeps back that of {source})" if source else ""
    return ConfigError(
        f"the cluster at {address} asks for a token{kept}: set RAY_AUTH_MODE=token, and the token by "
        "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    )


@contextmanager
def _private_environment(*, is_quiet: bool) -> Iterator[Path]:
    """Directory (mode 0700; Ray's own have 0777) and environment of an embedded Ray: a token, loopback only.

    Both are removed at the end, but for the logs if something unexpected ended the job.
    """
    directory = Path(tempfile.mkdtemp(prefix="ray-", dir=get_default_system_temp_dir()))
    (directory / _TOKEN).touch(mode=0o600)
    (directory / _TOKEN).write_text(secrets.token_hex(32), encoding="ascii")
    defaults = _DEFAULTS | (_QUIET if is_quiet else {})
    variables = {name: os.environ.get(name, value) for name, value in defaults.items()}
    variables |= _SECURITY | {"RAY_AUTH_TOKEN_PATH": str(directory / _TOKEN)}
    before = {name: os.environ.get(name) for name in variables}, ray_constants.ENABLE_RAY_CLUSTER
    keep_logs = False
    try:
        _set_environment(variables, enable_cluster=False)
        yield directory
    except Exception as error:
        keep_logs = not isinstance(error, SentimentError)
        raise
    finally:
        _set_environment(*before)
        if keep_logs:
            (directory / _TOKEN).unlink(missing_ok=True)
            _log.warning(f"Ray's logs are in {directory / _SESSIONS / 'session_latest' / 'logs'}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _set_environment(variables: Mapping[str, str | None], enable_cluster: bool) -> None:
    """Set variables (None removes one) and have Ray read them again: by itself it does so once, at import or use."""
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    for name in [name for name, value in variables.items() if value is None]:
        os.environ.pop(name, None)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = enable_cluster


def _probe(address: str) -> None:
    """Find out within seconds that nobody listens at `HOST:PORT`: Ray itself tries 20 times, 40 s each."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto" and the like; Ray knows at once.
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(f"no Ray cluster at {address} ({error}): start it, or leave --address out") from error


@contextmanager
def _core_silenced() -> Iterator[TextIO]:
    """Hold back what Ray's C++ core prints while it starts (its log level); printed if the start fails unexpectedly.

    Yields:
        The terminal or file that stderr was before.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held, open(stderr, "w", encoding="utf-8", closefd=False) as stream:
        os.dup2(held.fileno(), 2)
        try:
            yield stream
        except BaseException as error:
            if not isinstance(error, SentimentError):
                held.seek(0)
                os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def node_resources() -> list[dict[str, float]]:
    """What each live node has: CPU, GPU, …"""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def capacity(cpus: float, gpus: float = 0, spare_cpus: float = 0) -> int:
    """How many processes of so many CPUs and GPUs, each on one node, the cluster can hold, were it empty.

    `spare_cpus` of each node are left alone.
    """
    count = 0
    for node in node_resources():
        by_cpu = max(0.0, node.get("CPU", 0) - spare_cpus) / cpus if cpus else float("inf")
        # 0.6 / 0.2 is a little less than 3.
        count += int((min(by_cpu, node.get("GPU", 0) / gpus) if gpus else by_cpu) + 1e-9)
    return count


def require_capacity(
    count: int, what: str, *, cpus: float, gpus: float = 0, spare_cpus: float = 0, wait_s: float = 0
) -> None:
    """Refuse work that the cluster can never start, once the autoscaler, if any, had time to add nodes.

    Args:
        count: Processes that run at the same time; `cpus`, `gpus` and `spare_cpus` are those of `capacity`.
        what: Their name, for messages.
        wait_s: Seconds to wait for nodes.

    Raises:
        ResourceError: There is capacity for fewer; names what was asked and what there is.
    """
    available = capacity(cpus, gpus, spare_cpus)
    if available < count and wait_s:
        _log.info(f"waiting for nodes with room for {count} {what} ({wait_s:,.0f} s at most)")
        deadline = time.monotonic() + wait_s
        # Not by `request_resources`: Ray Data and Ray Train replace what others asked for with that every 20 s.
        request = placement_group([{"CPU": cpus + spare_cpus, **({"GPU": gpus} if gpus else {})}] * count)
        try:
            while (available := capacity(cpus, gpus, spare_cpus)) < count and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        finally:
            # New nodes are kept by what runs on them, and by the autoscaler's idle timeout until it does.
            remove_placement_group(request)
    if available >= count:
        return
    nodes = node_resources()
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    each = f"{cpus:g} and {gpus:g} each" + (f", {spare_cpus:g} CPUs of each node left alone" if spare_cpus else "")
    raise ResourceError(
        f"{count} {what} ask for {count * cpus:g} CPUs and {count * gpus:g} GPUs ({each}), "
        f"the cluster has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on {len(nodes)} node(s), room for "
        f"{available}: ask for fewer, or join a larger cluster with --address"
    )


@contextmanager
def writing_to(output: str, then: str) -> Iterator[None]:
    """Turn an OSError into a DataError that says which output can't be written to, and what to do then."""
    try:
        yield
    except OSError as error:
        if isinstance(error, RayError):  # A task's error is of its cause's kind too.
            raise
        raise DataError(f"can't write to {output} ({brief(error)}); once that is mended, {then}") from error
