"""What a user would try first: TF-IDF of words and word pairs, and logistic regression. Models have to beat it.

Needs scikit-learn: the extra `baseline`.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

from sentiment.data.prepared import PreparedData
from sentiment.errors import ConfigError
from sentiment.schema import LABEL, TEST, TEXT, TRAIN, VALIDATION

NAME = "tf-idf"
# Inverse regularization of the logistic regression, chosen on the validation rows.
_STRENGTHS = (0.5, 1.0, 4.0, 16.0)


def check_installed() -> None:
    """Find out before hours of training.

    Raises:
        ConfigError: scikit-learn is missing.
    """
    if find_spec("sklearn") is None:
        raise ConfigError(
            "the baseline needs scikit-learn: pip install -e '.[baseline]' in the checkout, or --no-baseline"
        )


def measure(data: str) -> dict[str, Any]:
    """Fit the baseline on the training rows and measure it on the test rows. It is deterministic: there are no seeds.

    Args:
        data: Folder that `jobs/prepare.py` wrote; the same rows and the same normalized texts as the models get.

    Returns:
        test_accuracy, parameters, train_s (all strengths tried), rows_per_s of training and of testing.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    prepared = PreparedData(data)
    texts = {split: prepared.texts(split) for split in (TRAIN, VALIDATION, TEST)}
    started = time.monotonic()
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    train = vectorizer.fit_transform(texts[TRAIN][TEXT].to_pylist())
    labels, validation_labels = texts[TRAIN][LABEL].to_numpy(), texts[VALIDATION][LABEL].to_numpy()
    validation = vectorizer.transform(texts[VALIDATION][TEXT].to_pylist())
    models = [LogisticRegression(C=strength, max_iter=1000).fit(train, labels) for strength in _STRENGTHS]
    best = max(models, key=lambda model: float(model.score(validation, validation_labels)))
    train_s = time.monotonic() - started
    started = time.monotonic()
    accuracy = best.score(vectorizer.transform(texts[TEST][TEXT].to_pylist()), texts[TEST][LABEL].to_numpy())
    test_s = time.monotonic() - started
    return {
        "recipe": NAME,
        "strength": best.C,
        "parameters": train.shape[1] + 1,
        "validation_accuracy": float(best.score(validation, validation_labels)),
        "test_rows": texts[TEST].num_rows,
        "test_accuracy": float(accuracy),
        "train_s": train_s,
        "rows_per_s": round(texts[TRAIN].num_rows / train_s),
        "test_rows_per_s": round(texts[TEST].num_rows / test_s),
    }
