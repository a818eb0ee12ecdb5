"""Shards: which rows one holds follows from the archive alone, whatever was done before and isn't read again."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentiment.data import imdb_format, parquet_format, sharding, text_records
from sentiment.data.byte_stream import InputFile
from sentiment.data.formats import read_file
from sentiment.data.parquet_format import ParquetFile
from sentiment.data.read_plan import ReadPlan, plan
from sentiment.data.sharding import Shard, default_rows, group_files, replace_file, shard_name, shards_of

RANDOM = random.Random(7)
# Not the same length, and hard to compress: so that damage in the middle costs rows before and after it.
TEXTS = [f"{number} " + RANDOM.randbytes(RANDOM.randrange(4, 40)).hex() for number in range(300)]


def put(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def csv_text(texts: list[str], delimiter: str = ",") -> str:
    return f"id{delimiter}text\n" + "".join(f"{at}{delimiter}{text}\n" for at, text in enumerate(texts))


def jsonl_text(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text, "id": at}) + "\n" for at, text in enumerate(texts))


def parquet_file(folder: Path, name: str, rows_per_group: int = 47, texts: list[str] = TEXTS) -> Path:
    table = pa.table({"text": texts, "id": range(len(texts))})
    pq.write_table(table, folder / name, row_group_size=rows_per_group, compression="gzip", use_dictionary=False)
    return folder / name


def damage(path: Path, row_group: int) -> None:
    """Overwrite a row group's compressed texts."""
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(row_group).column(0).data_page_offset
    content[start + 60 : start + 160] = b"\xff" * 100
    path.write_bytes(bytes(content))


def reviews(folder: Path) -> None:
    for at, text in enumerate(TEXTS[:60]):
        part = ("train/pos", "train/neg", "test/pos")[at % 3]
        put(folder, f"{part}/{at}_{at % 10}.txt", b"caf\xe9" if at == 31 else text)


def many_small(folder: Path) -> None:
    for at in range(8):
        put(folder, f"{at}.csv", csv_text(TEXTS[at * 10 : at * 11]))  # The first one has a header and no rows.
        put(folder, f"{at}.jsonl.gz", gzip.compress(jsonl_text(TEXTS[at : at + 9]).encode()))
        parquet_file(folder, f"{at}.parquet", 5, TEXTS[at : at + 12])
        put(folder, f"test/pos/{at}_1.txt", "nice")
    put(folder, "bad.csv.gz", b"not gzip at all")


