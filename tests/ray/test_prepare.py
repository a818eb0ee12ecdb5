"""Preparing: no row is lost, no text is on two sides, and the same rows give the same data however they come."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_runs import OWN_WORDS, ROWS, TWEETS, Corpus, Prepared, labelled_rows, read_rows, refusal, run_job

from jobs import prepare
from sentiment.data.synthetic import tweets
from sentiment.schema import PREPARED_SCHEMA, REJECTED_SCHEMA, SPLITS
from sentiment.storage.lock import Lock
from sentiment.storage.output_directory import OutputDirectory
from sentiment.text import fingerprint, normalize
from sentiment.tokenizers import WordTokenizer

pytestmark = pytest.mark.usefixtures("ray_cluster")

Settled = dict[str, tuple[str, tuple[int, ...]]]


def settled(folder: Path) -> Settled:
    """Where each text went and what it became."""
    return {
        row["text"].lower(): (split, tuple(row["ids"]))
        for split in SPLITS
        for row in read_rows(folder / split).to_pylist()
    }


def test_counts_add_up(prepared: Prepared, corpus: Corpus) -> None:
    result = prepared.result
    assert {"rows_in", "train", "validation", "test", "duplicates", "rejected", "output"} <= result.keys()
    assert result["rows_in"] == corpus.rows
    assert result["rows_in"] == sum(result[name] for name in (*SPLITS, "duplicates", "neutral", "rejected"))
    assert (result["neutral"], result["rejected"]) == (corpus.neutral, len(corpus.bad))
    texts = Counter(fingerprint(normalize(row["text"])) for row in labelled_rows(corpus))
    assert result["duplicates"] == texts.total() - len(texts) > 0
    for split in SPLITS:
        assert read_rows(prepared.folder / split).num_rows == result[split] > 0
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    assert manifest["counts"] == {name: result[name] for name in manifest["counts"]}
    assert sum(manifest["rejected_by_reason"].values()) == result["rejected"]


def test_rejected_rows_have_line_and_reason(prepared: Prepared, corpus: Corpus) -> None:
    rejected = read_rows(prepared.folder / "rejected")
    assert rejected.schema.equals(REJECTED_SCHEMA)
    found = {(Path(row["source_file"]).name, row["source_row"]): row for row in rejected.to_pylist()}
    assert len(found) == rejected.num_rows
    assert found.keys() == {(name, number) for name, number, _ in corpus.bad}
    for name, number, reason in corpus.bad:
        row = found[name, number]
        assert row["reason"].startswith(reason)
        assert row["line"] == number + 1  # One record a line, and neither file has a header.
    assert found[TWEETS, ROWS + 3]["raw"].endswith('"cut sho')


def test_parquet_has_the_promised_schema(prepared: Prepared) -> None:
    for split in SPLITS:
        for file in (prepared.folder / split).glob("*.parquet"):
            assert pq.read_schema(file).equals(PREPARED_SCHEMA)
    row_ids = [row_id for split in SPLITS for row_id in read_rows(prepared.folder / split)["row_id"].to_pylist()]
    assert len(row_ids) == len(set(row_ids))


def test_manifest_knows_inputs_and_labels(prepared: Prepared, corpus: Corpus) -> None:
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    assert {line["path"]: line["sha256"] for line in manifest["inputs"]} == {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in corpus.folder.iterdir()
    }
    for split in SPLITS:
        labels = Counter(read_rows(prepared.folder / split)["label"].to_pylist())
        assert manifest["splits"][split] == {
            "rows": labels.total(),
            "negative": labels[0],
            "positive": labels[1],
        }
    assert manifest["settings"]["seed"] == 1
    expected = Counter(0 if row["label"] in ("0", "negative") else 1 for row in labelled_rows(corpus))
    kept = Counter(label for split in SPLITS for label in read_rows(prepared.folder / split)["label"].to_pylist())
    assert all(0 <= expected[label] - kept[label] <= prepared.result["duplicates"] for label in (0, 1))


def test_no_text_is_in_two_splits(prepared: Prepared) -> None:
    of_split = {
        split: [fingerprint(text) for text in read_rows(prepared.folder / split)["text"].to_pylist()]
        for split in SPLITS
    }
    everything = [name for names in of_split.values() for name in names]
    assert len(everything) == len(set(everything))


def test_vocabulary_is_from_train_alone(prepared: Prepared) -> None:
    # Each of these rows says a word of its own twice, which is often enough for the vocabulary.
    tokenizer = WordTokenizer.load(prepared.folder / "tokenizer.json")

    def own_words(split: str) -> set[str]:
        texts = read_rows(prepared.folder / split)["text"].to_pylist()
        return {text.split()[0] for text in texts if text.startswith("zq")}

    assert len(set().union(*map(own_words, SPLITS))) == OWN_WORDS
    assert own_words("test")
    assert own_words("validation")
    assert {word for word in tokenizer.tokens if word.startswith("zq")} == own_words("train")
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    assert manifest["vocabulary"] == tokenizer.vocabulary_size


def test_ids_are_those_of_the_tokenizer(prepared: Prepared) -> None:
    tokenizer = WordTokenizer.load(prepared.folder / "tokenizer.json")
    for split in SPLITS:
        rows = read_rows(prepared.folder / split)
        assert rows["ids"].to_pylist() == tokenizer.encode(rows["text"].to_pylist())


def test_same_input_gives_the_same_data(prepared: Prepared, corpus: Corpus, tmp_path: Path) -> None:
    again = run_job(prepare.JOB, "--input", corpus.folder, "--output", tmp_path, "--test-share", 0.2)
    assert {name: again[name] for name in SPLITS} == {name: prepared.result[name] for name in SPLITS}
    for split in SPLITS:
        before, after = read_rows(prepared.folder / split), read_rows(tmp_path / split)
        assert after.sort_by("row_id").equals(before.sort_by("row_id"))
    assert (tmp_path / "tokenizer.json").read_bytes() == (prepared.folder / "tokenizer.json").read_bytes()


def test_order_and_files_change_nothing(prepared: Prepared, corpus: Corpus, tmp_path: Path) -> None:
    rows = labelled_rows(corpus)
    random.Random(5).shuffle(rows)
    thirds = [rows[part::3] for part in range(3)]
    files = tmp_path / "files"
    files.mkdir()
    with gzip.open(files / "one.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "text"])
        writer.writerows([row["label"], row["text"]] for row in thirds[0])
    lines = "".join(json.dumps({"sentiment": row["label"], "tweet": row["text"]}) + "\n" for row in thirds[1])
    with pa.CompressedOutputStream(str(files / "two.jsonl.zst"), "zstd") as stream:
        stream.write(lines.encode())
    pq.write_table(pa.Table.from_pylist(thirds[2]), files / "three.parquet")
    result = run_job(prepare.JOB, "--input", files, "--output", tmp_path / "out", "--test-share", 0.2)
    assert result["rejected"] == result["neutral"] == 0
    assert {name: result[name] for name in (*SPLITS, "duplicates")} == {
        name: prepared.result[name] for name in (*SPLITS, "duplicates")
    }
    assert settled(tmp_path / "out") == settled(prepared.folder)


def test_official_test_set_stays_as_it_is(tmp_path: Path) -> None:
    made = [{"text": tweet.text, "label": tweet.label} for tweet in tweets(400, seed=11)]
    main, official = made[:300], made[300:] + made[:20] + made[300:305]
    for name, rows in (("main", main), ("official", official)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_job(
        prepare.JOB,
        *("--input", tmp_path / "main.jsonl", "--test-input", tmp_path / "official.jsonl"),
        *("--output", tmp_path / "out"),
    )
    test = read_rows(tmp_path / "out" / "test").sort_by("source_row")
    assert test["text"].to_pylist() == [normalize(str(row["text"])) for row in official]
    assert test["label"].to_pylist() == [row["label"] for row in official]
    assert {Path(path).name for path in test["source_file"].to_pylist()} == {"official.jsonl"}
    in_test = {fingerprint(text) for text in test["text"].to_pylist()}
    in_main = {fingerprint(normalize(str(row["text"]))) for row in main}
    rest = [
        fingerprint(text)
        for split in ("train", "validation")
        for text in read_rows(tmp_path / "out" / split)["text"].to_pylist()
    ]
    assert sorted(rest) == sorted(in_main - in_test)
    assert result["duplicates"] == len(main) - len(rest) >= 20
    assert result["rows_in"] == len(main) + len(official) == sum(result[name] for name in (*SPLITS, "duplicates"))


def test_imdb_keeps_its_test_half(tmp_path: Path) -> None:
    texts = iter([tweet.text for tweet in tweets(200, seed=12)])
    unique = dict.fromkeys(normalize(text) for text in texts)
    numbered = iter(unique)
    for split in ("train", "test"):
        for label, rating in (("neg", 2), ("pos", 9)):
            folder = tmp_path / "aclImdb" / split / label
            folder.mkdir(parents=True)
            for number in range(20):
                (folder / f"{number}_{rating}.txt").write_text(next(numbered))
    (tmp_path / "aclImdb" / "train" / "urls_pos.txt").write_text("http://example.org\n")
    result = run_job(
        prepare.JOB,
        *("--input", tmp_path / "aclImdb", "--output", tmp_path / "out", "--validation-share", 0.2),
    )
    assert (result["rows_in"], result["test"], result["rejected"], result["duplicates"]) == (80, 40, 0, 0)
    assert result["train"] + result["validation"] == 40
    assert result["validation"] > 0
    for split in SPLITS:
        rows = read_rows(tmp_path / "out" / split).to_pylist()
        halves = {Path(row["source_file"]).parent.parent.name for row in rows}
        assert halves == {"test" if split == "test" else "train"}
        assert all(row["label"] == (Path(row["source_file"]).parent.name == "pos") for row in rows)


def test_rows_of_one_label_are_refused(tmp_path: Path) -> None:
    rows = [{"text": tweet.text, "label": "positive"} for tweet in tweets(60, seed=13)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refusal(prepare.JOB, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out")
    assert "rows to train on are labeled POSITIVE, and rows of both labels are needed" in message
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_full_output_folder_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    message = refusal(prepare.JOB, "--input", corpus.folder, "--output", tmp_path)
    assert str(tmp_path) in message
    assert "--overwrite" in message
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_second_run_is_refused_while_the_first_is_at_it(corpus: Corpus, tmp_path: Path) -> None:
    """Both would write parts of the same names."""
    with Lock(OutputDirectory(str(tmp_path / "out"))):
        for more in ((), ("--overwrite",)):
            message = refusal(prepare.JOB, "--input", corpus.folder, "--output", tmp_path / "out", *more)
            assert "another run" in message or "is at" in message, message
    result = run_job(prepare.JOB, "--input", corpus.folder, "--output", tmp_path / "out")
    assert result["rows_in"] == corpus.rows
    assert not (tmp_path / "out" / "_run").exists()


def test_an_output_that_can_not_be_written_to(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refusal(prepare.JOB, "--input", corpus.folder, "--output", tmp_path / "file" / "out")
    assert "can't write to" in message
