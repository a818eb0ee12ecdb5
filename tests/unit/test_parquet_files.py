"""Scored shards on disk: what was written can be read, what was reported is held against it, and nothing else stays."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from sentiment.data.parquet_writer import ParquetWriter
from sentiment.errors import ConfigError, DataError, SentimentError
from sentiment.scoring.run_state import (
    HISTOGRAM_BINS,
    REPORTS,
    ShardReport,
    check_parquet_files,
    read_reports,
    write_report,
)
from sentiment.storage.output_directory import OutputDirectory
from sentiment.storage.uris import is_uri

SCHEMA = pa.schema([pa.field("text", pa.string(), nullable=False), ("label", pa.string()), ("score", pa.float32())])
REJECTED = pa.schema([("reason", pa.string())])
SCORED_PART, REJECTED_PART = (f"{name}/part-000003-000007-0a1b2c3d.parquet" for name in ("scored", "rejected"))
ROWS = pa.table({"text": ["a", "größer 🙂", "c"], "label": ["NEGATIVE", "POSITIVE", None], "score": [0.5, 0.75, 1.0]})
REASONS = pa.table({"reason": ["no text", "no text"], "raw": ["x", "y"]})


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> OutputDirectory:
    """A folder that isn't there yet, on the disk or behind an fsspec URI."""
    return OutputDirectory(str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}/out")


TAG = "0a1b2c3d"
UNIT = f"000003-000007-{TAG}"
FIRST = f"000000-000000-{TAG}"


def writer(folder: OutputDirectory, schema: pa.Schema = SCHEMA, partition_by: tuple[str, ...] = ()) -> ParquetWriter:
    return ParquetWriter(folder, {"scored": schema, "rejected": REJECTED}, partition_by)


def there(folder: OutputDirectory) -> list[str]:
    found = folder.fs.get_file_info(pafs.FileSelector(folder.base, recursive=True, allow_not_found=True))
    return sorted(info.path.removeprefix(folder.base + "/") for info in found if info.type == pafs.FileType.File)


def size_of(folder: OutputDirectory, path: str) -> int:
    return int(folder.fs.get_file_info(folder.inner(path)).size)


def read_hive(folder: OutputDirectory, partitions: pa.Schema | None = None) -> pa.Table:
    how = "hive" if partitions is None else ds.partitioning(partitions, flavor="hive")
    return ds.dataset(folder.inner("scored"), filesystem=folder.fs, partitioning=how).to_table()


def a_report(seed: int) -> ShardReport:
    return ShardReport(
        group=seed,
        number=2 * seed,
        is_last=seed % 2 == 0,
        stored_bytes=10 * seed,
        scored=3 * seed,
        rejected=seed,
        labels={"NEGATIVE": seed, "POSITIVE": 2 * seed},
        histogram=[seed] * HISTOGRAM_BINS,
        reasons={"no text": seed, f"größer {seed}": 1},
        files={"a.csv": [seed, 1], f"{seed}.csv": [3 * seed, seed - 1]},
        parquet_files={f"scored/part-{seed}.parquet": (3 * seed, 900 + seed)},
    )


def test_a_shard_is_written_and_read(folder: OutputDirectory) -> None:
    parts = writer(folder).write(UNIT, {"scored": ROWS, "rejected": REASONS})
    assert parts == {path: (rows, size_of(folder, path)) for path, rows in ((SCORED_PART, 3), (REJECTED_PART, 2))}
    assert there(folder) == sorted(parts)
    with folder.fs.open_input_file(folder.inner(SCORED_PART)) as file:
        table = pq.read_table(file)
    assert table.schema == SCHEMA
    assert table.equals(ROWS.cast(SCHEMA))
    with folder.fs.open_input_file(folder.inner(REJECTED_PART)) as file:
        assert pq.read_table(file).to_pydict() == {"reason": ["no text"] * 2}
    check_parquet_files(folder, ("scored", "rejected"), parts)


def test_a_shard_written_twice_leaves_the_same_files(folder: OutputDirectory) -> None:
    for _ in range(2):
        parts = writer(folder, partition_by=("label",)).write(UNIT, {"scored": ROWS, "rejected": REASONS})
        write_report(folder, TAG, a_report(1))
        assert there(folder) == sorted([*parts, f"{REPORTS}/000001-000002-{TAG}.json"])
    assert sorted(read_hive(folder)["text"].to_pylist()) == sorted(ROWS["text"].to_pylist())


