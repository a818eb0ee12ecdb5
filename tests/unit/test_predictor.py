"""The one inference path: a text's score doesn't hang on its company, and no text from a stranger stops it."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import BF16, relative_error

from sentiment.bundle import Bundle, write_bundle
from sentiment.errors import BundleError
from sentiment.models.config import Cell
from sentiment.predictor import BATCH_SIZE, TOKEN_BUDGET, Predictor, labels_and_scores

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., Bundle]
WORDS = [
    "i",
    "love",
    "hate",
    "this",
    "phone",
    "is",
    "great",
    "awful",
    "not",
    "good",
    "but",
    "bad",
    "end",
    ":)",
    ":(",
    "!",
]


def load(make_bundle: Make, **shape: int) -> Predictor:
    return Predictor.load(make_bundle(**shape).path, use_gpu=False, precision="float32")


def texts(number: int, longest: int = 40, seed: int = 0) -> list[str]:
    words = random.Random(seed)
    return [" ".join(words.choices(WORDS, k=words.randint(1, longest))) for _ in range(number)]


def p_of(predictor: Predictor, some: list[str]) -> list[float]:
    return [prediction.p_positive for prediction in predictor.predict(some)]


def test_the_same_alone_in_any_batch_and_order(make_bundle: Make) -> None:
    """1e-5, as the module promises: float32 products in other shapes round otherwise (6e-8 seen)."""
    predictor = load(make_bundle)
    some = texts(600)
    together = p_of(predictor, some)
    assert max(together) - min(together) > 0.1, "the model says the same of everything: the test would show nothing"
    order = random.Random(1).sample(range(600), 600)
    assert p_of(predictor, [some[i] for i in order]) == pytest.approx([together[i] for i in order], abs=1e-5)
    for i in range(0, 600, 40):
        assert p_of(predictor, [some[i]]) == pytest.approx([together[i]], abs=1e-5)
        assert p_of(predictor, some[i : i + 7]) == pytest.approx(together[i : i + 7], abs=1e-5)


def test_dropout_is_off_and_two_loads_are_one(make_bundle: Make) -> None:
    first, again = load(make_bundle), load(make_bundle)
    some = texts(50)
    assert p_of(first, some) == p_of(first, some) == p_of(again, some)
    assert first.model_id == again.model_id


def test_nothing_asked_nothing_said(make_bundle: Make) -> None:
    predictor = load(make_bundle)
    assert predictor.predict([]) == []
    assert predictor.forward([]).shape == (0,)


ODD = [
    "",
    " \t\n",
    "\0",
    "a\0b",
    "\ud83d",  # half of a surrogate pair
    "\x01\x02\x7f",
    "\U0001f600" * 300,
    "\u200d\u200b\ufeff",
    "e" + "\u0301" * 5000,
    "&amp;" * 1000,
    "<pad> <unk> <url>",
    "🏳️‍🌈 👨‍👩‍👧‍👦",
    "مرحبا بالعالم",
    "x" * 1_000_000,
    "good " * 200_000,
]


def test_odd_texts_get_an_answer_and_leave_the_others_alone(make_bundle: Make) -> None:
    predictor = load(make_bundle)
    some = texts(5)
    predictions = predictor.predict([*ODD, *some])
    assert len(predictions) == len(ODD) + 5
    nothing = [text for text, prediction in zip(ODD, predictions, strict=False) if prediction is None]
    assert nothing == ["", " \t\n", "\0", "\ud83d", "\x01\x02\x7f", "\u200d\u200b\ufeff"]
    assert all(0 <= prediction.p_positive <= 1 for prediction in predictions if prediction)
    assert [prediction.p_positive for prediction in predictions[-5:]] == pytest.approx(p_of(predictor, some), abs=1e-5)


def test_texts_are_cut_at_the_models_length(make_bundle: Make) -> None:
    predictor = load(make_bundle, max_length=8)
    assert {len(ids) for ids in predictor.encode(["good " * 100, "good " * 8])} == {8}
    assert p_of(predictor, ["good " * 8 + "bad " * 8]) == pytest.approx(p_of(predictor, ["good " * 8]), abs=1e-5)


def test_texts_are_normalized_as_in_training(make_bundle: Make) -> None:
    predictor = load(make_bundle)
    some = ["I DON'T care", "sooooo great", "see http://a.b/c @someone", "this &amp; that"]
    same = ["i don’t care", "sooooooooo great", "see https://other.org @another", "this &amp;amp; that"]
    assert p_of(predictor, some) == pytest.approx(p_of(predictor, same), abs=1e-5)


def test_label_and_score_follow_from_the_probability(make_bundle: Make) -> None:
    seen = set()
    for prediction in load(make_bundle).predict(texts(300)):
        likelier = max(prediction.p_positive, 1 - prediction.p_positive)
        assert prediction.label == ("POSITIVE" if prediction.p_positive >= 0.5 else "NEGATIVE")
        # 1 - p is rounded to float32.
        assert prediction.score == pytest.approx(likelier, abs=1e-7)
        seen.add(prediction.label)
    assert seen == {"NEGATIVE", "POSITIVE"}


def test_a_tie_is_positive() -> None:
    labels, scores = labels_and_scores(np.array([0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0, 1], np.float32))
    assert labels == ["POSITIVE", "NEGATIVE", "NEGATIVE", "POSITIVE"]
    assert scores.dtype == np.float32
    assert scores.min() >= 0.5


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_bf16_stays_near_float32(make_bundle: Make, cell: Cell) -> None:
    path = make_bundle(cell=cell).path
    exact, rough = (Predictor.load(path, use_gpu=False, precision=precision) for precision in ("float32", "bf16"))
    ids = exact.encode(texts(200))
    assert 0 < relative_error(rough.logits(ids), exact.logits(ids)) < BF16


def test_batches_are_large_where_texts_are_short_and_bounded_where_they_are_long(make_bundle: Make) -> None:
    predictor = load(make_bundle, max_length=2000)
    shapes: list[torch.Size] = []
    predictor._model.register_forward_pre_hook(lambda _, arguments: shapes.append(arguments[0].shape))
    mixed = [*texts(3 * BATCH_SIZE, longest=10), *("good " * length for length in range(100, 2400, 100))]
    random.Random(2).shuffle(mixed)
    assert len(predictor.predict(mixed)) == len(mixed)
    assert len(mixed) <= sum(shape[0] for shape in shapes) <= len(mixed) + 3 * len(shapes)
    assert max(shape.numel() for shape in shapes) <= TOKEN_BUDGET
    # Short texts aren't padded to a long one's length, and travel in full batches.
    assert sum(shape[0] == BATCH_SIZE and shape[1] <= 20 for shape in shapes) >= 2
    assert len(shapes) < 16


def test_threads_may_share_it(make_bundle: Make) -> None:
    predictor = load(make_bundle)
    parts = [texts(40, seed=seed) for seed in range(12)]
    alone = [p_of(predictor, part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda part: p_of(predictor, part), parts)) == alone


def test_a_tampered_bundle_is_not_loaded(make_bundle: Make) -> None:
    path = make_bundle().path
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"model\.safetensors was altered"):
        Predictor.load(path)


def test_weights_of_another_shape_are_refused(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    smaller = bundle.config.model.model_copy(update={"hidden_dim": 8})
    shallower = bundle.config.model.model_copy(update={"num_layers": 1})
    for name, shape in (("smaller", smaller), ("shallower", shallower)):
        write_bundle(
            tmp_path / name,
            config=bundle.config.model_copy(update={"model": shape}),
            weights=bundle.weights(),
            tokenizer=bundle.tokenizer(),
            metrics={},
            card="",
        )
        with pytest.raises(BundleError, match=rf"{name}: weights don't fit config\.json: .*rnn\.") as caught:
            Predictor.load(tmp_path / name)
        assert "\n" not in str(caught.value)
