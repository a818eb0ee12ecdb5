"""The named recipes: the sources' sizes and settings, and how a setting is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sentiment.errors import ConfigError
from sentiment.models.build import build_model, count_parameters
from sentiment.training.recipes import RECIPES, BagRecipe, RecurrentRecipe, get_recipe, twin_of

# What users were promised, and what scripts call.
PROMISED = (
    *("rnn", "rnn-fixed", "lstm", "multilayer-lstm", "bilstm", "bilstm-packed", "bigru"),
    *("glove-mlp", "tweet-rnn", "tweets", "reviews"),
)
ADAM = {"optimizer": "adamw", "weight_decay": 0.0, "schedule": "constant"}
IMDB = {"dataset": "imdb", "batch_size": 64, "epochs": 5, "hidden_dim": 256, "num_logits": 1, "subwords": False}
GLOVE_IMDB = {
    **IMDB,
    **ADAM,
    **{"vectors": "glove.6B.100d", "embedding_dim": None, "frozen_embedding": False, "reads_padding": False},
    **{"learning_rate": 1e-3, "clip_norm": 0.0, "dropout": 0.5, "word_dropout": 0.0, "pooling": "last"},
}
TWEETS = {
    **ADAM,
    **{"dataset": "sentiment140", "batch_size": 64, "epochs": 20, "vectors": "glove.6B.50d", "embedding_dim": None},
    **{"frozen_embedding": True, "embedding_std": 0.0, "subwords": False, "num_logits": 2, "dropout": 0.0},
    **{"word_dropout": 0.0, "clip_norm": 0.0},
}
SINGLE_RNN = {**IMDB, "vectors": None, "embedding_dim": 100, "dropout": 0.0, "cell": "rnn", "num_layers": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "rnn": {
        **SINGLE_RNN,
        **{"optimizer": "sgd", "learning_rate": 1e-3, "clip_norm": 0.0, "reads_padding": True, "bidirectional": False},
    },
    "rnn-fixed": {**SINGLE_RNN, "optimizer": "adamw", "reads_padding": False, "bidirectional": False},
    "lstm": {**GLOVE_IMDB, "cell": "lstm", "num_layers": 1, "bidirectional": False, "state_layers": 1},
    "multilayer-lstm": {**GLOVE_IMDB, "cell": "lstm", "num_layers": 2, "bidirectional": False, "state_layers": 2},
    "bilstm": {**GLOVE_IMDB, "cell": "lstm", "num_layers": 2, "bidirectional": True, "state_layers": 1},
    "bigru": {**GLOVE_IMDB, "cell": "gru", "num_layers": 2, "bidirectional": True, "state_layers": 1},
    "glove-mlp": {**TWEETS, "hidden_dims": (30, 10), "learning_rate": 1e-3},
    "tweet-rnn": {
        **TWEETS,
        **{"cell": "rnn", "hidden_dim": 100, "num_layers": 1, "bidirectional": False, "learning_rate": 2e-4},
        **{"pooling": "last", "reads_padding": False},
    },
}


def parameters(name: str, width: int, *, trainable: bool = False) -> int:
    with torch.device("meta"):
        model = build_model(get_recipe(name).config(25_002, width, pad_id=1, unk_id=0))
    return count_parameters(model, trainable=trainable)


def test_every_promised_recipe_is_there() -> None:
    assert set(PROMISED) <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_complete(name: str) -> None:
    """Most are copies with some fields replaced, which are not checked when they are made."""
    recipe = get_recipe(name)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.source
    assert recipe.source_result
    assert type(recipe).model_validate(recipe.model_dump()) == recipe
    assert parameters(name, recipe.embedding_dim or 100) > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_recipes_have_their_sources_settings(name: str) -> None:
    recipe = get_recipe(name).model_dump()
    assert {field: recipe[field] for field in SETTINGS[name]} == SETTINGS[name]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("rnn", 2_592_105),
        ("rnn-fixed", 2_592_105),
        ("lstm", 2_867_049),
        ("multilayer-lstm", 3_393_641),
        ("bilstm", 4_810_857),
        ("bilstm-packed", 4_810_857),
        ("bigru", 4_233_321),
    ],
)
def test_parameters_at_the_sources_vocabulary(name: str, number: int) -> None:
    assert parameters(name, 100) == number


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # Input, state, two biases; two outputs.
        ("tweet-rnn", 50 * 100 + 100 * 100 + 2 * 100 + (100 * 2 + 2)),
        ("glove-mlp", (50 * 30 + 30) + (30 * 10 + 10) + (10 * 2 + 2)),
    ],
)
def test_frozen_vectors_are_no_trainable_parameters(name: str, by_hand: int) -> None:
    assert by_hand == {"tweet-rnn": 15_402, "glove-mlp": 1_862}[name]
    assert parameters(name, 50, trainable=True) == by_hand
    assert parameters(name, 50) == 25_002 * 50 + by_hand


def test_only_the_packed_bilstm_is_another_ones_twin() -> None:
    twins = {name: twin_of(recipe).name for name, recipe in RECIPES.items()}
    assert {name: twin for name, twin in twins.items() if name != twin} == {"bilstm-packed": "bilstm"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bi-lstm", "unknown recipe 'bi-lstm' in sentiment/training/recipes.py: did you mean bilstm or .*"),
        ("twets", "unknown recipe 'twets' .*did you mean tweets"),
        ("xyzzy", "unknown recipe 'xyzzy' .*there are: .*bilstm.*tweets"),
    ],
)
def test_a_mistyped_recipe_names_near_ones(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_recipe(name)


@pytest.mark.parametrize(
    ("name", "flags", "values"),
    [
        ("bilstm", {"epochs": "7", "dropout": "0.25"}, {"epochs": 7, "dropout": 0.25}),
        ("bilstm", {"bidirectional": "false", "cell": "gru"}, {"bidirectional": False, "cell": "gru"}),
        ("bilstm", {"num_logits": "2", "learning_rate": "1e-4"}, {"num_logits": 2, "learning_rate": 1e-4}),
        ("bilstm", {"vectors": "none", "embedding_dim": "64"}, {"vectors": None, "embedding_dim": 64}),
        ("tweets", {"vectors": "my.txt", "embedding_dim": "none"}, {"vectors": "my.txt", "embedding_dim": None}),
        ("glove-mlp", {"hidden_dims": ["8", "4"], "num_logits": 1}, {"hidden_dims": (8, 4), "num_logits": 1}),
        # From the environment, where a list is JSON.
        ("glove-mlp", {"hidden_dims": "[8, 4, 2]"}, {"hidden_dims": (8, 4, 2)}),
    ],
)
def test_settings_are_converted_from_text(name: str, flags: dict[str, Any], values: dict[str, Any]) -> None:
    recipe = get_recipe(name)
    changed = recipe.with_overrides(flags)
    assert type(changed) is type(recipe)
    assert changed.model_dump() == {**recipe.model_dump(), **values}


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("bilstm", {"epochs": "many"}, r"--epochs: .*integer.*got 'many'"),
        ("bilstm", {"dropout": "1"}, r"--dropout: .*less than 1, got '1'"),
        ("bilstm", {"cell": "gur", "batch_size": "0"}, r"--batch-size: .*greater than 0.*; --cell: .*'gru'.*got 'gur'"),
        ("bilstm", {"num_logits": "3"}, r"--num-logits: .*1 or 2, got '3'"),
        ("glove-mlp", {"hidden_dims": "30,10"}, r"--hidden-dims: .*a list is written as JSON.*, got '30,10'"),
        ("glove-mlp", {"hidden_dims": ["30", "0"]}, r"--hidden-dims: .*greater than 0, got '0'"),
        # Each value is fine, but not beside the others.
        ("bilstm", {"state_layers": "3"}, "the head can't read 3 layers of 2"),
        ("rnn", {"pooling": "max"}, "padded_length go with pooling last"),
        # A setting of another kind of recipe.
        ("bilstm", {"hidden_dims": ["3"]}, "--hidden-dims is no setting of recipe bilstm"),
        ("glove-mlp", {"hidden_dim": "3"}, "--hidden-dim is no setting of recipe glove-mlp"),
    ],
)
def test_settings_that_do_not_fit(name: str, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        get_recipe(name).with_overrides(flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [RecurrentRecipe, BagRecipe])
def test_every_setting_is_explained(kind: type[RecurrentRecipe | BagRecipe]) -> None:
    """The description is the text of --help."""
    settings = {name: info for name, info in kind.model_fields.items() if name not in kind.WORDS}
    assert [name for name, info in settings.items() if not info.description] == []


def test_overrides_reach_the_model() -> None:
    recipe = get_recipe("rnn").with_overrides({"max_length": "77", "word_dropout": "0.2", "num_layers": "3"})
    shape = recipe.config(500, 24, pad_id=1, unk_id=0)
    assert shape.model_dump() == {
        **{"kind": "rnn", "cell": "rnn", "hidden_dim": 256, "num_layers": 3, "bidirectional": False},
        **{"pooling": "last", "state_layers": 1, "padded_length": 77},
        **{"vocabulary_size": 500, "embedding_dim": 24, "embedding_std": 1.0, "frozen_embedding": False},
        **{"dropout": 0.0, "word_dropout": 0.2, "num_logits": 1, "pad_id": 1, "unk_id": 0},
    }
