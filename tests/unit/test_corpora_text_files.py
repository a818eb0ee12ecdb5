"""csv, tsv and JSON lines as they are found in the wild: each record comes out once, good or with its reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
from read_back import TEXT, with_text

from sentiment.data import csv_format, text_records
from sentiment.data.formats import read_file
from sentiment.data.read_plan import ReadPlan, plan
from sentiment.data.schema_inference import EXTRA, RAW_LABEL
from sentiment.errors import DataError
from sentiment.labels import NEUTRAL
from sentiment.schema import RAW_LIMIT

S140 = b'"0","1","Mon Apr 06","NO_QUERY","ann","so sad "\n'


def write(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def rows(read_plan: ReadPlan, rows_per_table: int = 8192) -> list[dict[str, object]]:
    out: list[dict[str, object]] = []
    for source in read_plan.files:
        before = len(out)
        for table in read_file(source, read_plan, rows_per_table):
            assert table.schema == read_plan.schema
            assert 0 < table.num_rows <= rows_per_table
            table.validate(full=True)
            out += with_text(table, read_plan).to_pylist()
        mine = out[before:]
        assert [row["source_row"] for row in mine] == list(range(len(mine)))
        for row in mine:
            assert (row[TEXT] is None) == (row["reason"] is not None) == (row["raw"] is not None)
            assert row["raw"] is None or len(str(row["raw"])) <= RAW_LIMIT
    return out


def texts(read_plan: ReadPlan) -> list[object]:
    return [row[TEXT] for row in rows(read_plan)]


def reasons(read_plan: ReadPlan) -> dict[object, object]:
    return {row["line"]: row["reason"] for row in rows(read_plan) if row["reason"]}


def test_sentiment140_mixes_latin1_and_utf8(tmp_path: Path) -> None:
    content = S140 + b'"4","2","d","q","u","caf\xe9"\n' + '"4","3","d","q","u","naïve ☕"\n'.encode()
    read_plan = plan([write(tmp_path, "s.csv", content)], need_label=True)
    assert read_plan.files[0].format == "sentiment140"
    assert [(row[TEXT], row[RAW_LABEL]) for row in rows(read_plan)] == [
        ("so sad ", 0),
        ("café", 1),
        ("naïve ☕", 1),
    ]
    assert rows(read_plan)[0]["user"] == "ann"


@pytest.mark.parametrize("torn", ['lly tired today"', '06 22:19:45 PDT 2009","NO_QUERY","u","lly tired today"'])
def test_sentiment140_that_begins_within_a_record(tmp_path: Path, torn: str) -> None:
    read_plan = plan([write(tmp_path, "s.csv", f"{torn}\n".encode() + S140 * 5)], need_label=True)
    assert read_plan.files[0].format == "sentiment140"
    assert texts(read_plan) == [None, *["so sad "] * 5]


def test_sentiment140_with_bom_is_strict_utf8(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + S140 + b'"4","2","d","q","u","caf\xe9"\n'
    read_plan = plan([write(tmp_path, "s.csv", content)])
    assert texts(read_plan) == ["so sad ", None]
    assert reasons(read_plan) == {2: "not valid UTF-8 (byte 0xe9 at column 25)"}
    assert "\\xe9" in str(rows(read_plan)[1]["raw"])


def test_sentiment140_with_header_and_neutral(tmp_path: Path) -> None:
    content = b"target,ids,date,flag,user,text\n" + S140 + S140.replace(b'"0"', b'"2"')
    read_plan = plan([write(tmp_path, "s.csv", content)], need_label=True)
    assert read_plan.files[0].format == "sentiment140"
    assert read_plan.columns.names == ["polarity", "id", "date", "query", "user", "text"]
    assert [(row["line"], row["reason"]) for row in rows(read_plan)] == [(2, None), (3, NEUTRAL)]


def test_csv_fields_over_several_lines(tmp_path: Path) -> None:
    content = b'id,text\r\n1,"one\r\ntwo"\r\n\r\n2,"say ""hi"""\r\n'
    read_plan = plan([write(tmp_path, "a.csv", content)])
    assert [(row["line"], row["id"], row["text"]) for row in rows(read_plan)] == [
        (2, "1", "one\r\ntwo"),
        (5, "2", 'say "hi"'),
    ]


def test_a_broken_quote_costs_one_line(tmp_path: Path) -> None:
    good = b'7,"fine, really"\n'
    content = b"id,text\n" + good * 50 + b'8,"never closed\n' + good * 3000 + b'9,"nor this'
    read_plan = plan([write(tmp_path, "a.csv", content)])
    assert reasons(read_plan) == {52: "quote opened and never closed", 3053: "quote opened and never closed"}
    assert texts(read_plan).count("fine, really") == 3050


