"""The synthetic corpus: its exact form, its repeatability, its counts, and that a bag of words can't solve it."""

from __future__ import annotations

import csv
import gzip
import html
import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from sentiment.data.synthetic import (
    BAD_REASONS,
    FRAMES,
    LIMIT_CHARS,
    POLAR,
    Tweet,
    tweets,
    write_archive,
    write_sentiment140,
)
from sentiment.errors import ConfigError, DataError
from sentiment.text import normalize

ROWS = 24_000


@pytest.fixture(scope="module")
def corpus() -> list[Tweet]:
    return list(tweets(ROWS))


def test_csv_has_the_form_of_sentiment140(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "train.csv"
    summary = write_sentiment140(path, rows=3_000)
    line = re.compile(
        r'"[04]","\d{10}","[A-Z][a-z]{2} (Apr|May|Jun) \d\d \d\d:\d\d:\d\d PDT 2009","NO_QUERY","\w+","[^"\n]+"\n',
        re.ASCII,
    )
    # Split at \n alone, as the real file is: str.splitlines would also cut at \x85.
    lines = [text + "\n" for text in path.read_bytes().decode("latin-1").split("\n")[:-1]]
    assert all(line.fullmatch(text) for text in lines)

    with path.open(encoding="latin-1", newline="") as file:
        rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {6}
    polarity = [row[0] for row in rows]
    assert polarity == ["0"] * summary.negatives + ["4"] * summary.positives
    assert len(rows) == summary.rows == 3_000
    assert len({row[1] for row in rows}) == 3_000
    halves = rows[: summary.negatives], rows[summary.negatives :]
    assert all(half == sorted(half, key=lambda row: int(row[1])) for half in halves)
    assert path.read_bytes() != path.read_bytes().decode("latin-1").encode("utf-8"), (
        "no letter tells the encodings apart"
    )
    assert [file.name for file in path.parent.iterdir()] == ["train.csv"], "the temporary file was left behind"


def test_csv_says_what_the_tweets_say(tmp_path: Path) -> None:
    summary = write_sentiment140(tmp_path / "train.csv", rows=500, seed=5, flip_share=0.2)
    with (tmp_path / "train.csv").open(encoding="latin-1", newline="") as file:
        written = [(int(row[0]) // 4, row[4], html.unescape(row[5])) for row in csv.reader(file)]
    made = list(tweets(500, 5, 0.2))
    assert written == sorted(((t.shown_label, t.user, t.text) for t in made), key=lambda row: row[0])
    assert summary.flipped == sum(t.label != t.shown_label for t in made)
    assert summary.best_possible_accuracy == 1 - summary.flipped / 500


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 9)):
        write_sentiment140(tmp_path / f"{name}.csv", rows=200, seed=seed)
        write_archive(tmp_path / f"{name}.jsonl.gz", rows=200, seed=seed)
    for kind in ("csv", "jsonl.gz"):
        a, b, c = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "abc")
        assert a == b != c


def test_texts_depend_on_the_seed_alone(corpus: list[Tweet]) -> None:
    assert [t.text for t in tweets(50, flip_share=0.3)] == [t.text for t in corpus[:50]]


@pytest.mark.parametrize("flip_share", [0.0, 0.05, 0.3])
def test_share_of_flipped_labels(flip_share: float) -> None:
    flipped = sum(t.label != t.shown_label for t in tweets(4_000, flip_share=flip_share))
    # Four standard deviations of a binomial draw: the seed is fixed, so this never flickers.
    assert abs(flipped - 4_000 * flip_share) <= 4 * math.sqrt(4_000 * flip_share * (1 - flip_share))


def test_labels_are_balanced(corpus: list[Tweet]) -> None:
    assert 0.48 < sum(t.label for t in corpus) / ROWS < 0.52
    for construct in FRAMES:
        labels = [t.label for t in corpus if t.construct == construct]
        assert 0.4 < sum(labels) / len(labels) < 0.6, construct


def test_duplicates_are_rare(corpus: list[Tweet]) -> None:
    # Normalized, because that is what splits go by.
    assert len({normalize(t.text).casefold() for t in corpus}) > 0.99 * ROWS


def test_lengths_are_those_of_tweets(corpus: list[Tweet]) -> None:
    words = [len(t.text.split()) for t in corpus]
    assert 11 < sum(words) / ROWS < 15
    assert min(words) <= 5
    assert max(words) >= 22
    assert max(len(t.text.rstrip()) for t in corpus) <= LIMIT_CHARS


@pytest.mark.parametrize(
    ("feature", "pattern"),
    [
        ("mention", r"@\w+"),
        ("link", r"http://\S+|www\.\S+"),
        ("hashtag", r"#[a-z]+"),
        ("ampersand", r"&amp;"),
        ("heart", r"&lt;3"),
        ("quotation", r"&quot;[\w &;]+&quot;"),
        ("emoji", r"&#1\d{5};"),
        ("latin-1 letter", r"[éûèñã£]"),
        ("elongation", r"(?i)\bsooo+\b|reallyyy+|nowww+"),
        ("emoticon", r":\)|:\(|:D|;\)|:P"),
        ("negation", r"(?i)\bnot\b|n't\b|\bnever\b"),
        ("apostrophe left out", r"(?i)\b(do|is|was|did)nt\b"),
        ("contrast", r"(?i)\bbut\b|\beven though\b|\bdespite\b"),
        ("comparison", r"(?i)\bthan\b|\binstead of\b"),
        ("expectation", r"(?i)\b(thought|expected|hoped)\b"),
    ],
)
def test_feature_is_present(sentiment140: str, feature: str, pattern: str) -> None:
    assert len(re.findall(pattern, sentiment140)) >= 20, feature


