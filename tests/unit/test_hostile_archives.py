"""Files made to harm whoever reads them: within stated bounds they are read, beyond them rejected with the reason."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from read_back import TEXT, read_tables

from sentiment.data import byte_stream, json_format, parquet_format, parquet_process, read_plan
from sentiment.data.byte_stream import InputFile, UnreachableError
from sentiment.data.json_format import json_array
from sentiment.data.read_plan import plan
from sentiment.data.schema_inference import MAX_NAME_LENGTH, unique_names
from sentiment.data.validation import UNREADABLE
from sentiment.errors import DataError

FINE = b'{"text": "fine"}\n'


def parquet_bytes(columns: dict[str, Any], **how: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **how)
    return sink.getvalue()


def rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of a folder's files, of which the last is `z.jsonl`; that one was read."""
    (folder / "z.jsonl").write_bytes(FINE)
    reads = plan([str(folder)])
    found = [row for table in read_tables(reads) for row in table.to_pylist()]
    assert (found[-1][TEXT], found[-1]["reason"]) == ("fine", None)
    return found[:-1]


def reasons(folder: Path) -> Counter[str | None]:
    """How often each reason came, but for its beginning."""
    found = Counter(row["reason"] for row in rows(folder))
    return Counter({reason and reason.removeprefix(UNREADABLE): count for reason, count in found.items()})


def test_a_footer_on_which_arrow_aborts_costs_its_file_only(tmp_path: Path) -> None:
    content = parquet_bytes({"text": ["a", "b"], "x": [0.5, 1.5]})
    # As Thrift writes it: the type of a column's values is DOUBLE, and now one that there isn't.
    assert content.count(b"\x15\x0a\x19") == 1
    (tmp_path / "a.parquet").write_bytes(content.replace(b"\x15\x0a\x19", b"\x15\x2a\x19"))
    (tmp_path / "b.parquet").write_bytes(content)
    assert reasons(tmp_path) == {"its parser crashed (SIGABRT)": 2, None: 2}


def wide_nulls(width: int) -> bytes:
    """A file of 8,192 nulls of a fixed size, which Arrow's tables have room for."""
    content = parquet_bytes({"text": ["a"] * 8192, "x": pa.nulls(8192, pa.binary(2))}, store_schema=False)
    # As Thrift writes it: the type FIXED_LEN_BYTE_ARRAY, then its length in base 128, twice the number.
    size = bytes([2 * width & 127 | 128, width >> 6 & 127 | 128, width >> 13])
    before, after = content.split(b"\x15\x0e\x15\x04")
    footer = int.from_bytes(content[-8:-4], "little") + len(size) - 1
    return before + b"\x15\x0e\x15" + size + after[:-8] + footer.to_bytes(4, "little") + b"PAR1"


def test_nulls_of_a_large_fixed_size_take_no_room(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(wide_nulls(1 << 19))
    before = pa.total_allocated_bytes()
    found = rows(tmp_path)
    assert Counter(row["reason"] for row in found) == {f"{UNREADABLE}it takes over 1,024 MiB of memory to read": 8192}
    assert pa.total_allocated_bytes() - before < 64 << 20
    assert plan([str(tmp_path)]).columns.field("x").type == pa.binary()


def test_fixed_sizes_that_are_kept_and_that_are_not(tmp_path: Path) -> None:
    short, long = [1.0, 2.0], [0.5] * 384
    columns = {
        "text": ["a", None],
        "short": pa.array([short, short], pa.list_(pa.float32(), 2)),
        "long": pa.array([long, long], pa.list_(pa.float32(), 384)),
        "id": pa.array([b"x" * 16] * 2, pa.binary(16)),
        "digest": pa.array([b"y" * 128] * 2, pa.binary(128)),
    }
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(columns))
    types = plan([str(tmp_path)]).columns
    assert types.field("short").type.list_size == 2
    assert types.field("long").type == pa.list_(types.field("long").type.value_field)
    assert (types.field("id").type, types.field("digest").type) == (pa.binary(16), pa.binary())
    good, rejected = rows(tmp_path)
    assert [good[name] for name in ("short", "long", "id", "digest")] == [short, long, b"x" * 16, b"y" * 128]
    assert rejected["reason"] == "no text"


def test_a_value_beyond_its_dictionary(tmp_path: Path) -> None:
    """Arrow takes an index from the file as it is, and reads what lies behind the dictionary."""
    texts = pa.array(["a", "b", "c"]).dictionary_encode()
    content = parquet_bytes({"text": texts}, compression="none", write_statistics=False)
    # The indices: 2 bits each, a group of 8 that are written as they are; the last becomes 3.
    assert content.count(b"\x02\x03\x24\x00") == 1
    (tmp_path / "a.parquet").write_bytes(content.replace(b"\x02\x03\x24\x00", b"\x02\x03\x34\x00"))
    assert reasons(tmp_path) == {"a value beyond its dictionary": 3}


