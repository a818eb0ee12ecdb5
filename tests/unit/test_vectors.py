"""Near words against plain numpy, the known figures of GloVe 50d, rows for a model's vocabulary, the bias probe."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sentiment.errors import ConfigError, DataError
from sentiment.vectors.loading import load_vectors
from sentiment.vectors.space import Metric, PretrainedVectors, bias_probe

GLOVE = Path(__file__).parents[3] / "shared/data/glove/glove.6B.50d.10k.txt"


def small(**rows: list[float]) -> PretrainedVectors:
    return PretrainedVectors("small", list(rows), torch.tensor(list(rows.values())))


@pytest.fixture(scope="module")
def random_vectors() -> PretrainedVectors:
    matrix_WE = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    matrix_WE *= torch.linspace(0.1, 5, 500)[:, None]  # lengths differ, so that the two metrics do
    matrix_WE[7] = 0
    return PretrainedVectors("random", [f"w{row}" for row in range(500)], matrix_WE)


@pytest.fixture(scope="module")
def glove() -> PretrainedVectors:
    if not GLOVE.exists():
        pytest.skip(f"needs {GLOVE}")
    return load_vectors(str(GLOVE))


def test_words_are_looked_up_as_given_and_then_in_lower_case() -> None:
    vectors = small(cat=[1.0, 0.0], US=[0.0, 2.0], us=[3.0, 0.0])
    assert (len(vectors), vectors.dim) == (3, 2)
    assert vectors.vector("Cat").tolist() == [1.0, 0.0]
    assert vectors.vector("US").tolist() == [0.0, 2.0]
    assert vectors.vector("Us").tolist() == [3.0, 0.0]
    assert "CAT" in vectors
    assert "dog" not in vectors
    assert 3 not in vectors


def test_a_vector_is_a_copy() -> None:
    vectors = small(cat=[1.0, 0.0])
    vectors.vector("cat").zero_()
    assert vectors.vector("cat").tolist() == [1.0, 0.0]


def test_unknown_word_names_near_ones() -> None:
    vectors = small(doctor=[1.0], dog=[1.0])
    with pytest.raises(DataError, match=r"no vector for the word 'docter' among the 2 words of small.*mean doctor\?"):
        vectors.vector("docter")
    with pytest.raises(DataError, match=r"'xxyyzz'.*more common word"):
        vectors.nearest("xxyyzz")


def test_vectors_survive_pickling(random_vectors: PretrainedVectors) -> None:
    copy = pickle.loads(pickle.dumps(random_vectors))
    assert copy.nearest("w3") == random_vectors.nearest("w3")


def test_similarity() -> None:
    vectors = small(east=[2.0, 0.0], north=[0.0, 1.0], west=[-1.0, 0.0], nowhere=[0.0, 0.0])
    same, across, back = (vectors.similarity("east", word) for word in ("east", "north", "west"))
    assert (same.cosine, same.distance) == (1.0, 0.0)
    assert (across.cosine, across.distance) == (0.0, pytest.approx(5**0.5))
    assert (back.cosine, back.distance) == (-1.0, 3.0)
    assert vectors.similarity("east", "nowhere").cosine == 0.0
    assert vectors.similarity("nowhere", "nowhere").cosine == 0.0


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
def test_nearest_agrees_with_plain_numpy(random_vectors: PretrainedVectors, metric: Metric) -> None:
    matrix_WE = random_vectors.matrix_WE.numpy().astype(np.float64)
    for row in (0, 3, 100, 499):
        query_E = matrix_WE[row]
        distance_W = np.sqrt(((matrix_WE - query_E) ** 2).sum(axis=1))
        lengths_W = np.sqrt((matrix_WE**2).sum(axis=1)) * np.sqrt((query_E**2).sum())
        cosine_W = np.divide(matrix_WE @ query_E, lengths_W, out=np.zeros(500), where=lengths_W > 0)
        order = np.argsort(-cosine_W if metric == "cosine" else distance_W)
        expected = [other for other in order if other != row][:20]
        found = random_vectors.nearest(f"w{row}", 20, metric)
        assert [neighbor.word for neighbor in found] == [f"w{other}" for other in expected]
        np.testing.assert_allclose([neighbor.cosine for neighbor in found], cosine_W[expected], atol=1e-5)
        np.testing.assert_allclose([neighbor.distance for neighbor in found], distance_W[expected], rtol=1e-5)


def test_nearest_to_a_point_keeps_the_word_that_lies_there(random_vectors: PretrainedVectors) -> None:
    first = random_vectors.nearest(random_vectors.vector("w42").double(), 1)[0]
    assert first.word == "w42"
    assert first.cosine <= 1.0
    assert first.distance == 0.0


def test_nearest_leaves_out_what_it_is_told_and_returns_what_there_is() -> None:
    vectors = small(a=[1.0, 0.0], b=[0.9, 0.1], c=[0.0, 1.0], d=[-1.0, 0.0])
    assert [neighbor.word for neighbor in vectors.nearest("A", 99)] == ["b", "c", "d"]
    assert [neighbor.word for neighbor in vectors.nearest("a", 99, leave_out=("B", "unheard"))] == ["c", "d"]
    assert vectors.nearest("a", leave_out=("b", "c", "d")) == []


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
def test_zero_vectors_give_no_nan(metric: Metric) -> None:
    vectors = small(zero=[0.0, 0.0], east=[1.0, 0.0], west=[-1.0, 0.0])
    for query in ("zero", "east", torch.zeros(2)):
        assert all(abs(n.cosine) <= 1 and n.distance >= 0 for n in vectors.nearest(query, metric=metric))
    assert [n.word for n in vectors.nearest("east", metric=metric)] == ["zero", "west"]
    assert [n.word for n in vectors.midpoint("east", "west", metric=metric)] == ["zero"]


def test_distances_of_nearly_equal_vectors_do_not_cancel() -> None:
    vectors = small(a=[1000.0, 1000.0], b=[1000.0, 1000.01], c=[1000.0, 1000.02])
    found = vectors.nearest("a", metric="euclid")
    assert [n.word for n in found] == ["b", "c"]
    assert [n.distance for n in found] == pytest.approx([0.01, 0.02], rel=0.02)


def test_unknown_metric() -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'cosin'.*did you mean cosine"):
        small(a=[1.0]).nearest("a", metric="cosin")  # type: ignore[arg-type]


def test_analogy_and_midpoint_leave_their_words_out() -> None:
    vectors = small(man=[1.0, 0.0], woman=[1.0, 1.0], king=[3.0, 0.0], queen=[3.0, 1.1], cat=[-1.0, 2.0])
    assert [n.word for n in vectors.analogy("king", "man", "woman", metric="euclid")] == ["queen", "cat"]
    assert vectors.analogy("king", "man", "woman", 1)[0].distance == pytest.approx(0.1)
    between = vectors.midpoint("Man", "king", 1, "euclid")[0]
    assert (between.word, between.distance) == ("woman", pytest.approx(2**0.5))


def test_table_has_a_row_for_each_token() -> None:
    vectors = small(good=[1.0, 2.0], bad=[3.0, 4.0])
    tokens = ["<unk>", "<pad>", "bad", "meh", "Good", "hm"]
    table = vectors.table(tokens, std=0.5, seed=1)
    assert table.matrix_VE.dtype == np.float32
    assert table.matrix_VE.shape == (6, 2)
    assert table.is_known_V.tolist() == [False, False, True, False, True, False]
    assert table.matrix_VE[[0, 1, 2, 4]].tolist() == [[0, 0], [0, 0], [3, 4], [1, 2]]
    assert np.all(table.matrix_VE[[3, 5]] != 0)
    again, other = vectors.table(tokens, std=0.5, seed=1), vectors.table(tokens, std=0.5, seed=2)
    np.testing.assert_array_equal(again.matrix_VE, table.matrix_VE)
    assert np.all(other.matrix_VE[[3, 5]] != table.matrix_VE[[3, 5]])


def test_table_draws_words_without_vector_from_the_normal_distribution() -> None:
    vectors = PretrainedVectors("none", ["x"], torch.ones(1, 100))
    drawn = vectors.table([f"w{i}" for i in range(500)], std=0.3, seed=1).matrix_VE
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.std() == pytest.approx(0.3, rel=0.02)
    assert not vectors.table(["a", "b"], std=0, seed=1).matrix_VE.any()


def test_table_rows_of_one_word_do_not_depend_on_the_others_vectors() -> None:
    tokens = ["a", "b", "c"]
    one = small(a=[1.0, 2.0]).table(tokens, std=1, seed=1)
    two = small(a=[1.0, 2.0], b=[3.0, 4.0]).table(tokens, std=1, seed=1)
    np.testing.assert_array_equal(one.matrix_VE[2], two.matrix_VE[2])


def test_table_special_tokens_are_zero_even_if_they_have_vectors() -> None:
    vectors = small(**{"<unk>": [1.0], "[pad]": [2.0]})
    assert vectors.table(["<unk>", "[pad]"], std=1, seed=1).matrix_VE.tolist() == [[0.0], [2.0]]
    table = vectors.table(["<unk>", "[pad]"], std=1, seed=1, special=["[pad]"])
    assert table.matrix_VE.tolist() == [[1.0], [0.0]]
    assert table.is_known_V.tolist() == [True, False]


def test_wider_table_keeps_the_vectors_in_its_first_columns() -> None:
    vectors = PretrainedVectors("v", [f"w{i}" for i in range(400)], torch.arange(800.0).reshape(400, 2))
    table = vectors.table(["<unk>", "<pad>", *vectors.words, "meh"], std=0.3, seed=1, width=20).matrix_VE
    assert table.shape == (403, 20)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[2:402, :2], vectors.matrix_WE.numpy())
    # 7,200 draws: their deviation is off by 0.8 % or so.
    assert table[2:402, 2:].std() == pytest.approx(0.3, rel=0.03)
    assert table[2:402, 2:].mean() == pytest.approx(0, abs=0.02)
    assert np.all(table[402] != 0)
    assert not table[:2].any()
    np.testing.assert_array_equal(
        table, vectors.table(["<unk>", "<pad>", *vectors.words, "meh"], std=0.3, seed=1, width=20).matrix_VE
    )
    still = vectors.table(["w3", "meh"], std=0, seed=1, width=3).matrix_VE
    assert still.tolist() == [[6, 7, 0], [0, 0, 0]]


def test_table_scales_the_vectors_and_nothing_else() -> None:
    vectors = small(good=[1.0, 2.0], bad=[3.0, 4.0])
    tokens = ["<unk>", "good", "bad", "meh"]
    plain = vectors.table(tokens, std=0.5, seed=1, width=3).matrix_VE
    halved = vectors.table(tokens, std=0.5, seed=1, width=3, scale=0.5).matrix_VE
    assert halved[1:3, :2].tolist() == [[0.5, 1], [1.5, 2]]
    halved[1:3, :2] *= 2
    np.testing.assert_array_equal(halved, plain)


def test_table_is_never_narrower_than_the_vectors() -> None:
    vectors = small(a=[1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="small has vectors of 3 numbers, a width of 2 would cut them"):
        vectors.table(["a"], std=1, seed=1, width=2)
    assert vectors.table(["a"], std=1, seed=1, width=3).matrix_VE.tolist() == [[1, 2, 3]]


def test_table_of_no_tokens() -> None:
    assert small(a=[1.0, 2.0]).table([], std=1, seed=1).matrix_VE.shape == (0, 2)


def test_bias_probe_moves_words_along_the_pair() -> None:
    vectors = small(man=[1.0, 0.0], woman=[0.0, 1.0], nurse=[1.0, 3.0], doctor=[2.0, 2.0], chef=[3.0, 1.0])
    probe = bias_probe(vectors, ("doctor", "pilot", "nurse"), count=1)
    assert probe.pair == ("man", "woman")
    assert probe.missing == ["pilot"]
    doctor, nurse = probe.rows
    assert (doctor.word, doctor.lean) == ("doctor", pytest.approx(0, abs=1e-6))
    assert (doctor.toward_second[0].word, doctor.toward_second[0].distance) == ("nurse", 0.0)
    assert (doctor.toward_first[0].word, doctor.toward_first[0].distance) == ("chef", 0.0)
    assert nurse.lean == pytest.approx(2 / 10**0.5)
    assert "nurse" not in [n.word for n in bias_probe(vectors, ["nurse"]).rows[0].toward_second]
    assert "woman" in [n.word for n in bias_probe(vectors, ["nurse"]).rows[0].toward_second]


def test_bias_probe_needs_its_pair() -> None:
    with pytest.raises(DataError, match="'woman'"):
        bias_probe(small(man=[1.0], doctor=[1.0]))


def test_the_known_figures_of_glove(glove: PretrainedVectors) -> None:
    assert (len(glove), glove.dim) == (10_000, 50)
    cat_dog = glove.similarity("cat", "dog")
    assert cat_dog.distance == pytest.approx(1.8846, abs=5e-5)
    assert cat_dog.cosine == pytest.approx(0.9218, abs=5e-5)
    nearest = glove.nearest("nurse", 1, "euclid")[0]
    assert (nearest.word, round(nearest.distance, 3)) == ("doctor", 3.127)
    assert glove.nearest("cat", 1)[0].word == "dog"
    assert glove.analogy("king", "man", "woman", 1)[0].word == "queen"


def test_bias_probe_finds_the_stereotypes_of_glove(glove: PretrainedVectors) -> None:
    rows = {row.word: row for row in bias_probe(glove, ["doctor", "nurse", "engineer"]).rows}
    assert rows["doctor"].toward_second[0].word == "nurse"
    assert rows["nurse"].toward_first[0].word == "doctor"
    assert rows["nurse"].lean > 0.1
    assert rows["engineer"].lean < 0
