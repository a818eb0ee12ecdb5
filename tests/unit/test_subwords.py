"""N-grams that help words' vectors: what they add, that folding them in changes nothing, and that all agree on them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sentiment.models.bag import BagClassifier
from sentiment.models.layers import SubwordEmbedding, WordEmbedding
from sentiment.models.rnn import RecurrentClassifier

WIDTH = 8
UNK, PAD = 0, 1
# "!" has one n-gram, which no other has; it is the last, so its n-grams end where the table ends.
TOKENS = [
    *("<unk>", "<pad>", ":)", "love", "loved", "loooved", "lover", "loves", "hated", "hates", "hater", "rated"),
    *("lovers", "loverly", "day", "days", "daylight", "<unk", "<unks>", "unk", "a", "aaaaaaa", "aaaa", "haaaate"),
    *("naïve", "naïf", "!"),
]
ALL = torch.arange(len(TOKENS))


def embedding(tokens: list[str] = TOKENS, seed: int = 0, std: float = 0.5) -> SubwordEmbedding:
    torch.manual_seed(seed)
    words = WordEmbedding(len(tokens), WIDTH, pad_id=PAD, std=1.0, is_frozen=False)
    return SubwordEmbedding(words, tokens, std, (UNK, PAD))


def ngrams(word: str) -> set[str]:
    """By the definition: all runs of 3 to 5 characters of the word in brackets."""
    marked = f"<{word}>"
    runs = {marked[start:end] for start, end in itertools.combinations(range(len(marked) + 1), 2)}
    return {run for run in runs if 3 <= len(run) <= 5}


def expected_ngrams() -> list[set[str]]:
    """Of each token."""
    return [set() if number in (UNK, PAD) else ngrams(token) for number, token in enumerate(TOKENS)]


def rows_of(subwords: SubwordEmbedding, number: int) -> dict[int, float]:
    """N-gram rows that a word's vector is made of, and each one's part in it, read off the gradient."""
    (gradient,) = torch.autograd.grad(subwords(torch.tensor([number]))[0, 0], [subwords.ngrams.weight])
    return {row: gradient[row, 0].item() for row in gradient[:, 0].nonzero().flatten().tolist()}


def test_each_words_vector_is_its_own_plus_the_mean_of_its_ngrams() -> None:
    """Which row an n-gram has is not said, but words that share n-grams must share as many rows."""
    subwords, expected = embedding(), expected_ngrams()
    vectors_VE, weight_GE = subwords(ALL).detach(), subwords.ngrams.weight.detach()
    rows = [rows_of(subwords, number) for number in range(len(TOKENS))]
    for number, token in enumerate(TOKENS):
        parts = rows[number]
        assert len(parts) == len(expected[number]), token
        assert all(part == pytest.approx(1 / len(parts)) for part in parts.values()), token
        mean_E = weight_GE[list(parts)].mean(dim=0) if parts else torch.zeros(WIDTH)
        torch.testing.assert_close(vectors_VE[number], subwords.words.weight[number] + mean_E, atol=1e-6, rtol=0)
    for one, other in itertools.combinations(range(len(TOKENS)), 2):
        assert len(rows[one].keys() & rows[other].keys()) == len(expected[one] & expected[other]), (one, other)
    assert len(weight_GE) == len(set[str]().union(*expected))
    assert {"loved", "lover", "hated"} <= {token for token, parts in zip(TOKENS, rows, strict=True) if len(parts) > 2}


def test_one_word_by_hand() -> None:
    """The n-grams of "a" and "!" are "<a>" and "<!>"; numbered in the order of their code points."""
    subwords = embedding(["<unk>", "<pad>", "a", "!"])
    assert subwords.ngrams.weight.shape == (2, WIDTH)
    torch.testing.assert_close(subwords(ALL[2:4]), subwords.words.weight[2:4] + subwords.ngrams.weight[[1, 0]])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_batches_of_any_shape_and_order(dtype: torch.dtype) -> None:
    subwords = embedding()
    vectors_VE = subwords(ALL)
    ids_BT = torch.randint(len(TOKENS), (7, 30), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(subwords(ids_BT.to(dtype)), vectors_VE[ids_BT], atol=1e-6, rtol=0)


def test_tokens_that_are_no_words_have_their_own_vector() -> None:
    subwords = embedding()
    alone = torch.tensor([[UNK, PAD]])
    vectors = subwords(alone)
    torch.testing.assert_close(vectors, subwords.words(alone))
    torch.autograd.backward(vectors.sum())
    assert subwords.ngrams.weight.grad is not None
    assert not subwords.ngrams.weight.grad.any()


def test_folded_table_gives_the_same_vectors() -> None:
    subwords = embedding()
    before_VE = subwords(ALL).detach()
    specials = subwords.words.weight[[UNK, PAD]].detach().clone()
    table = subwords.folded()
    assert type(table) is WordEmbedding
    torch.testing.assert_close(table(ALL), before_VE, atol=1e-6, rtol=0)
    assert torch.equal(table.weight[[UNK, PAD]], specials)
    assert not table.weight[PAD].any()
    assert table.weight[UNK].any()


@pytest.mark.parametrize("kind", ["rnn", "bag"])
def test_a_folded_model_scores_the_same_and_is_a_plain_one(kind: str) -> None:
    """Its weights load into a fresh model that has never heard of n-grams, which is what a bundle does."""

    def fresh(seed: int) -> RecurrentClassifier | BagClassifier:
        torch.manual_seed(seed)
        made = RecurrentClassifier(len(TOKENS), WIDTH, 8) if kind == "rnn" else BagClassifier(len(TOKENS), WIDTH, [5])
        return made.eval()

    model, subwords = fresh(0), embedding(std=2.0)
    model.embedding = subwords
    ids_BT = torch.randint(2, len(TOKENS), (6, 12), generator=torch.Generator().manual_seed(1))
    lengths_B = torch.tensor([12, 5, 1, 7, 12, 3])
    ids_BT[torch.arange(12)[None] >= lengths_B[:, None]] = PAD
    before_B = model(ids_BT, lengths_B)
    model.embedding = subwords.folded()
    torch.testing.assert_close(model(ids_BT, lengths_B), before_B, atol=1e-5, rtol=1e-6)
    plain = fresh(1)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(ids_BT, lengths_B), before_B, atol=1e-5, rtol=1e-6)


def test_training_reaches_words_and_ngrams() -> None:
    """One step on "loved" moves "loves", which it shares n-grams with, and leaves "day", padding and "!" alone."""
    subwords = embedding()
    before_VE = subwords(ALL).detach()
    optimizer = torch.optim.SGD(subwords.parameters(), lr=0.1)
    torch.autograd.backward(subwords(torch.tensor([TOKENS.index("loved"), PAD])).sum())
    optimizer.step()
    moved = (subwords(ALL).detach() - before_VE).abs().amax(dim=1)
    of = dict(zip(TOKENS, moved.tolist(), strict=True))
    assert of["loved"] > of["loves"] > 0.001
    assert (of["day"], of["!"], of["<pad>"], of["<unk>"]) == (0, 0, 0, 0)


def test_a_fresh_one_goes_on_from_a_checkpoint() -> None:
    """Numbers of n-grams are not in it: two embeddings of the same tokens must come to the same."""
    one, other = embedding(seed=0), embedding(seed=1)
    assert one.state_dict().keys() == {"words.weight", "ngrams.weight"}
    assert not torch.equal(one(ALL), other(ALL))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(ALL), other(ALL))


def numbered() -> list[float]:
    """What each token's vector would be if an n-gram's vector were its number."""
    subwords = embedding()
    with torch.no_grad():
        subwords.words.weight.zero_()
        subwords.ngrams.weight.copy_(torch.arange(len(subwords.ngrams.weight))[:, None].expand(-1, WIDTH))
    return [vector[0] for vector in subwords(ALL).tolist()]


def test_every_process_numbers_ngrams_alike() -> None:
    """The hash of strings differs from process to process, and with it the order of sets."""
    here = numbered()
    assert len(set(here)) > 5, "words hardly differ in their n-grams: the test would show nothing"
    done = subprocess.run(
        [sys.executable, "-c", "import json, test_subwords as t; print(json.dumps(t.numbered()))"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == pytest.approx(here)
