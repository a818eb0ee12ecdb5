"""Every test of this folder needs Ray; a prepared folder and a trained bundle are made once for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_runs import RECIPE_FLAGS, Corpus, Prepared, Trained, run_job, write_corpus

from jobs import prepare, train_lstm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, so that `-m "not ray"` leaves them out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Labeled files with bad rows among them."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def prepared(ray_cluster: str, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The corpus, prepared."""
    output = tmp_path_factory.mktemp("prepared") / "data"
    result = run_job(prepare.JOB, "--input", corpus.folder, "--output", output, "--test-share", 0.2)
    return Prepared(output, result)


@pytest.fixture(scope="session")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A small model with dropout, trained by two workers without disturbance."""
    output = tmp_path_factory.mktemp("trained") / "run"
    result = run_job(train_lstm.JOB, "--data", prepared.folder, "--output", output, *RECIPE_FLAGS)
    return Trained(output, result)
