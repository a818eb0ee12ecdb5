"""What the service's tests share: two small bundles, and the application with one of them, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served, make_bundle, serve_app

from sentiment.predictor import Predictor


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "a", seed=1)


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, which says other things."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", seed=2)


@pytest.fixture(scope="session")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle, use_gpu=False, precision="float32")


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Served]:
    """The application with small limits."""
    yield from serve_app(bundle, max_texts=8, max_text_chars=200, max_body_mib=0.01)
