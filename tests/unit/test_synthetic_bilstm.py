"""The other half of the embedded corpus' point: what a bag of words can't solve, our own pipeline does.

`test_synthetic.py` shows that a bag of words stays below 82 %; the bound is about 95 %.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from sentiment.batching import Examples, LengthBucketedBatches
from sentiment.data.synthetic import Tweet, tweets
from sentiment.models.rnn import RecurrentClassifier
from sentiment.text import normalize
from sentiment.tokenizers import WordTokenizer
from sentiment.training.loop import fit
from sentiment.training.recipes import OptimizerConfig

TRAIN_ROWS, HELD_OUT_ROWS = 12_000, 4_000


def encoded(some: list[Tweet], tokenizer: WordTokenizer) -> Examples:
    rows = tokenizer.encode([normalize(tweet.text) for tweet in some])
    return Examples(
        ids=np.fromiter(itertools.chain.from_iterable(rows), np.int32),
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        labels_N=np.array([tweet.shown_label for tweet in some], np.int32),
    )


def test_a_small_bilstm_comes_within_three_points_of_the_bound() -> None:
    """Measured 0.6 to 1.1 points below the bound over seeds 1 to 3, in 3 s on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    corpus = list(tweets(TRAIN_ROWS + HELD_OUT_ROWS))
    train, held_out = corpus[:TRAIN_ROWS], corpus[TRAIN_ROWS:]
    tokenizer = WordTokenizer.train((normalize(tweet.text) for tweet in train), min_frequency=2)
    torch.manual_seed(1)
    final = fit(
        RecurrentClassifier(tokenizer.vocabulary_size, 50, 48, 1, True, 0.1, embedding_std=0.3),
        LengthBucketedBatches(encoded(train, tokenizer), batch_size=64, pad_id=1, max_length=64),
        LengthBucketedBatches(encoded(held_out, tokenizer), batch_size=256, pad_id=1, max_length=64, shuffle=False),
        OptimizerConfig(epochs=3, learning_rate=1e-2, schedule="one-cycle"),
        seed=1,
        device=torch.device("cpu"),
        precision="float32",
    )
    torch.set_num_threads(threads)
    accuracy = final.progress.history[-1]["validation_accuracy"]
    bound = sum(tweet.label == tweet.shown_label for tweet in held_out) / HELD_OUT_ROWS
    assert bound - 0.03 <= accuracy
    # Above the bound by more than the held-out rows' chance (0.3 points, three times): labels leak into the texts.
    assert accuracy <= bound + 0.01