def test_a_broken_quote_among_unquoted_lines_costs_one_line(tmp_path: Path) -> None:
    content = b"id,text\n" + b"7,fine\n" * 5 + b'8,"open\n' + b"7,fine\n" * 5000
    read_plan = plan([write(tmp_path, "a.csv", content)])
    assert reasons(read_plan) == {7: "quote opened and never closed"}
    assert texts(read_plan).count("fine") == 5005


def test_csv_field_counts(tmp_path: Path) -> None:
    content = b'id,text\n1,a\n2,a,b\n3\n4,"a" b\n5,a\rb\n6,z\n'
    read_plan = plan([write(tmp_path, "a.csv", content)])
    assert reasons(read_plan) == {
        3: "3 fields where the header has 2",
        4: "1 field where the header has 2",
        5: "quote inside a quoted field isn't doubled",
        6: "bare carriage return in an unquoted field",
    }
    assert next(row["raw"] for row in rows(read_plan) if row["reason"]) == "2,a,b"
    assert texts(read_plan)[-1] == "z"


def test_csv_encodings(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"id,text\n1,caf\xe9\n2,ok\n")
    assert reasons(plan([path])) == {2: "not valid UTF-8 (byte 0xe9 at column 6)"}
    assert texts(plan([path], encoding="latin-1")) == ["café", "ok"]
    bom = write(tmp_path, "b.csv", "\ufefftext\nnaïve\n".encode())
    assert texts(plan([bom])) == ["naïve"]
    with pytest.raises(DataError, match="latin-1"):
        plan([write(tmp_path, "c.csv", b"t\xe9xt,text\n1,2\n")])
    with pytest.raises(DataError, match="UTF-16"):
        plan([write(tmp_path, "d.csv", "text\nhi\n".encode("utf-16"))])


def test_csv_headers_with_blank_repeated_and_reserved_names(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"line,label,,x,x,Text\n1,pos,b,c,d,hello\n")
    read_plan = plan([path], reserved=("label", "score"))
    assert read_plan.columns.names == ["input_line", "input_label", "column_3", "x", "x_2", "Text"]
    assert dict(read_plan.renamed) == {"line": "input_line", "label": "input_label"}
    row = rows(read_plan)[0]
    assert (row["input_line"], row["input_label"], row["x_2"], row[TEXT]) == ("1", "pos", "d", "hello")


def test_tsv_quoted_and_plain(tmp_path: Path) -> None:
    content = b'id\ttext\n1\t"a\tb"\n2\t"so" he said\n3\t"open\n4\tplain "x"\n5\n6\t"last"\n'
    read_plan = plan([write(tmp_path, "a.tsv", content)])
    assert texts(read_plan) == ["a\tb", '"so" he said', '"open', 'plain "x"', None, "last"]
    assert reasons(read_plan) == {6: "1 field where the header has 2"}


def test_json_lines_rejects_what_it_must(tmp_path: Path) -> None:
    bad = {
        b"{broken": "not valid JSON (Expecting property name enclosed in double quotes at column 2)",
        b"[1]": "a list, not a JSON object",
        b'{"id": 1}': "no text",
        b'{"text": null}': "no text",
        b'{"text": " \\t "}': "no text",
        b'{"text": 5}': "text is a number, not a string",
        b'{"text": true}': "text is a boolean, not a string",
        b'{"text": ["a"]}': "text is a list, not a string",
        b'{"text": "caf\xe9"}': "not valid UTF-8 (byte 0xe9 at column 14)",
        b'{"text": "a\\ud800"}': "column 'text' has half a surrogate pair",
        b'{"text": "a", "n": ' + b"[" * 100_000: "not usable JSON (nested too deep)",
        b'{"text": "a", "n": ' + b"1" * 5000 + b"}": "not usable JSON (a number with too many digits)",
    }
    good = [b'{"text": "ok", "id": 1}', b'{"text": "n\\u0000ul", "id": 2}']
    content = b"\n".join([good[0], b"", *bad, good[1]])
    read_plan = plan([write(tmp_path, "a.jsonl", content)])
    assert list(reasons(read_plan).items()) == list(zip(range(3, 3 + len(bad)), bad.values(), strict=True))
    assert [text for text in texts(read_plan) if text] == ["ok", "n\0ul"]