def test_subfolders_are_there_but_no_empty_files(folder: OutputDirectory) -> None:
    writer(folder).make_folders(REPORTS)
    assert there(folder) == []
    found = folder.fs.get_file_info([folder.inner(name) for name in ("scored", "rejected", REPORTS)])
    assert [info.type for info in found] == [pafs.FileType.Directory] * 3
    parts = writer(folder).write(UNIT, {"scored": ROWS.slice(0, 0), "rejected": REASONS})
    assert there(folder) == list(parts) == [REJECTED_PART]
    assert (
        writer(folder).write(f"000003-000008-{TAG}", {"scored": ROWS.slice(0, 0), "rejected": REASONS.slice(0, 0)})
        == {}
    )


def test_a_stream_of_rows_becomes_one_file_with_full_row_groups(folder: OutputDirectory) -> None:
    numbers = pa.schema([("number", pa.int64())])
    stream = ParquetWriter(folder, {"train": numbers, "test": numbers}, rows_per_group=100)
    pieces = [
        pa.table({"number": range(start, start + rows)}) for start, rows in ((0, 30), (30, 0), (30, 90), (120, 230))
    ]
    written = stream.write_stream("7", ({"train": piece, "test": piece.slice(0, 0)} for piece in pieces))
    path = "train/part-7.parquet"
    assert written == {path: (350, size_of(folder, path))}
    assert there(folder) == [path]
    with folder.fs.open_input_file(folder.inner(path)) as opened, pq.ParquetFile(opened) as file:
        assert [file.metadata.row_group(group).num_rows for group in range(4)] == [100, 100, 100, 50]
        assert file.read()["number"].to_pylist() == list(range(350))


def test_a_stream_of_rows_is_held_compressed(tmp_path: Path) -> None:
    """In bytes that Arrow has allocated whenever the next rows are asked for."""
    held: list[int] = []

    def pieces() -> Iterator[dict[str, pa.Table]]:
        for _ in range(50):
            held.append(pa.total_allocated_bytes())
            yield {"train": pa.table({"text": pa.array(["a long text " * 100] * 250)})}

    schemas = {"train": pa.schema([("text", pa.string())])}
    stream = ParquetWriter(OutputDirectory(str(tmp_path)), schemas, rows_per_group=1000)
    assert stream.write_stream("0", pieces())["train/part-0.parquet"][0] == 50 * 250
    # Of 15 MB a row group, 1.2 MB, and a piece.
    assert max(held) - held[0] < 3e6


@pytest.mark.parametrize(
    "values",
    [
        ["b", None, "", "a/b", "c=d", "two words", "größer 🙂", "50%41", "..", "?#&+\\", "b", 'quo"te', "new\nline"],
        [3, None, -1, 2**31 - 1, 3],
        [True, False, None],
    ],
)
def test_partitions_read_back_equal(folder: OutputDirectory, values: list[Any]) -> None:
    table = pa.table({"row": range(len(values)), "kind": values})
    parts = writer(folder, table.schema, ("kind",)).write(FIRST, {"scored": table})
    assert sum(rows for rows, _ in parts.values()) == len(values)
    # Hive's folders can't tell "" from null, and pyarrow reads booleans as strings unless it is told.
    expected = [str(value).lower() if isinstance(value, bool) else value or None for value in values]
    assert read_hive(folder).sort_by("row")["kind"].to_pylist() == expected
    check_parquet_files(folder, ("scored",), parts)


def test_partitions_of_two_columns_and_a_reader_that_knows_the_types(folder: OutputDirectory) -> None:
    table = pa.table({"text": ["a", "b", "c", "d"], "day": ["007", "007", "1", "1"], "on": [True, True, True, False]})
    parts = writer(folder, table.schema, ("day", "on")).write(FIRST, {"scored": table, "rejected": REASONS})
    names = {"scored/day=007/on=true": 2, "scored/day=1/on=true": 1, "scored/day=1/on=false": 1, "rejected": 2}
    assert {path: rows for path, (rows, _) in parts.items()} == {
        f"{name}/part-000000-000000-0a1b2c3d.parquet": rows for name, rows in names.items()
    }
    partitions = pa.schema([("day", pa.string()), ("on", pa.bool_())])
    assert read_hive(folder, partitions).sort_by("text").equals(table)


@pytest.mark.parametrize("name", ["two words", "größer", "a/b", "a=b", "50%41", "_kind"])
def test_columns_of_any_name_can_be_partitions(tmp_path: Path, name: str) -> None:
    table = pa.table({"text": ["a", "b"], name: ["x", "y"]})
    folder = OutputDirectory(str(tmp_path))
    writer(folder, table.schema, (name,)).write(FIRST, {"scored": table})
    assert read_hive(folder).sort_by("text").equals(table)