def test_one_long_value_many_times_over(tmp_path: Path) -> None:
    """In the file it is there once; in memory, 400 MB."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array(["x" * 1_000_000]))
    content = parquet_bytes({"text": texts}, store_schema=False, compression="zstd", dictionary_pagesize_limit=1 << 21)
    assert len(content) < 1000
    (tmp_path / "a.parquet").write_bytes(content)
    said = "400 rows take over 256 MiB; write it as JSON lines, or without dictionaries"
    assert reasons(tmp_path) == {said: 400}


def test_rows_that_a_few_bytes_claim(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_bytes({"text": pa.nulls(3_000_000, pa.string())}))
    [reason] = reasons(tmp_path)
    assert str(reason).startswith("its footer claims 3,000,000 rows in ")


def test_a_value_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_format, "MAX_VALUE_BYTES", 1000)
    columns = {"text": ["a" * 1000, "b" * 1001, "c"], "x": [b"", None, b"x" * 1001]}
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(columns))
    found = {row[TEXT] and row[TEXT][:1]: row["reason"] for row in rows(tmp_path)[:2]}
    assert found == {"a": None, None: "column 'text' is longer than 0 MiB"}
    assert rows(tmp_path)[2]["reason"] == "column 'x' is longer than 0 MiB"


def test_a_rejected_row_with_a_list_of_millions(tmp_path: Path) -> None:
    """It is shown by its type: as Python's list it would take eighty times as long to make as to read."""
    many = pa.array([list(range(4)), [0] * 2_000_000], pa.list_(pa.int64()))
    (tmp_path / "a.parquet").write_bytes(parquet_bytes({"text": [None, None], "x": many}))
    shown = [json.loads(row["raw"])["x"] for row in rows(tmp_path)]
    assert shown == [[0, 1, 2, 3], "list<element: int64>"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_parquet_file_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    path = tmp_path / {"gzip": "a.parquet.gz", "zstd": "a.parquet.zst"}[compression]
    monkeypatch.setattr(byte_stream, "MAX_INFLATED_BYTES", 8 << 20)
    with pa.CompressedOutputStream(str(path), compression) as out:
        for _ in range(9):
            out.write(bytes(1 << 20))
    said = "it takes over 8 MiB decompressed, as Parquet has to be to be read; decompress it first"
    assert reasons(tmp_path) == {said: 1}
    with pytest.raises(byte_stream.UnreadableError, match="over 8 MiB"):
        byte_stream.open_random_access(InputFile("a", "", str(path), "parquet", compression))


def test_a_compressed_parquet_file_needs_its_end_alone_for_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_stream, "_INFLATED_CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(byte_stream, "MAX_TAIL_BYTES", 1 << 17)
    chance = [os.urandom(500).hex() for _ in range(1000)]
    path = tmp_path / "a.parquet.zst"
    path.write_bytes(pa.compress(parquet_bytes({"text": chance}), codec="zstd", asbytes=True))
    tail, size = byte_stream.inflated_tail(InputFile("a", "", str(path), "parquet", "zstd"))
    assert len(tail) < 200_000 < size
    assert [row[TEXT] for row in rows(tmp_path)] == chance


def table(names: list[str], form: str) -> bytes:
    if form == "parquet":
        return parquet_bytes({name: ["hi"] for name in names})
    return "\n".join([",".join(names), ",".join(["hi"] * len(names))]).encode()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_columns_have_a_number_and_names_a_length(tmp_path: Path, form: str) -> None:
    names = ["text", *(f"c{number}" for number in range(parquet_process.MAX_COLUMNS))]
    (tmp_path / f"a.{form}").write_bytes(table(names[:-1], form))
    (tmp_path / f"b.{form}").write_bytes(table(names, form))
    (tmp_path / f"c.{form}").write_bytes(table(["text", "n" * (MAX_NAME_LENGTH + 1)], form))
    assert reasons(tmp_path) == {
        None: 1,
        "2,001 columns, at most 2,000 are read": 1,
        "a column's name has 1,001 characters, at most 1,000 are accepted": 1,
    }


def test_all_files_together_have_a_number_of_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_plan, "MAX_ALL_COLUMNS", 4)
    (tmp_path / "a.csv").write_bytes(table(["text", "one", "two"], "csv"))
    (tmp_path / "b.csv").write_bytes(table(["text", "three", "four"], "csv"))
    (tmp_path / "c.parquet").write_bytes(parquet_bytes({"text": ["a"], "x": [{"three": 1, "four": 2}]}))
    (tmp_path / "d.jsonl").write_bytes(b'{"tweet": "d", "one": 1, "three": 3}\n')
    (tmp_path / "e.csv").write_bytes(table(["text", "two", "five"], "csv"))
    found = rows(tmp_path)
    assert [row[TEXT] for row in found] == ["hi", None, None, "d", "hi"]
    said = UNREADABLE + "with its columns there are over 4 in all files; read them in several runs"
    assert {row["reason"] for row in found} == {None, said}
    assert (found[3]["one"], json.loads(found[3]["_extra"])) == ("1", {"three": 3})