def test_json_types_and_what_no_sample_had_shown(tmp_path: Path) -> None:
    early = {"text": "a", "id": 1, "big": 2**60, "x": 1, "flag": True, "user": {"n": 1}, "mix": 1}
    sample = [early, {**early, "x": 0.5, "mix": "one"}] * 2000
    late = [
        {"text": "new", "id": 2, "lang": "en", "user": [1, "é"]},
        {"text": "b", "id": "three"},
        {"text": "c", "id": 1.5},
        {"text": "d", "flag": 1},
        {"text": "e", "x": True},
        {"text": "f", "id": 2**70},
        {"text": "g", "user": "\ud800"},
    ]
    content = "\n".join(map(json.dumps, [*sample, *late])).encode()
    read_plan = plan([write(tmp_path, "a.jsonl", content)])
    types = {item.name: item.type for item in read_plan.columns}
    assert types == {
        **{"text": pa.string(), "id": pa.int64(), "big": pa.int64(), "x": pa.float64(), "flag": pa.bool_()},
        **{"user": pa.string(), "mix": pa.string(), EXTRA: pa.string()},
    }
    out = rows(read_plan)
    assert (out[0]["big"], out[0]["user"], out[0]["mix"], out[1]["mix"]) == (2**60, '{"n": 1}', "1", "one")
    assert (out[4000][EXTRA], out[4000]["user"]) == ('{"lang": "en"}', '[1, "é"]')
    assert [row["reason"] for row in out[4001:]] == [
        "column 'id' is a string that can't be int64",
        "column 'id' is a number that can't be int64",
        "column 'flag' is a number that can't be bool",
        "column 'x' is a boolean that can't be double",
        "column 'id' is a number that can't be int64",
        "column 'user' has half a surrogate pair",
    ]


def test_whole_file_json_array(tmp_path: Path) -> None:
    items = [{"text": "a", "id": 1}, {"text": "b\nc", "id": 2}, 7]
    read_plan = plan([write(tmp_path, "a.json", json.dumps(items, indent=1).encode())])
    assert texts(read_plan) == ["a", "b\nc", None]
    assert [row["line"] for row in rows(read_plan)] == [2, 6, 10]
    broken = plan([write(tmp_path, "b.json", b'[{"text": "a"}, {"text": ')])
    assert texts(broken) == ["a", None]
    unclosed = plan([write(tmp_path, "c.json", b'[{"text": "a"}')])
    assert reasons(unclosed) == {1: "file can't be read on: the array isn't closed"}


@pytest.mark.parametrize("first", ['["a", "b"]', "[]", '[{"text": "inner"}]', "[link] and no JSON", '["torn'])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_json_lines_whose_first_line_begins_like_an_array(tmp_path: Path, name: str, first: str) -> None:
    content = f'{first}\r\n\n{{"text": "one"}}\n[3]\n{{"text": "two"}}\n'.encode()
    read_plan = plan([write(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)])
    assert texts(read_plan) == [None, "one", None, "two"]
    said = reasons(read_plan)
    assert said[4] == "a list, not a JSON object"
    assert str(said[1]).startswith("not valid JSON" if first.startswith(("[link", '["torn')) else said[4])
    assert rows(read_plan)[0]["raw"] == f"{first}\r"


ITEMS = [{"text": "a", "tags": ["x", {"y": []}]}, {"text": "b", "tags": []}, {"text": "c"}]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ITEMS),
        json.dumps(ITEMS) + "\n",
        json.dumps(ITEMS, indent=2) + "\n",
        json.dumps(ITEMS, indent=2).replace("\n", "\r\n"),
        "\n\n[\n" + ",\n".join(map(json.dumps, ITEMS)) + "\n]\n",
        "[" + "\n,".join(map(json.dumps, ITEMS)) + "]",
        '[{"text": "a"}, {"text": "b"},\n{"text": "c"}\n]',
        '[{"text":\n"a"}, {"text": "b"}, {"text":\n"c"}]',
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_whole_file_json_array_in_any_layout(tmp_path: Path, name: str, content: str) -> None:
    read_plan = plan([write(tmp_path, name, content.encode())])
    assert read_plan.files[0].format == "json"
    assert texts(read_plan) == ["a", "b", "c"]