def test_a_column_given_twice_costs_no_other_column(tmp_path: Path) -> None:
    table = pa.table({"kind": ["x", "y"], "text": ["a", "b"]})
    folder = OutputDirectory(str(tmp_path))
    writer(folder, table.schema, ("kind", "kind")).write(FIRST, {"scored": table})
    assert sorted(read_hive(folder)["text"].to_pylist()) == ["a", "b"]


def test_too_many_partitions(folder: OutputDirectory) -> None:
    table = pa.table({"text": ["a"] * 1000, "user": [f"user {at % 257}" for at in range(1000)]})
    with pytest.raises(ConfigError, match=r"--partition-by user: 257 folders for 1,000 rows, at most 256") as refused:
        writer(folder, table.schema, ("user",)).write(FIRST, {"scored": table})
    assert "user 1" not in str(refused.value)
    assert there(folder) == []
    some = table.filter(pc.not_equal(table["user"], "user 0"))
    assert len(writer(folder, table.schema, ("user",)).write(FIRST, {"scored": some})) == 256


def test_partitions_with_long_names(folder: OutputDirectory) -> None:
    table = pa.table({"text": ["a", "b"], "topic": ["short", "é" * 60]})
    with pytest.raises(ConfigError, match=r"a folder's name of 366 characters, at most 255") as refused:
        writer(folder, table.schema, ("topic",)).write(FIRST, {"scored": table})
    assert "é" not in str(refused.value)


def test_partitions_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    """What the actor can't pass on as a value comes out as a traceback."""
    table = pa.table({"text": ["a"], "hash": [b"\xff"]})
    with pytest.raises(SentimentError, match="hash"):
        writer(OutputDirectory(str(tmp_path)), table.schema, ("hash",)).write(FIRST, {"scored": table})


def test_reports_are_read_back_in_order(folder: OutputDirectory) -> None:
    assert read_reports(folder, TAG) == []
    for seed in (3, 1, 2):
        write_report(folder, TAG, a_report(seed))
    folder.write_text(f"{REPORTS}/.000001-000000-{TAG}.json.1f.tmp", "left by a killed process")
    # Of a run that was replaced, by a process that should be dead.
    folder.write_text(f"{REPORTS}/000001-000001-0f0f.json", "{}")
    assert read_reports(folder, TAG) == [a_report(1), a_report(2), a_report(3)]


@pytest.mark.parametrize(
    "content", [b'{"group": 1, "numb', b"", b"[]", b"null", b"{}", b'{"parquet_files": {}, "other": 1}', b'"\xff"']
)
def test_a_damaged_report(folder: OutputDirectory, content: bytes) -> None:
    write_report(folder, TAG, a_report(1))
    folder.write_bytes(f"{REPORTS}/000001-000001-{TAG}.json", content)
    path = f"{folder.uri}/_run/done/000001-000001-{TAG}"
    with pytest.raises(DataError, match=rf"^{path}\.json can't be read .*; remove it"):
        read_reports(folder, TAG)


def test_reports_add_up() -> None:
    total, one, two = ShardReport(), a_report(1), a_report(2)
    total.add(one)
    assert dataclasses.replace(total, group=1, number=2) == one
    total.add(two)
    assert total == ShardReport(
        stored_bytes=30,
        scored=9,
        rejected=3,
        labels={"NEGATIVE": 3, "POSITIVE": 6},
        histogram=[3] * HISTOGRAM_BINS,
        reasons={"no text": 3, "größer 1": 1, "größer 2": 1},
        files={"a.csv": [3, 2], "1.csv": [3, 0], "2.csv": [6, 1]},
        parquet_files={"scored/part-1.parquet": (3, 901), "scored/part-2.parquet": (6, 902)},
    )
    assert next(iter(total.reasons)) == "no text"
    assert (one, two) == (a_report(1), a_report(2))


@pytest.fixture
def parts(folder: OutputDirectory) -> dict[str, tuple[int, int]]:
    return writer(folder).write(UNIT, {"scored": ROWS, "rejected": REASONS})


