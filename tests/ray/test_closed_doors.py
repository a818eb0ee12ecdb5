"""Whoever gets through Ray's ports can run code: those of an embedded Ray are for processes of this user only."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import ray
from job_runs import beyond_loopback, listening

# Reads from the cluster's key-value store, as any driver that joins does.
READ = """
import sys
from ray._raylet import GcsClient
print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=20))
"""
JOBS = "http://127.0.0.1:{}/api/job_agent/jobs/"


@pytest.fixture
def session_folder(ray_cluster: str) -> Path:
    return Path(ray._private.worker._global_node.get_session_dir_path())


def post_job(session_folder: Path, owned: Path, token: str | None) -> int:
    """Asks the node's agent to run a command, as `ray job submit` would; returns the status."""
    (port,) = session_folder.glob("dashboard_agent_listen_port_*")
    request = urllib.request.Request(
        JOBS.format(port.read_text().strip()),
        data=json.dumps({"entrypoint": f"id > {owned}"}).encode(),
        headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_a_job_without_the_token_is_refused(session_folder: Path, tmp_path: Path, token: str | None) -> None:
    assert post_job(session_folder, tmp_path / "owned", token) in (401, 403)
    assert not (tmp_path / "owned").exists()


def test_a_job_with_the_token_is_taken(session_folder: Path, tmp_path: Path) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert post_job(session_folder, tmp_path / "owned", token) == 200


def test_the_control_store_asks_for_the_token(ray_cluster: str) -> None:
    without = {"RAY_AUTH_MODE": "disabled"}
    wrong = {"RAY_AUTH_TOKEN": "0" * 64}
    codes = []
    for given in (without, wrong, {}):
        command = [sys.executable, "-c", READ, ray_cluster]
        reader = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=False)
        codes.append(reader.returncode)
        assert ("auth" in reader.stderr.lower()) == bool(given), reader.stderr
    assert codes == [1, 1, 0]


def test_everything_listens_at_loopback(ray_cluster: str) -> None:
    assert len(listening(psutil.Process())) > 5
    assert beyond_loopback(psutil.Process()) == []


def test_others_of_the_machine_cannot_look_in(session_folder: Path) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    private = token.parent
    assert private in session_folder.parents
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
