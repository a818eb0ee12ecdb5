"""From rows as read to rows to train on: nothing lost, nothing twice, and no text on both sides of a split."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sentiment.data.prepare import HASH, OFFICIAL, Survey, clean, encode
from sentiment.data.schema_inference import RAW_LABEL
from sentiment.labels import NEUTRAL
from sentiment.schema import (
    DESTINATION,
    IDS,
    LABEL,
    LINE,
    RAW,
    RAW_LIMIT,
    REASON,
    REJECTED,
    ROW_ID,
    SOURCE_FILE,
    SOURCE_ROW,
    SPLITS,
    TEST,
    TEXT,
)
from sentiment.text import NO_TEXT
from sentiment.tokenizers import WordTokenizer

FILE, OTHER = "tweets.csv", "more.csv"
NUMBERS = {FILE: 0, OTHER: 1}
SHARES = (0.1, 0.2)
Row = tuple[str | None, int | None, str | None]


def block(rows: Sequence[Row], file: str = FILE, first: int = 0) -> pa.Table:
    """Rows (text, label, reason) as they are read."""
    places = range(first, first + len(rows))
    return pa.table(
        {
            TEXT: pa.array([text for text, _, _ in rows], pa.string()),
            RAW_LABEL: pa.array([label for _, label, _ in rows], pa.int8()),
            REASON: pa.array([reason for _, _, reason in rows], pa.string()),
            RAW: pa.array([reason and "as it stood" for _, _, reason in rows], pa.string()),
            SOURCE_FILE: pa.array([file] * len(rows), pa.string()),
            SOURCE_ROW: pa.array(places, pa.int64()),
            LINE: pa.array([place + 1 for place in places], pa.int64()),
        }
    )


def good(texts: Sequence[str], label: int = 1) -> list[Row]:
    return [(text, label, None) for text in texts]


def cleaned(
    rows: Sequence[Row], *, file: str = FILE, first: int = 0, official: bool = False, seed: int = 1
) -> pa.Table:
    return clean(block(rows, file, first), [TEXT], NUMBERS, None if official else SHARES, seed)


def survey(*tables: pa.Table) -> Survey:
    """What the driver gathers, as `sentiment.data.prepare` does."""
    table = pa.concat_tables(tables)
    usable = table.filter(pc.is_null(table[REASON]))
    return Survey(
        row_ids=usable[ROW_ID].to_numpy(),
        labels=usable[LABEL].to_numpy().astype(np.int64),
        hashes=usable[HASH].to_numpy(),
        split_of_row=np.array([SPLITS.index(split) for split in usable[DESTINATION].to_pylist()], np.int64),
        is_official=usable[OFFICIAL].to_numpy(zero_copy_only=False),
        reasons=Counter(table[REASON].drop_null().to_pylist()),
    )


def many(number: int) -> list[str]:
    words = random.Random(0)
    return [" ".join(words.choices("abcdefghijklmnopqrstuvwxyz", k=12)) for _ in range(number)]


def where(*tables: pa.Table) -> dict[str, str]:
    """Text → split."""
    return {row[TEXT]: row[DESTINATION] for table in tables for row in table.to_pylist()}


def test_texts_are_normalized_and_row_ids_say_where_from() -> None:
    table = cleaned([("I &lt;3 it,   @you", 1, None), ("soooo bad", 0, None)], file=OTHER, first=41)
    assert table[TEXT].to_pylist() == ["I <3 it, <user>", "soo bad"]
    assert table[LABEL].to_pylist() == [1, 0]
    assert table[ROW_ID].to_pylist() == [(1 << 40) + 41, (1 << 40) + 42]
    assert table[SOURCE_FILE].to_pylist() == [OTHER, OTHER]
    assert table[LINE].to_pylist() == [42, 43]


def test_splits_follow_from_the_text_alone() -> None:
    """Not from the order of the rows, the block they are in, or what else is there."""
    texts = many(500)
    whole = where(cleaned(good(texts)))
    shuffled = random.Random(1).sample(texts, len(texts))
    assert where(cleaned(good(shuffled), file=OTHER, first=9)) == whole
    parts = [cleaned(good(texts[start : start + 37]), first=start) for start in range(0, 500, 37)]
    assert where(*parts) == whole
    assert where(cleaned(good(texts[:3]))).items() <= whole.items()
    assert where(cleaned(good(texts), seed=2)) != whole


def test_splits_have_their_shares() -> None:
    """Four standard deviations of a binomial draw; the texts are fixed, so this never flickers."""
    counts = Counter(cleaned(good(many(6000)))[DESTINATION].to_pylist())
    assert sum(counts.values()) == 6000
    for split, share in zip(SPLITS, (0.7, *SHARES), strict=True):
        assert abs(counts[split] - 6000 * share) < 4 * (6000 * share * (1 - share)) ** 0.5


def test_spellings_of_one_text_fall_on_one_side() -> None:
    for text in many(40):
        same = [text, f"  {text}\t", text.upper(), text.replace(" ", "  ")]
        table = cleaned(good(same))
        assert len(set(table[HASH].to_pylist())) == 1
        assert len(set(table[DESTINATION].to_pylist())) == 1


@pytest.mark.parametrize("text", ["", " \t\n ", "\0", "\x01\x7f\x9f", "\u200b\ufeff", "#", "<br>"])
def test_text_of_nothing_readable_is_rejected(text: str) -> None:
    table = cleaned([("fine", 1, None), (text, 1, None)])
    assert table[DESTINATION].to_pylist()[1] == REJECTED
    assert table[REASON].to_pylist() == [None, NO_TEXT]
    assert table[HASH].to_pylist()[1] is None
    assert table[RAW].to_pylist()[0] is None
    assert table[RAW].to_pylist()[1] is not None


def test_raw_of_a_rejected_text_is_bounded() -> None:
    assert len(cleaned([("\u200b" * 100_000, 1, None)])[RAW].to_pylist()[0]) <= RAW_LIMIT


def test_neutral_rows_are_neither_split_nor_rejected() -> None:
    rows: list[Row] = [("so so", None, NEUTRAL), (None, None, "broken line"), ("good", 1, None)]
    table = cleaned(rows)
    assert table[DESTINATION].to_pylist()[:2] == [None, REJECTED]
    assert table[RAW].to_pylist()[1] == "as it stood"
    assert survey(table).reasons == {NEUTRAL: 1, "broken line": 1}


def test_official_rows_are_all_test() -> None:
    table = cleaned(good(many(50)), official=True)
    assert set(table[DESTINATION].to_pylist()) == {TEST}
    assert set(table[OFFICIAL].to_pylist()) == {True}


def test_the_first_of_equal_texts_is_kept() -> None:
    """First by row id, in whatever order the blocks come, and whatever the labels say."""
    first = cleaned([("same", 1, None), ("other", 0, None), ("SAME", 0, None)])
    second = cleaned([("same ", 1, None), ("third", 1, None), ("other", 1, None)], file=OTHER)
    expected = [2, 1 << 40, (1 << 40) + 2]
    assert survey(first, second).duplicates().tolist() == expected
    assert survey(second, first).duplicates().tolist() == expected


def test_official_test_rows_stay_and_their_twins_go() -> None:
    """Even twins among themselves: figures on the set must compare with others'. Row ids of test files come last."""
    train = cleaned(good(["a", "b", "c", "b"]))
    test = cleaned(good(["b", "d", "d"]), file=OTHER, official=True)
    for order in ((train, test), (test, train)):
        found = survey(*order)
        assert found.duplicates().tolist() == [1, 3]
        assert found.balance(found.duplicates())["test"]["rows"] == 3


