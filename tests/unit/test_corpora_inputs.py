"""What a user may point at: folders, globs, URIs, Parquet, IMDB's layout, files that differ; and the errors."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from read_back import TEXT, read_tables, with_text

from sentiment.data import parquet_format
from sentiment.data.formats import batches_of
from sentiment.data.listing import list_inputs
from sentiment.data.read_plan import ReadPlan, plan, refuse_changed
from sentiment.data.schema_inference import RAW_LABEL
from sentiment.errors import DataError

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data isn't beside the repository")


def write(path: Path, content: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def table(read_plan: ReadPlan) -> pa.Table:
    tables = read_tables(read_plan)
    return pa.concat_tables(tables) if tables else with_text(read_plan.schema.empty_table(), read_plan)


def test_folder_passes_over_hidden_and_stray_files_and_says_so(tmp_path: Path) -> None:
    for name in ("b.csv", "sub/a.CSV", "sub/.hidden.csv", "_temp/c.csv", "README.md", "notes.txt"):
        write(tmp_path / name, "text\nhi\n")
    write(tmp_path / "empty.csv", "")
    write(tmp_path / "blank.csv.gz", gzip.compress(b"\n\n"))
    read_plan = plan([str(tmp_path)])
    assert [source.path for source in read_plan.files] == [f"{tmp_path}/b.csv", f"{tmp_path}/sub/a.CSV"]
    assert sorted(item.removeprefix(f"{tmp_path}/") for item in read_plan.skipped) == [
        "README.md: unknown extension",
        "_temp/c.csv: hidden",
        "blank.csv.gz: empty",
        "empty.csv: empty",
        "notes.txt: unknown extension",
        "sub/.hidden.csv: hidden",
    ]
    assert pickle.loads(pickle.dumps(read_plan)) == read_plan


def test_globs_relative_paths_and_files_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/a.csv", "x/b.tsv", "y/a.csv", "y/z/a.csv", "odd[1].csv"):
        write(tmp_path / name, "text\nhi\n")
    monkeypatch.chdir(tmp_path)
    found = {
        "*/a.csv": ["x/a.csv", "y/a.csv"],
        "**/a.csv": ["x/a.csv", "y/a.csv", "y/z/a.csv"],
        "x/?.?sv": ["x/a.csv", "x/b.tsv"],
        "[y]*": ["y/a.csv", "y/z/a.csv"],
        "odd[1].csv": ["odd[1].csv"],
        "./x": ["./x/a.csv", "./x/b.tsv"],
    }
    for given, expected in found.items():
        assert [source.path for source in plan([given]).files] == expected, given
    both = plan(["x", "x/a.csv"])
    assert len(both.files) == 2
    assert both.skipped == ("x/a.csv: given twice",)
    monkeypatch.chdir("/")  # Read tasks run elsewhere.
    assert table(both)["source_file"].to_pylist() == ["x/a.csv", "x/b.tsv"]


def test_one_path_in_two_stores_is_two_files() -> None:
    class Store(MemoryFileSystem):
        """As abfs: the host isn't part of the path."""

        protocol = "account"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + (path.partition("://")[2].partition("/")[2] if "://" in path else path.lstrip("/"))

    fsspec.register_implementation("account", Store, clobber=True)
    with fsspec.open("account://one/tweets/a.jsonl", "wb") as file:
        file.write(b'{"text": "a lovely day"}\n')
    found, skipped = list_inputs(["account://one/tweets/a.jsonl", "account://two/tweets", "account://one/tweets"])
    assert [item.path for item in found] == ["account://one/tweets/a.jsonl", "account://two/tweets/a.jsonl"]
    assert skipped == ["account://one/tweets/a.jsonl: given twice"]


