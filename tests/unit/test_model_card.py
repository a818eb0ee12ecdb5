"""A bundle's card says what the model is made of and how good it is, in the form that the Hugging Face hub reads."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from sentiment.training.recipes import BERT_RECIPES, RECIPES, Recipe
from sentiment.training.report import model_card

METRICS: dict[str, Any] = {
    "parameters": 4_810_857,
    "trainable_parameters": 4_810_857,
    "vocabulary": 25_002,
    "epochs": 3,
    "best_epoch": 2,
    "validation_accuracy": 0.81234,
    "test_rows": 1000,
    "test_accuracy": 0.8054,
    "test_macro_f1": 0.8049,
    "test_confusion": ((410, 90), (105, 395)),
    "workers": 2,
    "device": "cpu",
    "precision": "bf16",
    "rows_per_s": 930,
}
MANIFEST: dict[str, Any] = {
    "inputs": [
        {"path": "/home/somebody/private/tweets: mine.csv", "bytes": 1234567, "sha256": "ab" * 32},
        {"path": "s3://bucket/reviews/0_1.txt?region=x", "files": 1000, "bytes": 99, "sha256": "cd" * 32},
    ],
    "splits": {
        "train": {"rows": 16_000, "negative": 7_900, "positive": 8_100},
        "validation": {"rows": 1000, "negative": 480, "positive": 520},
        "test": {"rows": 1000, "negative": 500, "positive": 500},
    },
    "settings": {"input": ["/home/somebody/private/tweets: mine.csv"], "vocabulary_size": 25_000, "seed": 1},
}


@pytest.mark.parametrize("recipe", [RECIPES["tweets"], RECIPES["glove-mlp"], BERT_RECIPES["bert-tweets"]])
def test_the_hub_can_read_it(recipe: Recipe) -> None:
    card = ModelCard(model_card(recipe, METRICS, MANIFEST))
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-classification", "sentiment-at-scale")
    assert (card.data.license, card.data.metrics) == ("unknown", ["accuracy", "f1"])
    assert {"sentiment-analysis", recipe.name} <= {*card.data.tags}
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures == {"accuracy": 0.8054, "f1": 0.8049}
    assert {result.dataset_name for result in card.data.eval_results} == {"tweets: mine.csv, 0_1.txt"}


def test_it_names_data_settings_and_figures() -> None:
    text = model_card(RECIPES["tweets"], METRICS, MANIFEST)
    for line in (
        "- tweets: mine.csv, 1,234,567 bytes, sha256 abababababababab…",
        "- 0_1.txt and 999 more files, 99 bytes, sha256 cdcdcdcdcdcdcdcd…",
        "| train | 16,000 | 7,900 | 8,100 |",
        "| validation accuracy | 81.23% (epoch 2 of 3) |",
        "| test accuracy | 80.54% |",
        "| are NEGATIVE | 410 | 90 |",
        "| are POSITIVE | 105 | 395 |",
    ):
        assert line in text.splitlines()
    for setting in ("learning_rate 0.002", "hidden_dim 256", "pooling concat", "vocabulary_size 25000, seed 1."):
        assert setting in text
    assert "doesn't know the terms of the data." in text
    assert "somebody" not in text, "a bundle is given away: where files were is nobody's business"


def test_without_test_rows_it_claims_nothing() -> None:
    none = dict.fromkeys(("test_accuracy", "test_macro_f1"))
    text = model_card(RECIPES["tweets"], {**METRICS, **none}, MANIFEST)
    assert "| test accuracy | – |" in text
    assert "said NEGATIVE" not in text
    assert ModelCard(text).data.eval_results is None


def test_the_encoder_is_named() -> None:
    made_of = {"encoder": "owner/encoder", "encoder_revision": "a" * 40, "encoder_sha256": "ef" * 32}
    text = model_card(BERT_RECIPES["bert-tweets"], {**METRICS, **made_of}, MANIFEST)
    assert ModelCard(text).data.base_model == "owner/encoder"
    assert f"| encoder | owner/encoder, sha256 {'ef' * 32} |" in text.splitlines()
    assert "doesn't know the terms of the data and of the encoder." in text
    text = model_card(
        BERT_RECIPES["bert-tweets"],
        {**METRICS, **made_of, "encoder": "/home/me/tiny", "encoder_revision": None},
        MANIFEST,
    )
    assert "| encoder | tiny, sha256" in text
    assert "/home/me" not in text