def damaged_gzip(folder: Path) -> None:
    whole = gzip.compress(csv_text(TEXTS).encode())
    put(folder, "a.csv.gz", whole[: len(whole) * 2 // 3])
    put(folder, "b.csv", csv_text(TEXTS[:20]))


def damaged_page(folder: Path) -> None:
    """A row group whose first rows can be read and whose last ones can't."""
    path = folder / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, use_dictionary=False, data_page_size=500, write_batch_size=10)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = b"\xff" * 100
    path.write_bytes(bytes(content))


BROKEN = ["fine", '"over\ntwo lines"', '"never closed', "caf\udce9", "too,many", ""]
BROKEN_CSV = csv_text([*TEXTS[:100], *BROKEN, *TEXTS[100:]]).encode("utf-8", "surrogateescape")
BROKEN_JSONL = jsonl_text(TEXTS[:150]) + '[]\n\n{"text"\n' + jsonl_text(TEXTS[150:])
# Archive → what makes it in a folder, and its rows where that is known.
ARCHIVES: dict[str, tuple[Callable[[Path], object], int | None]] = {
    "csv": (lambda folder: put(folder, "a.csv", BROKEN_CSV), 306),
    "tsv": (lambda folder: put(folder, "a.tsv", csv_text(TEXTS, "\t")), 300),
    "jsonl": (lambda folder: put(folder, "a.jsonl", BROKEN_JSONL), 302),
    "json array": (lambda folder: put(folder, "a.json", json.dumps([{"text": text} for text in TEXTS])), 300),
    "jsonl.gz": (lambda folder: put(folder, "a.jsonl.gz", gzip.compress(jsonl_text(TEXTS).encode())), 300),
    "parquet": (lambda folder: parquet_file(folder, "a.parquet"), 300),
    "reviews": (reviews, 60),
    "many small": (many_small, sum(range(8)) + 8 * (9 + 12 + 1) + 1),
    "damaged gzip": (damaged_gzip, None),
    "no footer": (lambda folder: put(folder, "a.parquet", parquet_file(folder, "b.parquet").read_bytes()[:-9]), 301),
    "damaged row group": (lambda folder: damage(parquet_file(folder, "a.parquet"), 3), 300),
    "damaged page": (damaged_page, 300),
}
# Name of a way to cut → rows of a shard.
CUTS = {"small": 40, "several pieces": 67, "one": 1000, "bytes": 1000}
each_archive = pytest.mark.parametrize("name", ARCHIVES)


def cut_as(cut: str, patch: pytest.MonkeyPatch) -> int:
    """Set the bounds of pieces and shards; returns rows of a shard."""
    if cut == "several pieces":
        patch.setattr(sharding, "ROWS_PER_BATCH", 20)
    if cut == "bytes":
        patch.setattr(sharding, "BYTES_PER_SHARD", 1500)
        patch.setattr(text_records, "READ_BYTES", 256)
        for module in (text_records, parquet_format, imdb_format):
            patch.setattr(module, "BYTES_PER_BATCH", 700)
    return CUTS[cut]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ReadPlan]:
    made = {}
    for name, (make, _) in ARCHIVES.items():
        folder = tmp_path_factory.mktemp("archive")
        make(folder)
        made[name] = plan([str(folder)])
    return made


@pytest.fixture(params=CUTS)
def rows_per_shard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    return cut_as(request.param, monkeypatch)


def same(shard: Shard, other: Shard) -> bool:
    """Whether nothing about two shards differs."""
    facts = ("name", "group", "number", "is_last", "stored_bytes")
    return all(getattr(shard, fact) == getattr(other, fact) for fact in facts) and shard.table.equals(other.table)


Group = tuple[int, ReadPlan]


def groups_of(read_plan: ReadPlan) -> list[Group]:
    return list(group_files(read_plan).items())


def check_resumed(group: Group, rows: int, whole: list[Shard], done: Collection[int]) -> None:
    left = [shard for shard in whole if shard.number not in done]
    resumed = list(shards_of(*group, rows, done))
    assert [shard.number for shard in resumed] == [shard.number for shard in left], done
    assert all(map(same, resumed, left)), done


@each_archive
def test_each_row_is_in_one_shard_in_order(plans: dict[str, ReadPlan], name: str, rows_per_shard: int) -> None:
    read_plan, count = plans[name], ARCHIVES[name][1]
    cut = [shard for group in groups_of(read_plan) for shard in shards_of(*group, rows_per_shard)]
    table = pa.concat_tables(shard.table for shard in cut)
    whole = pa.concat_tables(part for file in read_plan.files for part in read_file(file, read_plan))
    # How much of a damaged row group can be read hangs on the size of pieces.
    columns = ["source_file", "source_row", "line"] if name == "damaged page" else whole.column_names
    assert table.select(columns).equals(whole.select(columns))
    assert count is None or table.num_rows == count
    by_file = Counter(table["source_file"].to_pylist())
    assert list(by_file) == [file.path for file in read_plan.files if file.path in by_file]
    assert table["source_row"].to_pylist() == [row for rows in by_file.values() for row in range(rows)]
    assert len({shard.name for shard in cut}) == len(cut)


