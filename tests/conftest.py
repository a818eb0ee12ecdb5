"""What all tests share: one Ray for the tests that need one, and a small pretrained encoder on disk."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from recovery import Recoveries
from skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401  (hooks)

from sentiment.observability.log import LOGGERS
from sentiment.settings import RaySettings


def pytest_configure() -> None:
    # Ctrl-C shall end what tests start: a shell that runs us in the background (`make test &`) has us ignore it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Ray reads it once in a process; by default metrics are reported every 10 s.
    os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the session's Ray: `-m "not ray"` runs the others, on all cores at once."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(autouse=True)
def unconfigured_logging() -> Iterator[None]:
    """Commands that run in a test's process configure logging; the next test finds it as it was."""
    yield
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def recoveries() -> Recoveries:
    """Takes down what the chaos tests find."""
    return Recoveries()


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where tests may have an S3 server; the environment says so before Ray starts, whose workers keep theirs.

    What Ray Serve is told by the environment goes with it.
    """
    from job_runs import free_port  # with Ray behind it, which takes a second to import

    port = free_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        # As docs/serving.md has it for the nodes of a cluster.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.proxy:middlewares",
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield port


@pytest.fixture(scope="session")
def ray_cluster(s3_port: int) -> Iterator[str]:
    """One embedded Ray for the whole session, with more logical CPUs than the machine may have; gives its address.

    Jobs that are called in this process join it; jobs in processes of their own get the address.
    """
    import ray

    from sentiment.session import ray_session

    with ray_session(RaySettings(num_cpus=4, num_gpus=0, object_store_gib=1, dashboard=True)):
        yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer BERT of random weights, 16 wide, with a WordPiece tokenizer that spells what it lacks."""
    import string

    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny-encoder")
    words = [*("i", "love", "hate", "this", "phone", "it", "is", "great", "awful", "not", "good", "bad", "day", "the")]
    pieces = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *string.punctuation]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(words + pieces)]))
    tokenizer = BertTokenizer(vocab=str(vocabulary), do_lower_case=True)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.4)
        model.save_pretrained(folder)
    return folder
