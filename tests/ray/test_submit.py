"""`ray job submit jobs/train_bert.py` from the repository's root, word for word, on a cluster with its dashboard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from job_runs import PATIENCE_S, REPOSITORY, Prepared
from ray._private.worker import get_dashboard_url

BIN = Path(sys.executable).parent


def submit(*words: str, root: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Submit, wait, and give the exit code and the job's log; settings are those of section train_bert.

    The job stands in a copy of the repository: what it reads and writes begins at `root`.
    """
    variables = {f"SENTIMENT_TRAIN_BERT_{name.upper()}": str(value) for name, value in settings.items()}
    # The shell that runs the job looks `python` up where the cluster was started.
    variables |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    variables["SENTIMENT_STORAGE_ROOT"] = str(root)
    runtime_env = json.dumps({"env_vars": variables})
    return subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--runtime-env-json", runtime_env, *words],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_ADDRESS": f"http://{get_dashboard_url()}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def result_in(log: str) -> dict[str, Any]:
    """The job's JSON, which is the last line that it prints on stdout; the command adds words of its own."""
    (line,) = [line for line in log.splitlines() if line.startswith('{"bundle"')]
    result: dict[str, Any] = json.loads(line)
    return result


def test_the_job_trains_with_the_settings_of_the_file_and_the_environment(
    ray_cluster: str, prepared: Prepared, tiny_encoder: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "imdb").symlink_to(prepared.folder)
    settings = {"encoder": tiny_encoder, "max_length": 40, "epochs": 1, "hidden_dim": 8}
    done = submit("jobs/train_bert.py", root=tmp_path, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    result = result_in(done.stdout)
    # The recipe, where data and output are, and two workers are ray_config.yaml's.
    assert (result["recipe"], result["workers"], result["epochs"]) == ("bert-gru", 2, 1)
    assert Path(result["bundle"]) == tmp_path / "runs" / "bert" / "bundle"
    assert Path(result["bundle"], "MANIFEST.json").exists()
    assert ray.is_initialized()
