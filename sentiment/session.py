"""A job's Ray: the cluster it was given, or an embedded one for as long as it runs."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray
import ray.data
from ray.util.placement_group import placement_group, remove_placement_group

from sentiment.errors import ResourceError
from sentiment.settings import RaySettings

# For the embedded Ray only; a cluster has its own.
_EMBEDDED_ENVIRONMENT = {
    # Everything is on this machine and bound to loopback; a token would be written to the home folder.
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Train polls its workers this often; the default of 2 s is added to every epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
}
# The core's own log goes to our stderr; it warns there of things that Ray Data does by design.
_QUIET_ENVIRONMENT = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
_GIB = 1024**3
_PROBE_S = 10.0
_LOOK_S = 0.5


@contextmanager
def ray_session(settings: RaySettings) -> Iterator[None]:
    """Connect to Ray for the length of a `with` block; inside another one it joins that.

    Args:
        settings: Address of a cluster (`RAY_ADDRESS` counts too), or sizes of the embedded Ray.

    Raises:
        ResourceError: There is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    level = logging.INFO if settings.verbose else logging.ERROR
    _quieten(level)
    if address:
        _probe(address)
        try:
            ray.init(address=address, log_to_driver=settings.verbose, logging_level=level)
        except (ConnectionError, ValueError) as error:
            raise ResourceError(f"no Ray cluster at {address}: start it, or leave --address out") from error
    else:
        quiet = {} if settings.verbose else _QUIET_ENVIRONMENT
        for name, value in {**_EMBEDDED_ENVIRONMENT, **quiet}.items():
            os.environ.setdefault(name, value)
        with nullcontext() if settings.verbose else _core_silenced():
            _start_embedded(settings, level)
    try:
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Find out within seconds that nobody listens at `HOST:PORT`: Ray itself tries 20 times, 40 s each."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto" and the like; Ray knows at once.
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(f"no Ray cluster at {address} ({error}): start it, or leave --address out") from error


def _start_embedded(settings: RaySettings, level: int) -> None:
    gib = settings.object_store_gib
    ray.init(
        address="local",
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
        object_store_memory=None if gib is None else int(gib * _GIB),
        include_dashboard=settings.dashboard,
        log_to_driver=settings.verbose,
        logging_level=level,
    )


@contextmanager
def _core_silenced() -> Iterator[None]:
    """Hold back what Ray's C++ core prints while it starts (it announces its log level); shown if the start fails."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _quieten(level: int) -> None:
    """Keep Ray Data's and Ray Train's own words to `level`: jobs report progress themselves."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.train").setLevel(level)
    # What ends a pipeline is raised in the driver too; before that it is printed three times.
    logging.getLogger("ray.data").setLevel(level if level < logging.ERROR else logging.CRITICAL)
    # A small input has fewer blocks than there are actors. That is fine.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors", category=UserWarning)


def node_resources() -> list[dict[str, float]]:
    """What each live node has: CPU, GPU, …"""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(cpus: float, gpus: float = 0, spare_cpus: float = 0) -> int:
    """How many processes the cluster can hold.

    Args:
        cpus: CPUs of each; they must be on one node.
        gpus: GPUs of each.
        spare_cpus: CPUs of each node that are left alone.
    """
    places = 0
    for node in node_resources():
        by_cpu = max(0.0, node.get("CPU", 0) - spare_cpus) / cpus if cpus else float("inf")
        # 0.6 / 0.2 is a little less than 3.
        places += int((min(by_cpu, node.get("GPU", 0) / gpus) if gpus else by_cpu) + 1e-9)
    return places


def wait_for_room(
    settings: RaySettings, count: int, what: str, *, cpus: float, gpus: float = 0, spare_cpus: float = 0
) -> None:
    """Ask the autoscaler, if there is one, for the nodes that a job needs, and wait; `require` says if in vain.

    Args:
        settings: How long.
        count: Processes that run at the same time.
        what: Their name, for people.
        cpus: CPUs of each; they must be on one node.
        gpus: GPUs of each.
        spare_cpus: CPUs of each node that are left alone.
    """
    until = time.monotonic() + settings.wait_for_nodes_s
    if room(cpus, gpus, spare_cpus) >= count or not settings.wait_for_nodes_s:
        return
    seconds = f"{settings.wait_for_nodes_s:,.0f} s at most"
    print(f"waiting for nodes with room for {count} {what} ({seconds})", file=sys.stderr, flush=True)
    # Not by `request_resources`: Ray Data and Ray Train replace what others asked for with that every 20 s.
    wanted = placement_group([{"CPU": cpus + spare_cpus, **({"GPU": gpus} if gpus else {})}] * count)
    try:
        while room(cpus, gpus, spare_cpus) < count and time.monotonic() < until:
            time.sleep(_LOOK_S)
    finally:
        # They are kept by what runs on them, and by the autoscaler's idle timeout until it does.
        remove_placement_group(wanted)


def require(count: int, what: str, *, cpus: float, gpus: float = 0, spare_cpus: float = 0) -> None:
    """Refuse work that the cluster can never start, instead of waiting for ever.

    Args:
        count: Processes that run at the same time.
        what: Their name, for the message.
        cpus: CPUs of each; they must be on one node.
        gpus: GPUs of each.
        spare_cpus: CPUs of each node that are left alone.

    Raises:
        ResourceError: The nodes have room for fewer; names what was asked and what there is.
    """
    nodes, places = node_resources(), room(cpus, gpus, spare_cpus)
    if places < count:
        total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        each = f"{cpus:g} and {gpus:g} each" + (f", {spare_cpus:g} CPUs of each node left alone" if spare_cpus else "")
        raise ResourceError(
            f"{count} {what} ask for {count * cpus:g} CPUs and {count * gpus:g} GPUs ({each}), "
            f"the cluster has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on {len(nodes)} node(s), room for "
            f"{places}: ask for fewer, or join a larger cluster with --address"
        )
