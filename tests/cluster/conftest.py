"""Several Ray nodes on this machine, and what is scored on them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster

from sentiment.bundle import BundleConfig, write_bundle
from sentiment.data.synthetic import tweets
from sentiment.models.build import build_model
from sentiment.models.config import RecurrentConfig
from sentiment.text import normalize
from sentiment.tokenizers import WordTokenizer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, as those of tests/ray."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def flaky_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Installs the file system `flaky` for all processes that start from now on; gives the log of its failures."""
    plugins = tmp_path_factory.mktemp("plugins")
    log = plugins / "failures.log"
    log.touch()
    shutil.copy(Path(__file__).parent / "stores" / "flaky_store.py", plugins)
    about = plugins / "flaky_store-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flaky-store\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[fsspec.specs]\nflaky = flaky_store:FlakyFileSystem\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(plugins), prepend=os.pathsep)
        patch.setenv("FLAKY_STORE_LOG", str(log))
        yield log


@pytest.fixture(scope="module")
def nodes(flaky_store: Path) -> Iterator[Cluster]:
    """A head of two logical CPUs, to which tests add nodes; jobs join it in processes of their own.

    For a module only: the session's Ray of the other folders must not run beside it.
    """
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": 400 << 20, "include_dashboard": False},
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()
        if before is None:
            del os.environ["RAY_AUTH_MODE"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights: what it says doesn't matter, that it says the same each time does."""
    tokenizer = WordTokenizer.train([normalize(tweet.text) for tweet in tweets(2_000, seed=1)])
    config = RecurrentConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        embedding_dim=64,
        embedding_std=1.0,
        hidden_dim=128,
        num_layers=2,
        bidirectional=True,
        dropout=0.0,
        word_dropout=0.0,
        pad_id=tokenizer.pad_id,
        unk_id=tokenizer.unk_id,
    )
    torch.manual_seed(1)
    written = write_bundle(
        tmp_path_factory.mktemp("bundle"),
        config=BundleConfig(recipe="random", model=config, max_length=256),
        weights=build_model(config).state_dict(),
        tokenizer=tokenizer,
        metrics={},
        card="# random\n",
    )
    return written.path
