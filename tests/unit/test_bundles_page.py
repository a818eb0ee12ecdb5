"""docs/bundles.md: what it shows works, without this project, and gives what `Predictor` gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sentiment.bundle import Bundle
from sentiment.predictor import Predictor
from sentiment.training.recipes import RECIPES

PAGE = (Path(__file__).parents[2] / "docs" / "bundles.md").read_text(encoding="utf-8")
BLOCK = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def p_positive" in block)
TEXTS = ["I love this phone, it is great :)", "not good at all", "zebra", "good " * 100, "don't!"]
SHAPES = [
    {"cell": "lstm", "pooling": "concat"},
    {"cell": "gru", "pooling": "concat", "num_layers": 1},
    {"cell": "lstm", "pooling": "last"},
    {"cell": "gru", "pooling": "max"},
]


def test_it_loads_bundles_with_torch_and_tokenizers_alone(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """One process for all, somewhere else, where this project can't be imported."""
    paths = [str(make_bundle(f"bundle {at}", **shape).path) for at, shape in enumerate(SHAPES)]
    code = (
        "import sys, json\nanswers = []\n"
        f"for bundle in {paths!r}:\n"
        f"    space = {{'bundle': bundle}}\n    exec({BLOCK!r}, space)\n"
        f"    answers.append([space['p_positive'](text) for text in {TEXTS!r}])\n"
        "assert not any(name.split('.')[0] in ('sentiment', 'jobs', 'transformers') for name in sys.modules)\n"
        "print(json.dumps(answers))"
    )
    command = [sys.executable, "-I", "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for path, found in zip(paths, json.loads(result.stdout), strict=True):
        predictions = Predictor.load(path, use_gpu=False, precision="float32").predict(TEXTS)
        assert found == pytest.approx([each.p_positive for each in predictions], abs=1e-5)


def test_it_says_which_recipes_it_is_for() -> None:
    """All but those that it names."""
    named = re.search(r"recipes of `sentiment train lstm` but\n(.*?):\n", PAGE, re.DOTALL)
    assert named is not None
    fitting = [
        recipe.name
        for recipe in RECIPES.values()
        if getattr(recipe, "cell", None) in ("lstm", "gru")
        and getattr(recipe, "bidirectional", False)
        and recipe.num_logits == 1
    ]
    assert {*re.findall(r"`([\w-]+)`", named[1])} == {*RECIPES} - {*fitting}
