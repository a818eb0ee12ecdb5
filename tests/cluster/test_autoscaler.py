"""A job that finds too few nodes asks Ray's autoscaler for more; here they are processes on this machine."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from heads import free_ports, started_head
from job_runs import environment, finished, read_rows, running, wait_for

from sentiment.data.synthetic import tweets

# Ray's own provider of such nodes, and how it names the head.
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_HEAD_ID = f"{'f' * 51}00000"
_COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
)
ROWS = 300
# What Ray Data and Ray Train do to the requests of others on a cluster that they have once worked on.
_OTHERS_ASK_FOR_NOTHING = """
import os, time
os.environ["RAY_AUTH_MODE"] = "token"
import ray
from ray.autoscaler.sdk import request_resources
ray.init()
print("asking", flush=True)
while True:
    request_resources(bundles=[])
    time.sleep(0.05)
"""


@pytest.fixture
def autoscaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a head of one CPU, which may start two nodes of two.

    It asks for a token, as any head does where somebody has used Ray before: `ray.init()` leaves one.
    """
    monkeypatch.setenv("HOME", str(home := tmp_path / "home"))
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    port, client, agent = free_ports(3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as looking:
        looking.connect(("192.0.2.1", 9))  # Sends nothing; nodes that are started look for the head at this address.
        address = f"{looking.getsockname()[0]}:{port}"
    config = {
        "cluster_name": "here",
        "provider": {
            **{"type": "external", "module": _PROVIDER, "head_node_id": _HEAD_ID, "gcs_address": address},
            **{"launch_multiple": True, "disable_node_updaters": True},
        },
        "head_node_type": "ray.head.default",
        "max_workers": 2,
        # Ray fills in nothing for providers that it doesn't know.
        **{name: [] for name in _COMMANDS},
        **{"auth": {}, "docker": {}, "file_mounts": {}, "upscaling_speed": 1.0, "idle_timeout_minutes": 5},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
    }
    (tmp_path / "autoscaler.yaml").write_text(yaml.safe_dump(config))
    env = environment(None) | {
        **{"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"},
        **{"RAY_CLOUD_INSTANCE_ID": _HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID},
    }
    flags = [
        *(f"--port={port}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *("--num-cpus=1", "--include-dashboard=false", f"--autoscaling-config={tmp_path / 'autoscaler.yaml'}"),
    ]
    with started_head(*flags, env=env) as (process, log):

        def answer() -> bool:
            assert process.poll() is None, log.read_text()
            return "Ray runtime started" in log.read_text()

        wait_for("head", answer)
        yield address


def test_job_waits_for_the_nodes_that_it_asks_for(autoscaled: str, bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive.jsonl"
    archive.write_text("".join(json.dumps({"text": tweet.text}) + "\n" for tweet in tweets(ROWS)))
    command = ("--model", bundle, "--input", archive, "--output", tmp_path / "out", "--num-actors", 3)
    at_once = finished("score", *command, address=autoscaled)
    assert at_once.returncode == 2
    assert "3 model actors ask for 3 CPUs" in at_once.stderr
    with running("-c", _OTHERS_ASK_FOR_NOTHING, env=environment(autoscaled)) as others:
        assert others.stdout is not None
        assert others.stdout.readline() == "asking\n"
        done = finished("score", *command, "--wait-for-nodes-s", 90, address=autoscaled)
    assert done.returncode == 0, done.stderr
    assert "waiting for nodes with room for 3 model actors (90 s at most)" in done.stderr
    assert read_rows(tmp_path / "out" / "scored").num_rows == json.loads(done.stdout)["rows_scored"] == ROWS