@each_archive
def test_last_shards_say_so_and_no_other(plans: dict[str, ReadPlan], name: str, rows_per_shard: int) -> None:
    for group in groups_of(plans[name]):
        whole = list(shards_of(*group, rows_per_shard))
        assert [shard.number for shard in whole] == list(range(len(whole)))
        assert [shard.is_last for shard in whole] == [False] * (len(whole) - 1) + [True]


@each_archive
def test_stored_bytes_add_up(plans: dict[str, ReadPlan], name: str, rows_per_shard: int) -> None:
    for group in groups_of(plans[name]):
        assert sum(shard.stored_bytes for shard in shards_of(*group, rows_per_shard)) == group[1].size_bytes


@each_archive
def test_what_is_done_changes_nothing_of_the_rest(plans: dict[str, ReadPlan], name: str, rows_per_shard: int) -> None:
    for group in groups_of(plans[name]):
        whole = list(shards_of(*group, rows_per_shard))
        count = len(whole)
        prefixes = [range(end) for end in range(count + 1)]
        for done in (*prefixes, range(0, count, 2), range(1, count, 2), [count - 1], range(1, count)):
            check_resumed(group, rows_per_shard, whole, done)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(ARCHIVES)), st.sampled_from(list(CUTS)), st.sets(st.integers(0, 20)))
