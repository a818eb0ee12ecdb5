"""`ray job submit jobs/train_bert.py` from the repository's root, word for word, on a cluster with its dashboard."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from job_runs import PATIENCE_S, REPOSITORY, Prepared
from ray._private.worker import get_dashboard_url
from safetensors.torch import load_file

from sentiment.bundle import Bundle
from sentiment.errors import BundleError
from sentiment.predictor import Predictor

BIN = Path(sys.executable).parent


def submit(*words: str, root: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Submit, wait, and give the exit code and the job's log; settings are those of section train_bert.

    The job stands in a copy of the repository: what it reads and writes begins at `root`.
    """
    variables = {f"SENTIMENT_TRAIN_BERT_{name.upper()}": str(value) for name, value in settings.items()}
    # The shell that runs the job looks `python` up where the cluster was started.
    variables |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
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


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of its own, for it is changed here."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    shutil.copytree(tiny_encoder, folder)
    return folder


@pytest.fixture(scope="module")
def submitted(
    ray_cluster: str, prepared: Prepared, encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The job's JSON, and the folder in which `ray_config.yaml` has its data and output."""
    root = tmp_path_factory.mktemp("root")
    (root / "runs").mkdir()
    (root / "runs" / "imdb").symlink_to(prepared.folder)
    settings = {"encoder": encoder, "max_length": 40, "epochs": 1, "hidden_dim": 8}
    upper_layer = {"unfreeze_layers": 1, "encoder_learning_rate": 0.001, "encoder_by_reference": "true"}
    done = submit("jobs/train_bert.py", root=root, **settings, **upper_layer)
    assert done.returncode == 0, done.stdout + done.stderr
    return {**result_in(done.stdout), "root": root}


def test_the_job_trains_with_the_settings_of_the_file_and_the_environment(submitted: dict[str, Any]) -> None:
    # The recipe, where data and output are, and two workers are ray_config.yaml's.
    assert (submitted["recipe"], submitted["workers"], submitted["epochs"]) == ("bert-gru", 2, 1)
    assert Path(submitted["bundle"]) == submitted["root"] / "runs" / "bert" / "bundle"
    assert Path(submitted["bundle"], "MANIFEST.json").exists()
    assert ray.is_initialized()


def test_layers_are_trained_and_bundled_by_reference(submitted: dict[str, Any], encoder: Path) -> None:
    bundle = Bundle.open(submitted["bundle"])
    weights, before = bundle.weights(), load_file(encoder / "model.safetensors")
    assert {name.rsplit(".layer.")[0] for name in weights if name.startswith("encoder.")} == {"encoder.encoder"}
    assert len([name for name in weights if name.startswith("encoder.encoder.layer.1.")]) == 16
    moved = "encoder.layer.1.output.dense.weight"
    assert not torch.equal(weights[f"encoder.{moved}"], before[moved])
    assert Predictor.load(submitted["bundle"]).predict(["good", "bad"])[0].score > 0.5
    # Another encoder in the same place is noticed.
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.2}))
    with pytest.raises(BundleError, match=r"the one with sha256 \w{12}… is needed"):
        Predictor.load(submitted["bundle"])
