"""Sentiment at scale: train classifiers on Ray, score archives to Parquet, serve them over HTTP.

    from sentiment import Predictor, load_bundle, score, train

They are imported on first use: `import sentiment` costs nothing, torch and Ray take seconds.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentiment.api import Predictor, load_bundle, score, train

__all__ = ["Predictor", "load_bundle", "score", "train"]

if find_spec("pydantic") is None:  # What every command needs first: this Python isn't the one that was set up.
    sys.stderr.write(f"{sys.executable} lacks the packages: run `make setup`, then .venv/bin/python instead of it\n")
    sys.exit(2)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("sentiment.api"), name)