def test_any_shards_may_be_done(plans: dict[str, ReadPlan], name: str, cut: str, done: set[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        rows = cut_as(cut, patch)
        for group in groups_of(plans[name]):
            check_resumed(group, rows, list(shards_of(*group, rows)), done)


def test_shards_are_cut_by_rows_or_by_bytes(plans: dict[str, ReadPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    [group] = groups_of(plans["tsv"])
    assert [shard.table.num_rows for shard in shards_of(*group, 67)] == [67, 67, 67, 67, 32]
    for name in ("tsv", "jsonl.gz", "parquet", "reviews"):
        with monkeypatch.context() as patch:
            [group] = groups_of(plans[name])
            sizes = [shard.table["text"].nbytes for shard in shards_of(*group, cut_as("bytes", patch))]
            assert len(sizes) > 1, name
            assert max(sizes) < 4000, name


def test_an_archive_behind_a_uri() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/shards_test/a.jsonl.gz", gzip.compress(jsonl_text(TEXTS).encode()))
    pq.write_table(pa.table({"text": TEXTS}), "/shards_test/b.parquet", row_group_size=70, filesystem=memory)
    read_plan = plan(["memory://shards_test"])
    [group] = groups_of(read_plan)
    whole = list(shards_of(*group, 100))
    assert [shard.table.num_rows for shard in whole] == [100, 100, 100, 140, 140, 20]
    for done in ({0}, {1, 3, 5}, {0, 1, 2, 3}):
        check_resumed(group, 100, whole, done)


def test_a_footer_lost_after_the_plan_was_made(tmp_path: Path) -> None:
    path = parquet_file(tmp_path, "a.parquet")
    parquet_file(tmp_path, "b.parquet")
    read_plan = plan([str(tmp_path)])
    path.write_bytes(path.read_bytes()[:-20])
    [group] = groups_of(read_plan)
    whole = list(shards_of(*group, 100))
    assert sum(shard.table.num_rows for shard in whole) == 301
    check_resumed(group, 100, whole, {1})


def test_files_of_no_rows_are_seen_to_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.csv", "id,text\n")
    put(tmp_path, "b.csv", csv_text(TEXTS))
    monkeypatch.setattr(sharding, "_GROUP_BYTES", 1)
    read_plan = plan([str(tmp_path)])
    empty, _ = groups_of(read_plan)
    [shard] = shards_of(*empty, 100)
    assert (shard.number, shard.is_last, shard.table.num_rows) == (0, True, 0)
    assert shard.table.schema == read_plan.schema
    assert list(shards_of(*empty, 100, {0})) == []


def test_row_groups_that_are_done_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(parquet_file(tmp_path, "a.parquet", 100), 1)
    read_plan = plan([str(tmp_path)])
    [group] = groups_of(read_plan)
    read: list[int] = []
    batch = ParquetFile.batch

    def spy(file: ParquetFile, group: int, rows: int, start: int) -> pa.RecordBatch | None:
        read.append(group)
        return batch(file, group, rows, start)

    monkeypatch.setattr(ParquetFile, "batch", spy)
    rejected = {shard.number: 100 - shard.table["reason"].null_count for shard in shards_of(*group, 100)}
    assert (rejected, read) == ({0: 0, 1: 100, 2: 0}, [0, 1, 2])
    read.clear()
    assert [shard.number for shard in shards_of(*group, 100, {1})] == [0, 2]
    assert read == [0, 2]


def of_sizes(*sizes: int) -> ReadPlan:
    """A plan of files that are nowhere."""
    source = InputFile("", "", "", "csv", columns=("text",), has_header=True, text_column="text")
    made = [dataclasses.replace(source, path=f"{at:05d}.csv", size_bytes=size) for at, size in enumerate(sizes)]
    return ReadPlan(tuple(made), pa.schema([("text", pa.string())]), ("text",))


def test_small_files_share_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "_GROUP_BYTES", 100)
    monkeypatch.setattr(sharding, "_GROUP_FILES", 4)
    read_plan = of_sizes(60, 40, 1, 500, 1, -1, 99, 1, *[1] * 9)
    groups = group_files(read_plan)
    assert [[file.size_bytes for file in group.files] for group in groups.values()] == [
        [60, 40], [1], [500], [1, -1, 99], [1] * 4, [1] * 4, [1, 1]
    ]  # fmt: skip
    assert list(groups) == list(range(7))
    assert [group.size_bytes for group in groups.values()] == [100, 1, 500, 100, 4, 4, 2]
    assert tuple(itertools.chain.from_iterable(group.files for group in groups.values())) == read_plan.files
    monkeypatch.undo()
    assert [len(group.files) for group in group_files(of_sizes(*[1] * 2500)).values()] == [1000, 1000, 500]


def test_default_rows_of_a_shard() -> None:
    sizes = [0, 1, 10**6, 10**8, 10**9, 3 * 10**9, 10**10, 10**12, 10**15]
    for actors, is_remote in itertools.product((1, 2, 16, 1000), (False, True)):
        rows = [default_rows(of_sizes(size, -1), actors, is_remote=is_remote) for size in sizes]
        assert rows == sorted(rows)
        assert all(count.bit_count() == 1 for count in rows)
        # A store takes a while for each file.
        assert (rows[0], rows[-1]) == (16_384 if is_remote else 4096, 262_144)
    assert default_rows(of_sizes(10**10), 64) < default_rows(of_sizes(10**10), 8)


def test_names_sort_as_rows_do() -> None:
    numbers = [(0, 0), (0, 9), (0, 10), (1, 0), (10, 2), (10, 11), (99_999, 999_999)]
    assert [shard_name(*pair) for pair in numbers] == sorted(shard_name(*pair) for pair in numbers)


def test_a_file_that_is_replaced_gives_its_group_new_names(tmp_path: Path) -> None:
    """What was made of it before, or still is by somebody, is cut otherwise than what is made of it now."""
    for name in "abc":
        put(tmp_path, f"{name}.csv", csv_text(TEXTS))
    reads = plan([str(tmp_path)])
    groups = {number: reads.with_files([file]) for number, file in enumerate(reads.files)}
    bad = dataclasses.replace(reads.files[1], problem="it kills")
    replaced = replace_file(groups, bad)
    assert list(replaced) == [0, 3, 2]
    assert [group.files for group in replaced.values()] == [(reads.files[0],), (bad,), (reads.files[2],)]
    (shard,) = shards_of(3, replaced[3], 100)
    assert shard.table["reason"].to_pylist() == ["file can't be read on: it kills"]
    assert list(replace_file(replaced, bad)) == [0, 4, 2]