def test_a_path_and_its_uri_are_one_file(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text\nhi\n")
    both = plan([str(tmp_path / "a.csv"), f"file://{tmp_path}/a.csv"])
    assert len(both.files) == 1
    assert len(both.skipped) == 1


def test_a_hash_in_a_uri_is_refused(tmp_path: Path) -> None:
    """Arrow drops what follows: another file, or for --overwrite another folder."""
    with pytest.raises(DataError, match=r"write %23 for # in a URI"):
        plan([f"file://{tmp_path}/a.csv#2"])


def test_rows_that_begin_like_sentiment140s_under_a_header(tmp_path: Path) -> None:
    rows = "".join(f"0,text {row},2021-01-01,en,someone,http://x/{row}\n" for row in range(30))
    write(tmp_path / "a.csv", "likes,text,date,lang,user,url\n" + rows)
    (source,) = plan([str(tmp_path / "a.csv")]).files
    assert (source.format, source.text_column) == ("csv", "text")


def test_files_that_changed_since_they_were_planned(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, "text\nhi\n")
    reads = plan([str(tmp_path)])
    write(tmp_path / "new.csv", "text\nhi\n")
    refuse_changed(reads, [str(tmp_path)])
    write(tmp_path / "b.csv", "text\nhi\nthere\n")
    with pytest.raises(DataError, match=r"b\.csv changed while it was read: .* --overwrite"):
        refuse_changed(reads, [str(tmp_path)])


def test_uris_of_arrow_and_fsspec(tmp_path: Path) -> None:
    write(tmp_path / "with space" / "a.csv", "text\nhi\n")
    uri = (tmp_path / "with space").as_uri()
    assert [source.path for source in plan([uri]).files] == [f"{uri}/a.csv"]
    assert table(plan([f"{uri}/*.csv"]))[TEXT].to_pylist() == ["hi"]
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpora_test/day/a.jsonl", b'{"text": "one"}\n')
    memory.pipe("/corpora_test/b.csv.gz", gzip.compress(b"text\ntwo\n"))
    pq.write_table(pa.table({"text": ["three"]}), "/corpora_test/c.parquet", filesystem=memory)
    for given in ("memory://corpora_test", "memory://corpora_test/*"):
        out = table(plan([given]))
        assert out["source_file"].to_pylist() == [
            f"memory://corpora_test/{name}" for name in ("b.csv.gz", "c.parquet", "day/a.jsonl")
        ]
        assert out[TEXT].to_pylist() == ["two", "three", "one"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere.csv", "not found"),
        ("*.csv", "looked for csv, tsv"),
        ("a.docx", "unknown extension; accepted: csv"),
        ("plain.txt", "unknown extension"),
        ("zzz://bucket/a.csv", "neither pyarrow nor fsspec"),
        ("memory://nowhere_at_all", "not found"),
    ],
)
def test_inputs_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str) -> None:
    write(tmp_path / "a.docx", "x")
    write(tmp_path / "plain.txt", "x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=said):
        plan([given])


def test_text_column_is_found_or_the_error_says_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Id,Full_Text,REVIEW,name\n1,a,b,c\n")
    assert plan([path]).files[0].text_column == "REVIEW"
    assert plan([path], text_column="full_text").files[0].text_column == "Full_Text"
    with pytest.raises(DataError, match=r"no column 'nope'; it has 'Id', 'Full_Text', 'REVIEW', 'name'.*--text-column"):
        plan([path], text_column="nope")
    other = write(tmp_path / "b.csv", "id,words\n1,a\n")
    with pytest.raises(DataError, match=r"no text column \(looked for text, tweet, .*it has 'id', 'words'"):
        plan([other])
    with pytest.raises(DataError, match=r"no label column.*it has 'id', 'words'.*--label-column"):
        plan([other], text_column="words", need_label=True)
    with pytest.raises(DataError, match="no column 'stars'"):
        plan([other], text_column="words", label_column="stars")
    skewed = write(tmp_path / "c.jsonl", '{"text": 5, "body": "real"}\n')
    assert plan([skewed]).files[0].text_column == "body"


def test_files_that_differ_share_one_schema(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "a", "id": 1, "score": 1, "on": true, "big": 9007199254740993}\n')
    write(tmp_path / "b.jsonl", '{"tweet": "b", "id": "x2", "score": 0.5, "on": null, "big": 0.5}\n')
    write(tmp_path / "c.csv", "review,id,score\nc,3,7\n")
    pq.write_table(pa.table({"text": ["d"], "id": pa.array([4], pa.int32())}), tmp_path / "d.parquet")
    read_plan = plan([str(tmp_path)], reserved=("score",))
    out = table(read_plan)
    assert dict(zip(out.schema.names, out.schema.types, strict=True))["on"] == pa.bool_()
    assert out[TEXT].to_pylist() == ["a", "b", "c", "d"]
    assert out["id"].to_pylist() == ["1", "x2", "3", "4"]
    assert out["input_score"].to_pylist() == ["1", "0.5", "7", None]
    assert out["big"].to_pylist() == ["9007199254740993", "0.5", None, None]
    assert out["text"].to_pylist() == ["a", None, None, "d"]
    assert out["reason"].null_count == 4


def test_parquet_types_pass_and_bad_rows_are_rejected(tmp_path: Path) -> None:
    raw = pa.array([b"caf\xe9", b"fine", None, b" \n", b"ok"], pa.binary())
    source = pa.table(
        {
            "text": pa.Array.from_buffers(pa.string(), 5, raw.buffers(), null_count=1),
            "tags": [["a"], [], None, ["b"], ["c", "d"]],
            "when": pa.array([1, 2, 3, 4, 5], pa.timestamp("us")),
            "line": pa.array(["x"] * 5, pa.large_string()),
            "label": [0, 1, 1, 0, 1],
        }
    )
    pq.write_table(source, tmp_path / "a.parquet")
    read_plan = plan([str(tmp_path)], need_label=True)
    out = table(read_plan)
    assert out.schema.field("tags").type == source.schema.field("tags").type
    assert out["reason"].to_pylist() == [
        "column 'text' is not valid UTF-8 (byte 0xe9 at column 4)", None, "no text", "no text", None
    ]  # fmt: skip
    assert out["line"].to_pylist() == [1, 2, 3, 4, 5]
    assert out["input_line"].to_pylist() == [None, "x", None, None, "x"]
    assert out[RAW_LABEL].to_pylist() == [None, 1, None, None, 1]
    assert json.loads(out["raw"][0].as_py())["text"] == "caf\\xe9"


@pytest.mark.parametrize("type_", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()])
def test_parquet_text_of_any_string_type(tmp_path: Path, type_: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"], type_)}), tmp_path / "a.parquet")
    assert table(plan([str(tmp_path)]))[TEXT].to_pylist() == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (pa.string_view(), "a"),
        (pa.binary_view(), b"a"),
        (pa.list_view(pa.int64()), [1]),
        (pa.list_(pa.string_view()), ["a"]),
        (pa.large_list_view(pa.binary_view()), [b"a"]),
        (pa.list_(pa.string_view(), 2), ["a", "b"]),
        (pa.struct([("of", pa.binary_view())]), {"of": b"a"}),
        (pa.map_(pa.string_view(), pa.string()), [("a", "b")]),
    ],
    ids=str,
)
def test_parquet_views_beside_a_row_that_is_rejected(tmp_path: Path, type_: pa.DataType, value: object) -> None:
    source = pa.table({"text": ["a", None, "b"], "it": pa.array([value, value, None], type_)})
    pq.write_table(source, tmp_path / "a.parquet")
    out = table(plan([str(tmp_path)]))
    assert out["it"].to_pylist() == [value, None, None]
    assert out["reason"].to_pylist() == [None, "no text", None]