def test_truncated_gzip_keeps_every_readable_row(tmp_path: Path) -> None:
    content = b"".join(b'{"text": "tweet %d %d"}\n' % (n, n * 7919 % 100_003) for n in range(60_000))
    packed = gzip.compress(content)
    path = write(tmp_path, "a.jsonl.gz", packed[: len(packed) * 2 // 3])
    other = write(tmp_path, "b.jsonl.gz", gzip.compress(b'{"text": "fine"}\n'))
    import zlib

    readable = zlib.decompressobj(31).decompress(packed[: len(packed) * 2 // 3]).count(b"\n")
    out = rows(plan([path, other]))
    assert len(out) == readable + 2
    assert out[-1][TEXT] == "fine"
    assert out[readable]["line"] == readable + 1
    assert str(out[readable]["reason"]).startswith("file can't be read on: ")


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_compressed_files_read_like_plain_ones(tmp_path: Path, name: str, codec: str) -> None:
    content = {"a.csv": b"id,text\n1,hi\n", "a.tsv": b"id\ttext\n1\thi\n", "a.jsonl": b'{"id":"1","text":"hi"}\n'}[name]
    path = tmp_path / (name + {"gzip": ".gz", "zstd": ".zst"}[codec])
    with pa.CompressedOutputStream(str(path), codec) as out:
        out.write(content)
    assert [(row["id"], row["text"]) for row in rows(plan([str(path)]))] == [("1", "hi")]


def test_not_compressed_at_all_is_one_rejected_row(tmp_path: Path) -> None:
    bad = write(tmp_path, "a.csv.gz", b"text\nhello\n")
    good = write(tmp_path, "b.csv", b"text\nhello\n")
    out = rows(plan([bad, good]))
    assert [row[TEXT] for row in out] == [None, "hello"]
    with pytest.raises(DataError, match="no file can be read"):
        plan([bad])


def test_overlong_line_is_rejected_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_records, "MAX_LINE_BYTES", 200_000)
    content = b'{"text": "a"}\n{"text": "' + b"x" * 500_000 + b'"}\n{"text": "b"}\n' + b"y" * 300_000
    read_plan = plan([write(tmp_path, "a.jsonl", content)])
    assert texts(read_plan) == ["a", None, "b", None]
    assert reasons(read_plan) == {2: text_records.OVERLONG, 4: text_records.OVERLONG}


def test_tables_are_cut_by_rows_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_plan = plan([write(tmp_path, "a.csv", b"text\n" + b"hello\n" * 1000)])
    assert [table.num_rows for table in read_file(read_plan.files[0], read_plan, 300)] == [300, 300, 300, 100]
    monkeypatch.setattr(text_records, "BYTES_PER_BATCH", 1)
    assert sum(table.num_rows for table in read_file(read_plan.files[0], read_plan)) == 1000


def test_labels(tmp_path: Path) -> None:
    words = ["0", "1", "4", "neg", "POS", "Negative", "positive", "1.0", "2", "neutral", "", "meh"]
    content = "sentiment,text\n" + "".join(f"{word},t\n" for word in words)
    path = write(tmp_path, "a.csv", content.encode())
    out = rows(plan([path], need_label=True))
    assert [row[RAW_LABEL] for row in out] == [0, 1, 1, 0, 1, 0, 1, 1, None, None, None, None]
    assert out[10]["reason"] == "no label"
    assert str(out[11]["reason"]).startswith("unknown label 'meh'; accepted: 0/1")
    assert RAW_LABEL not in rows(plan([path]))[0]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_whatever_csv_writer_quotes_comes_back(tmp_path: Path, delimiter: str) -> None:
    chance = random.Random(7)
    letters = "ab\"',;\n\r\té☕\x00 " if delimiter == "," else "ab\"',;\n\ré☕\x00 "
    for trial in range(60):
        table = [[f"x{''.join(chance.choices(letters, k=chance.randrange(12)))}x" for _ in range(3)] for _ in range(25)]
        text = io.StringIO(newline="")
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, delimiter=delimiter)
        writer.writerows([["id", "text", "more"], *table])
        name = f"{trial}.{'csv' if delimiter == ',' else 'tsv'}"
        out = rows(plan([write(tmp_path, name, text.getvalue().encode())]), rows_per_table=10)
        assert [[row["id"], row["text"], row["more"]] for row in out] == table


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_random_bytes_never_crash_and_all_lines_are_accounted_for(tmp_path: Path, name: str) -> None:
    first = {"a.csv": b"id,text\n", "a.tsv": b"id\ttext\n", "a.jsonl": b'{"id": 1, "text": "t"}\n'}[name]
    chance = random.Random(3)
    alphabet = [b'"', b"\n", b",", b"\t", b"{", b"}", b'"text":', b"\xe9", b"\x00", b"\r", b"a", b"\\ud800", b"\r\n"]
    for trial in range(150):
        body = b"".join(chance.choices(alphabet, k=80)) if trial % 2 else chance.randbytes(300)
        out = rows(plan([write(tmp_path, name, first + body)]), rows_per_table=7)
        physical = body.split(b"\n")
        blank = sum(not (line.strip(b" \t\r") if name == "a.jsonl" else line.removesuffix(b"\r")) for line in physical)
        inner = sum(str(row["text"]).count("\n") + str(row["id"]).count("\n") for row in out if not row["reason"])
        expected = len(physical) - blank + (name == "a.jsonl")
        # A quoted field may take in lines, blank ones too, and those then aren't records.
        assert expected - inner <= len(out) <= expected


def test_bounds_of_a_quoted_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_format, "MAX_QUOTED_LINES", 3)
    content = b'id,text\n1,"a\nb\nc"\n2,"a\nb\nc\nd"\n'
    read_plan = plan([write(tmp_path, "a.csv", content)])
    assert texts(read_plan)[0] == "a\nb\nc"
    assert reasons(read_plan)[5] == "quote opened and never closed"