def test_files_that_are_not_what_was_reported(folder: OutputDirectory, parts: dict[str, tuple[int, int]]) -> None:
    def refused(said: str, expected: dict[str, tuple[int, int]] = parts) -> None:
        with pytest.raises(DataError, match=rf"{said}.*Remove the reports .* run again"):
            check_parquet_files(folder, ("scored", "rejected"), expected)

    whole = folder.read(SCORED_PART)
    refused(rf"{SCORED_PART} has 3 rows, not 1,004", {**parts, SCORED_PART: (1004, 1)})
    for broken in (whole[:-8], whole[: len(whole) // 2], b""):
        folder.write_bytes(SCORED_PART, broken)
        refused(rf"{SCORED_PART} can't be read \(\w+\)")
    folder.fs.delete_file(folder.inner(SCORED_PART))
    refused(f"{SCORED_PART} is missing")
    refused(f"{SCORED_PART} is missing; {REJECTED_PART} has 2 rows, not 7", {**parts, REJECTED_PART: (7, 1)})
    folder.write_bytes(SCORED_PART, whole)
    check_parquet_files(folder, ("scored", "rejected"), parts)


def test_a_file_of_the_right_size_with_nothing_in_it(
    folder: OutputDirectory, parts: dict[str, tuple[int, int]]
) -> None:
    """As a disk may have it that lost its power: files are opened there, while a store is only listed."""
    folder.write_bytes(SCORED_PART, bytes(parts[SCORED_PART][1]))
    if is_uri(folder.uri):
        check_parquet_files(folder, ("scored", "rejected"), parts)
    else:
        with pytest.raises(DataError, match=rf"{SCORED_PART} can't be read"):
            check_parquet_files(folder, ("scored", "rejected"), parts)


def test_the_same_rows_packed_otherwise(folder: OutputDirectory, parts: dict[str, tuple[int, int]]) -> None:
    """By another attempt at the shard, on another machine."""
    sink = pa.BufferOutputStream()
    pq.write_table(ROWS.cast(SCHEMA), sink, compression="none")
    content = sink.getvalue()
    assert content.size != parts[SCORED_PART][1]
    folder.write_bytes(SCORED_PART, content)
    check_parquet_files(folder, ("scored", "rejected"), parts)


def test_foreign_files_are_refused_and_kept(folder: OutputDirectory, parts: dict[str, tuple[int, int]]) -> None:
    for name in ("scored/notes.txt", "rejected/deep/part-1.parquet"):
        folder.write_text(name, "mine")
        with pytest.raises(DataError, match=f"^{folder.uri}/{name} was not written by this run"):
            check_parquet_files(folder, ("scored", "rejected"), parts)
        assert folder.read(name) == b"mine"
        folder.fs.delete_file(folder.inner(name))


def test_leftovers_are_removed(folder: OutputDirectory, parts: dict[str, tuple[int, int]]) -> None:
    folder.write_text("scored/.part-000003-000007-0a1b2c3d.parquet.5e.tmp", "half of")
    folder.write_bytes("scored/label=x/part-000003-000007-ffffffff.parquet", folder.read(SCORED_PART))
    folder.write_bytes("rejected/part-000000-000000-0a1b2c3d.parquet", b"of a shard that has no report")
    folder.write_text("notes.txt", "beside")
    check_parquet_files(folder, ("scored", "rejected"), parts)
    assert there(folder) == sorted(["notes.txt", *parts])


def test_checks_hold_for_paths_that_go_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = OutputDirectory("../out/")
    check_parquet_files(folder, ("scored",), writer(folder).write(FIRST, {"scored": ROWS}))
    assert len(there(OutputDirectory(str(tmp_path / "out")))) == 1


class FullDisk(MemoryFileSystem):  # type: ignore[misc]
    """Takes three bytes of a file."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> MemoryFile:
        file = super()._open(path, mode, **options)

        def write(content: bytes) -> int:
            MemoryFile.write(file, bytes(content)[:3])
            raise OSError(28, "No space left on device")

        if mode == "wb":
            file.write = write
        return file


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    full = OutputDirectory(f"memory://{uuid.uuid4().hex}/out")
    full.write_bytes("deep/er/a.bin", b"before")
    full.fs = pafs.PyFileSystem(pafs.FSSpecHandler(FullDisk()))
    for name in ("deep/er/a.bin", "deep/b.bin", "c.bin"):
        with pytest.raises(OSError, match="No space left"):
            full.write_bytes(name, b"after")
    assert there(full) == ["deep/er/a.bin"]
    assert full.read("deep/er/a.bin") == b"before"
    local = OutputDirectory(str(tmp_path))
    local.write_bytes("deep/er/a.bin", b"in the way")
    with pytest.raises(OSError, match="deep"):
        local.write_bytes("deep", b"a folder has that name")
    assert there(local) == ["deep/er/a.bin"]


def test_files_are_whole_and_their_folders_made(folder: OutputDirectory) -> None:
    content = bytes(range(256)) * 20_000
    for written in (content, pa.py_buffer(content), b""):
        folder.write_bytes("deep/er/a.bin", written)
        assert folder.read("deep/er/a.bin") == bytes(written)
    assert there(folder) == ["deep/er/a.bin"]