def test_parquet_pieces_are_cut_by_what_they_take_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_format, "BYTES_PER_BATCH", 1 << 20)
    # In the file each column is one value and its count.
    columns = {f"column {number}": ["twelve bytes"] * 4096 for number in range(60)}
    pq.write_table(pa.table({"text": ["a"] * 4096, **columns}), tmp_path / "a.parquet")
    read_plan = plan([str(tmp_path)])
    sizes = [piece.build().nbytes for piece in batches_of(read_plan)]
    assert max(sizes) < 1.5 * (1 << 20)
    assert len(sizes) == 4


def test_parquet_whose_text_is_not_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds int64, not text"):
        plan([str(tmp_path)])


def test_damaged_parquet_costs_its_own_rows_only(tmp_path: Path) -> None:
    whole = pa.table({"text": [f"tweet {number}" for number in range(4000)]})
    pq.write_table(whole, tmp_path / "b.parquet", row_group_size=1000, compression="gzip", use_dictionary=False)
    content = bytearray((tmp_path / "b.parquet").read_bytes())
    write(tmp_path / "a.parquet", bytes(content[:-20]))
    start = pq.ParquetFile(tmp_path / "b.parquet").metadata.row_group(2).column(0).data_page_offset
    content[start + 60 : start + 160] = b"\xff" * 100
    write(tmp_path / "c.parquet", bytes(content))
    write(tmp_path / "d.parquet.gz", gzip.compress((tmp_path / "b.parquet").read_bytes()))
    out = table(plan([str(tmp_path)])).select(["source_file", "source_row", "line", "reason"]).to_pylist()
    bad = [row for row in out if row["reason"]]
    # Without its footer nobody knows how many rows a file has; a damaged row group's are known, and each is there.
    assert [(Path(row["source_file"]).name, row["source_row"], row["line"]) for row in bad] == [
        ("a.parquet", 0, 1),
        *(("c.parquet", row, row + 1) for row in range(2000, 3000)),
    ]
    assert all(row["reason"].startswith("file can't be read on: ") for row in bad)
    assert len(out) == 1 + 4000 + 4000 + 4000