def test_no_rows() -> None:
    empty = survey(cleaned([]))
    assert empty.duplicates().tolist() == []
    assert empty.balance(empty.duplicates())["train"] == {"rows": 0, "negative": 0, "positive": 0}


def test_encode_leaves_duplicates_out_and_ids_are_words() -> None:
    texts = ["i don't like it", "great phone !", "i don't like it", "unheard of"]
    table = cleaned(good(texts))
    tokenizer = WordTokenizer.train(texts[:2])
    encoded = encode(table, tokenizer.to_json(), survey(table).duplicates())
    assert encoded[ROW_ID].to_pylist() == [0, 1, 3]
    assert encoded.schema.field(IDS).type == pa.list_(pa.int32())
    for text, ids in zip(encoded[TEXT].to_pylist(), encoded[IDS].to_pylist(), strict=True):
        known = set(tokenizer.tokens)
        assert [tokenizer.tokens[i] for i in ids] == [w if w in known else "<unk>" for w in tokenizer.split(text)]
    assert encoded[DESTINATION].to_pylist() == [table[DESTINATION].to_pylist()[row] for row in (0, 1, 3)]


def test_encode_follows_a_change_of_tokenizer() -> None:
    """One worker serves several runs of a session: a tokenizer kept from the last one would give wrong ids."""
    table = cleaned(good(["b a"]))
    none = np.empty(0, np.int64)
    first, second = (WordTokenizer.train([text]) for text in ("b b a", "a a b"))
    assert encode(table, first.to_json(), none)[IDS].to_pylist() == [[2, 3]]
    assert encode(table, second.to_json(), none)[IDS].to_pylist() == [[3, 2]]


def test_encode_keeps_rejected_rows_and_takes_an_empty_block() -> None:
    tokenizer = WordTokenizer.train(["a b"]).to_json()
    table = cleaned([(None, None, "broken line"), ("a", 1, None)])
    assert encode(table, tokenizer, np.array([1], np.int64))[REASON].to_pylist() == ["broken line"]
    assert encode(cleaned([]), tokenizer, np.empty(0, np.int64)).num_rows == 0


def test_counts_add_up() -> None:
    """rows in = train + validation + test + duplicates + neutral + rejected, whatever comes."""
    chance = random.Random(4)
    kinds: list[Row] = [("", 1, None), (None, None, "unknown label 'x'"), ("meh", None, NEUTRAL)]
    rows = [chance.choice(kinds) if chance.random() < 0.3 else row for row in good(many(800) + many(200))]
    tables = [cleaned(rows[start : start + 90], first=start) for start in range(0, 1000, 90)]
    tables.append(cleaned(good(many(30) + ["its own"], label=0), file=OTHER, official=True))
    found = survey(*tables)
    duplicates = found.duplicates()
    balance = found.balance(duplicates)
    kept = sum(split["rows"] for split in balance.values())
    assert kept + len(duplicates) + found.reasons.total() == 1031
    assert found.reasons[NEUTRAL] > 0
    assert found.reasons[NO_TEXT] > 0
    assert all(split["rows"] == split["negative"] + split["positive"] for split in balance.values())
    assert balance["test"]["negative"] == 31
    # What is written is what was counted.
    tokenizer = WordTokenizer.train(["a b c"]).to_json()
    written = Counter(
        destination for table in tables for destination in encode(table, tokenizer, duplicates)[DESTINATION].to_pylist()
    )
    assert {split: written[split] for split in SPLITS} == {split: balance[split]["rows"] for split in SPLITS}
    assert written[REJECTED] == found.reasons.total() - found.reasons[NEUTRAL]
    # No text twice among what is trained on and tested on, the official set's own aside.
    texts = [
        row[TEXT]
        for table in tables
        for row in encode(table, tokenizer, duplicates).to_pylist()
        if row[DESTINATION] in SPLITS
    ]
    assert len(texts) == len(set(texts)) == kept