@pytest.fixture(scope="module")
def sentiment140(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("synthetic") / "train.csv"
    write_sentiment140(path, rows=6_000)
    return path.read_text(encoding="latin-1")


def test_no_phrase_stands_on_both_sides() -> None:
    negative, positive = (
        set(itertools.chain.from_iterable(sides[label] for sides in POLAR.values())) for label in (0, 1)
    )
    assert not negative & positive
    assert sum(share for share, _ in FRAMES.values()) == pytest.approx(1)


def test_bag_of_words_stays_far_below_the_bound(corpus: list[Tweet]) -> None:
    train, held_out = corpus[:12_000], corpus[12_000:16_000]
    accuracy = bag_of_words_accuracy(train, held_out)
    bound = sum(t.label == t.shown_label for t in held_out) / len(held_out)
    assert bound > 0.94
    assert 0.65 < accuracy < 0.82


def bag_of_words_accuracy(train: list[Tweet], held_out: list[Tweet]) -> float:
    """Accuracy of a logistic regression on word counts, every token included ("not" and "but" too)."""
    bags = [re.findall(r"<?\w[\w']*>?|[^\w\s]+", normalize(t.text).lower()) for t in [*train, *held_out]]
    index = {word: i for i, word in enumerate(sorted(set(itertools.chain.from_iterable(bags[: len(train)]))))}
    known = [[index[word] for word in bag if word in index] for bag in bags]
    labels = torch.tensor([float(t.shown_label) for t in [*train, *held_out]])
    model = nn.EmbeddingBag(len(index), 1, mode="sum")
    nn.init.zeros_(model.weight)

    def logits(rows: list[list[int]]) -> torch.Tensor:
        starts = torch.tensor([0, *map(len, rows)][:-1]).cumsum(0)
        scores: torch.Tensor = model(torch.tensor(list(itertools.chain.from_iterable(rows))), starts)
        return scores[:, 0]

    # Full batches and a second-order method: converged in a second or two, so the result is the model's and not a
    # schedule's.
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(logits(known[: len(train)]), labels[: len(train)])
        loss = loss + 1e-4 * model.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        right = (logits(known[len(train) :]) > 0) == labels[len(train) :].bool()
    return right.float().mean().item()


def reason_of(line: bytes) -> str | None:
    """Why an archive's line is bad, found without the writer's code; None for a good one."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "invalid_utf8"
    except json.JSONDecodeError:
        return "broken_json"
    if "text" not in record:
        return "text_missing"
    if record["text"] is None:
        return "text_null"
    if not isinstance(record["text"], str):
        return "text_not_string"
    return None if record["text"].strip() else "text_blank"


@pytest.mark.parametrize("name", ["archive.jsonl", "archive.jsonl.gz"])
def test_archive_counts_its_bad_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    summary = write_archive(path, rows=1_250)
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert data.endswith(b"\n")
    reasons = [reason_of(line) for line in data.split(b"\n")[:-1]]
    assert len(reasons) == summary.rows == 1_250
    assert Counter(reason for reason in reasons if reason) == summary.bad
    assert set(summary.bad) == set(BAD_REASONS)
    bad_places = [place for place, reason in enumerate(reasons) if reason]
    assert {after - before for before, after in itertools.pairwise(bad_places)} == {100}


def test_archive_is_an_api_s(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive.jsonl", rows=1_000)
    lines = (tmp_path / "archive.jsonl").read_bytes().split(b"\n")[:-1]
    records = [json.loads(line) for line in lines if reason_of(line) is None]
    assert {tuple(record) for record in records} == {("id_str", "created_at", "user", "text")}
    texts = " ".join(record["text"] for record in records)
    assert re.search("[\U0001f300-\U0001faff]", texts)
    assert "&amp;" in texts
    assert "&#" not in texts
    assert "&quot;" not in texts
    assert re.fullmatch(r"\w{3} \w{3} \d\d \d\d:\d\d:\d\d \+0000 \d{4}", records[0]["created_at"])


def test_short_archive_has_no_bad_row(tmp_path: Path) -> None:
    assert write_archive(tmp_path / "archive.jsonl", rows=50).bad == {}


def test_refuses_settings_out_of_range(tmp_path: Path) -> None:
    for rows, flip_share in ((0, 0.05), (-3, 0.05), (10, -0.01), (10, 0.5), (10, math.nan)):
        with pytest.raises(ConfigError, match=r"rows is|flip_share is"):
            tweets(rows, flip_share=flip_share)
        with pytest.raises(ConfigError, match=r"rows is|flip_share is"):
            write_sentiment140(tmp_path / "train.csv", rows, flip_share=flip_share)
    with pytest.raises(ConfigError, match="rows is 0"):
        write_archive(tmp_path / "archive.jsonl", rows=0)
    assert not list(tmp_path.iterdir())


def test_says_which_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.raises(DataError, match=r"can't write .*train\.csv"):
        write_sentiment140(tmp_path / "file" / "train.csv", rows=10)