def test_imdb_layout(tmp_path: Path) -> None:
    base = tmp_path / "aclImdb"
    write(base / "train" / "pos" / "0_9.txt", "lovely<br />film")
    write(base / "train" / "neg" / "1_2.txt", b"caf\xe9")
    write(base / "test" / "neg" / "7_1.txt", "dull\n")
    write(base / "train" / "unsup" / "3_0.txt", "neither")
    write(base / "train" / "urls_pos.txt", "http")
    read_plan = plan([str(base)], need_label=True)
    assert len(read_plan.skipped) == 2
    out = pa.concat_tables(read_tables(read_plan)).to_pylist()
    assert [(row["split"], row["label"], row["id"], row["rating"], row[TEXT], row[RAW_LABEL]) for row in out] == [
        ("test", "neg", "7_1", 1, "dull\n", 0),
        (None, None, None, None, None, None),
        ("train", "pos", "0_9", 9, "lovely<br />film", 1),
    ]
    assert out[1]["raw"] == "caf\\xe9"
    apart = [
        row
        for file in read_plan.files
        for table in read_tables(read_plan.with_files([file]))
        for row in table.to_pylist()
    ]
    assert out == apart


@needs_data
def test_real_files_come_out_whole() -> None:
    expected = {
        "sentiment140/training.49k.processed.noemoticon.csv": 49_160,
        "sentiment140/sentiment140_87k.parquet": 87_261,
        "imdb/test.parquet": 25_000,
    }
    for name, count in expected.items():
        out = table(plan([str(DATA / name)], need_label=True))
        assert out.num_rows == out["reason"].null_count == count
        assert out[RAW_LABEL].null_count == 0
    tweets = table(plan([str(DATA / "tweets")]))
    assert tweets.num_rows == tweets["reason"].null_count == 8_156 + 892


def test_a_row_of_data_taken_for_a_header_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text("I am a private person and this is my diary,0\nanother,1\n")
    with pytest.raises(DataError, match="no header row") as refused:
        plan([str(tmp_path / "bare.csv")])
    assert "private" not in str(refused.value)


def test_hidden_files_are_passed_over_by_every_glob(tmp_path: Path) -> None:
    for name in (".hidden/a.csv", "_state/b.csv", "deep/_c.csv", "deep/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\nhello\n")
    for pattern in ("**", "**/*.csv"):
        assert [Path(file.path).name for file in plan([f"{tmp_path}/{pattern}"]).files] == ["d.csv"]


def test_headers_with_nothing_behind_them(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\n\n")
    write(tmp_path / "b.tsv", "text\tlabel")
    with pytest.raises(DataError, match=r"a\.csv \(2 file\(s\)\): 0 rows, there is nothing behind the header"):
        plan([str(tmp_path)], need_label=True)
    assert len(plan([str(tmp_path)]).files) == 2, "an archive to score may be empty"
    write(tmp_path / "c.csv", "text,label\nfine,1\n")
    assert len(plan([str(tmp_path)], need_label=True).files) == 3
