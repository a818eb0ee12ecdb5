"""Compressed files with a bit flipped: what came before the damage is read, and the damage is told of in one row."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from read_back import TEXT, read_tables

from sentiment.data.byte_stream import READ_BYTES, ByteStream, InputFile, UnreadableError
from sentiment.data.read_plan import plan
from sentiment.data.validation import UNREADABLE


def lines(count: int) -> bytes:
    chance = random.Random(5)
    return b"".join(b'{"text": "tweet %d %d"}\n' % (row, chance.getrandbits(40)) for row in range(count))


def flipped(content: bytes, at: int, bit: int = 4) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def rows(*paths: Path | str) -> list[dict[str, object]]:
    read_plan = plan([str(path) for path in paths])
    return [row for table in read_tables(read_plan) for row in table.to_pylist()]


def gzip_in_two_blocks(before: bytes, after: bytes) -> tuple[bytes, int]:
    """An archive and the place in it where `after` begins."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = deflate.compress(before) + deflate.flush(zlib.Z_FULL_FLUSH)
    return first + deflate.compress(after) + deflate.flush(), len(first)


@pytest.mark.parametrize("count", [100, 60_000])
def test_a_flipped_bit_in_the_middle_costs_what_comes_after_it(tmp_path: Path, count: int) -> None:
    content = lines(count)
    half = content.index(b"\n", len(content) // 2) + 1
    packed, middle = gzip_in_two_blocks(content[:half], content[half:])
    # The bit makes a type of block that isn't one, and nothing can be made of the rest.
    (tmp_path / "a.jsonl.gz").write_bytes(flipped(packed, middle, bit=1))
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "fine"}\n')
    *kept, broken, fine = rows(tmp_path)
    assert [row[TEXT] for row in kept] == [json.loads(line)["text"] for line in content[:half].splitlines()]
    assert (broken["line"], broken["source_row"]) == (len(kept) + 1, len(kept))
    assert broken["reason"] == UNREADABLE + "zlib inflate failed: invalid block type"
    assert fine[TEXT] == "fine"


def test_any_flipped_bit_leaves_what_can_be_decompressed_and_one_row_about_it(tmp_path: Path) -> None:
    """Behind the bit texts may be garbled before that shows: zlib, fed byte by byte, says what there is to be read."""
    packed, chance = gzip.compress(lines(100)), random.Random(9)
    for _ in range(60):
        damaged = flipped(packed, chance.randrange(len(packed) // 4, len(packed)), chance.randrange(8))
        inflate, readable = zlib.decompressobj(31), bytearray()
        with pytest.raises(zlib.error):
            for byte in damaged:
                readable += inflate.decompress(bytes([byte]))
            raise zlib.error("as good as damaged: the end is missing")
        (tmp_path / "a.jsonl.gz").write_bytes(damaged)
        found = rows(tmp_path)
        assert len(found) == sum(bool(line.strip(b" \t\r")) for line in readable.split(b"\n")[:-1]) + 1
        assert [str(row["reason"]).startswith(UNREADABLE) for row in found] == [False] * (len(found) - 1) + [True]


@pytest.mark.parametrize("count", [3, 3000, 60_000])
def test_a_wrong_checksum_costs_no_row(tmp_path: Path, count: int) -> None:
    content = lines(count)
    packed = gzip.compress(content)
    (tmp_path / "a.jsonl.gz").write_bytes(flipped(packed, len(packed) - 6))
    *kept, broken = rows(tmp_path)
    assert [row[TEXT] for row in kept] == [json.loads(line)["text"] for line in content.splitlines()]
    assert (broken["line"], broken["raw"]) == (count + 1, "")
    assert broken["reason"] == UNREADABLE + "zlib inflate failed: incorrect data check"


def test_a_wrong_checksum_of_a_csv_and_of_an_array(tmp_path: Path) -> None:
    """Damage behind the last line, or the end of the array, is told of all the same."""
    for name, content in {
        "a.csv.gz": b"id,text\n1,hi\n2,ho\n",
        "b.json.gz": b'[{"text": "hi"},\n{"text": "ho"}]',
    }.items():
        packed = gzip.compress(content)
        (tmp_path / name).write_bytes(flipped(packed, len(packed) - 6))
        *kept, broken = rows(tmp_path / name)
        assert [row[TEXT] for row in kept] == ["hi", "ho"]
        assert broken["reason"] == UNREADABLE + "zlib inflate failed: incorrect data check"


def test_an_array_that_breaks_off_says_why_in_one_row(tmp_path: Path) -> None:
    content = json.dumps([{"text": f"tweet {row}"} for row in range(1000)], indent=1).encode()
    packed = gzip.compress(content)
    (tmp_path / "a.json.gz").write_bytes(packed[: len(packed) // 2])
    *kept, broken = rows(tmp_path)
    assert len(kept) > 300
    assert not any(row["reason"] for row in kept)
    assert broken["reason"] == UNREADABLE + "Truncated compressed stream"


def test_a_later_member_that_is_damaged(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(packed + b"no member")
    *kept, broken = rows(tmp_path)
    assert [row[TEXT] for row in kept] == ["a", "b"]
    assert str(broken["reason"]).startswith(UNREADABLE)


def test_zstd_keeps_the_blocks_before_the_damage(tmp_path: Path) -> None:
    content = lines(5000)
    packed = pa.compress(content, codec="zstd", asbytes=True)
    # Arrow writes no checksum, but a block never ends in a zero.
    (tmp_path / "a.jsonl.zst").write_bytes(packed[:-1] + b"\0")
    *kept, broken = rows(tmp_path)
    assert len(kept) >= content[: len(content) - (128 << 10)].count(b"\n")  # A block is 128 KiB at most.
    assert not any(row["reason"] for row in kept)
    assert str(broken["reason"]).startswith(UNREADABLE + "ZSTD")


def test_a_remote_file_is_kept_up_to_the_damage_too() -> None:
    content = lines(60_000)
    packed = gzip.compress(content)
    with fsspec.open("memory://damaged/a.jsonl.gz", "wb") as file:
        file.write(flipped(packed, len(packed) - 6))
    assert len(rows("memory://damaged/a.jsonl.gz")) == 60_000 + 1


def test_what_is_read_up_to_the_damage_comes_in_pieces(tmp_path: Path) -> None:
    """64 KiB of an archive may be 64 MiB of text: that must not be one piece."""
    packed = gzip.compress(bytes(3 << 20))
    (tmp_path / "a.gz").write_bytes(flipped(packed, len(packed) - 6))
    source, sizes = ByteStream(InputFile("a.gz", "", str(tmp_path / "a.gz"), "jsonl", "gzip")), []
    with pytest.raises(UnreadableError, match="incorrect data check"):
        while True:
            sizes.append(len(source.read()))
    with pytest.raises(UnreadableError, match="incorrect data check"):
        source.read()
    source.close()
    assert (sum(sizes), max(sizes)) == (3 << 20, READ_BYTES)
    assert source.position == len(packed) - 4