def test_thousands_of_equal_names_in_a_header() -> None:
    names = unique_names(["a", "a_3", *["a"] * 3, "", ""])
    assert names == ("a", "a_3", "a_2", "a_4", "a_5", "column_6", "column_7")
    assert len(set(unique_names(["text"] * 50_000))) == 50_000  # By comparing each to each it would be an hour.


def endless(start: bytes, again: bytes) -> Iterator[bytes]:
    yield start
    yield from itertools.repeat(again)


def test_an_array_is_read_element_by_element() -> None:
    """There is more of it than fits in memory."""
    pieces = endless(b"[", b'{"text": "a"},\n' * 1000)
    first = list(itertools.islice(json_array(lambda: next(pieces), "utf-8"), 100))
    assert {tuple(value) for records in first for value in records.values} == {("text",)}
    assert [line for records in first for line in records.lines] == list(range(1, sum(map(len, first)) + 1))


def test_an_element_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_format, "MAX_LINE_BYTES", 1 << 17)
    pieces = endless(b'[{"text": "a"},{"x": [', b"{}," * 1000)
    [records] = json_array(lambda: next(pieces), "utf-8")
    assert records.reasons == [None, f"{UNREADABLE}an element longer than 0 MiB"]
    assert len(records.raws[1]) == json_format.KEEP_BYTES


def test_elements_are_found_wherever_a_piece_ends() -> None:
    content = json.dumps([{"text": "a\u00e9😀", "x": [1, {}]}, 12345, -1.5e-3, "s]", None, True], ensure_ascii=False)
    expected = [(1, '{"text"'), *((1, kind) for kind in ("12345", "-0.0015", '"s]"', "null", "true"))]
    for size in range(1, 20):
        read = functools.partial(io.BytesIO(content.encode()).read, size)
        found = [(line, raw) for it in json_array(read, "utf-8") for line, raw in zip(it.lines, it.raws, strict=True)]
        assert [
            (line, raw.decode()[: len(start)]) for (line, raw), (_, start) in zip(found, expected, strict=True)
        ] == expected


def test_a_parser_that_somebody_killed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_bytes({"text": ["a", "b"]}))
    assert reasons(tmp_path) == {None: 2}
    for parser in parquet_format._idle_parsers:
        os.kill(parser.process.pid, signal.SIGKILL)
        parser.process.wait()
    assert reasons(tmp_path) == {None: 2}


def test_a_parser_that_is_killed_at_its_work_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does when memory runs out: the file is read again later."""
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_bytes({"text": ["a"]}))
    with pa.OSFile(str(path)) as stored, parquet_format.ParquetFile(stored, *parquet_format.tail_of(stored), 1) as file:
        os.kill(file.parser.process.pid, signal.SIGKILL)
        with pytest.raises(UnreachableError, match="killed or stopped"):
            file.batch(0, 1, 0)
    with pytest.raises(DataError, match="mend that"), monkeypatch.context() as patch:
        patch.setattr(parquet_format, "_PARSER_TIMEOUT_S", 0.2)
        patch.setattr(parquet_format, "_free_parser", stopped_parser)
        plan([str(path)])
    assert plan([str(path)]).files[0].problem is None


def stopped_parser() -> parquet_format._Parser:
    parser = parquet_format._Parser()
    os.kill(parser.process.pid, signal.SIGSTOP)
    return parser


def test_time_that_a_parser_takes_is_bounded(tmp_path: Path) -> None:
    """A process that was given 20 s of CPU time and took them is ended by the kernel, which says so."""
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_bytes({"text": ["a"]}))
    with pa.OSFile(str(path)) as stored, parquet_format.ParquetFile(stored, *parquet_format.tail_of(stored), 1) as file:
        os.kill(file.parser.process.pid, signal.SIGXCPU)
        with pytest.raises(byte_stream.UnreadableError, match="over 20 s of CPU time"):
            file.batch(0, 1, 0)


@pytest.mark.parametrize("form", mutants.FORMATS)
def test_a_few_mutants_of_each_format(tmp_path: Path, form: str) -> None:
    """`make chaos` reads ten thousand."""
    path = tmp_path / f"a.{form}"
    for number in range(8):
        path.write_bytes(mutants.mutant(form, number))
        assert mutants.outcome(path).keys() & {"refused", "rows"}, number
