"""Archives as they are: damaged, cut off, full of surprises. Each row is scored or rejected with its reason, or the job
says in one line why it can't go on; it never crashes, hangs or loses anything in silence.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_runs import Trained, finished, read_rows, refusal, run_job

from jobs import score

# In every text of the archive: it must not show up on a terminal.
MARKER = "xylophonist"
GOOD = {"text": f"{MARKER} at breakfast, so lovely", "likes": 1}
HUGE, EMOJI, NUL = f"{MARKER} " + "so lovely " * 105_000, "🎷😀" * 25_000, f"a NUL \0 and a {MARKER}"
UNREADABLE, NUMBER = "file can't be read on: ", "text is a number, not a string"
# What is passed over, each with why.
STRAYS = dict.fromkeys(("README.md", "photo.png"), "unknown extension")
STRAYS |= {"empty.csv": "empty", ".DS_Store": "hidden", "_SUCCESS": "hidden"}
# Rows of text files: what stands there, and the beginning of the reason why it is rejected.
Rows = list[tuple[Any, str | None]]
TEXTS: Rows = [
    *[({"text": text}, None) for text in (NUL, HUGE, EMOJI)],
    *[({"text": text}, "no text") for text in ("", " \t\u00a0\n", "\0\0", "\u200b", "#", "<br>", None)],
    ({"text": 42}, NUMBER),
    ({"text": [MARKER]}, "text is a list, not a string"),
    (b'{"text": "xylophonist \0"}', "not valid JSON"),
    (b'{"text": "xylophonist caf\xe9\xff"}', "not valid UTF-8 (byte 0xe9"),
    (b'{"text": "xylophonist \\ud800"}', "column 'text' has half a surrogate pair"),
]
# Other fields half-way: more rows come before than are looked at while planning.
DRIFT: Rows = [
    *[(GOOD, None)] * 1500,
    ({"text": f"{MARKER} without likes"}, None),
    ({**GOOD, "lang": "en"}, None),
    (b'{"text": "xylophonist, cut of', "not valid JSON"),
    ({"likes": 2, "message": f"{MARKER}, renamed"}, "no text"),
    ({"text": 42, "likes": 3}, NUMBER),
    ({"text": MARKER, "likes": "three"}, "column 'likes' is a string that can't be int64"),
    *[(GOOD, None)] * 100,
]
TABLE: Rows = [
    (b"1,xylophonist", None),
    (b'2,"xylophonist, never closed', "quote opened and never closed"),
    (b'3,"xylophonist" and more', "quote inside a quoted field isn't doubled"),
    (b"4,xylophonist,one too many", "3 fields where the header has 2"),
    (b"xylophonist alone", "1 field where the header has 2"),
    (b"6,a NUL \0 and a xylophonist", None),
    (b"7,xylophonist caf\xe9", "not valid UTF-8 (byte 0xe9"),
    (b"8,  ", "no text"),
    (b'9,"xylophonist, ""quoted"""', None),
]


class File(NamedTuple):
    """What a file holds, how many rows that is, and source_row → beginning of the reason of those not scored."""

    content: bytes
    rows: int
    rejected: dict[int, str]


def lines(*rows: Any) -> bytes:
    """Objects as JSON lines; bytes are lines as they stand."""
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def judged(rows: Rows, header: bytes = b"") -> File:
    """A text file of rows whose reasons are known."""
    reasons = {at: reason for at, (_, reason) in enumerate(rows) if reason}
    return File(header + lines(*(row for row, _ in rows)), len(rows), reasons)


def parquet(columns: dict[str, Any], **how: Any) -> bytes:
    """A Parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **how)
    return sink.getvalue()


def groups(rubbish: bytes = b"") -> bytes:
    """A Parquet file of 3 x 100 rows, with rubbish in the middle ones."""
    texts = [f"{MARKER} number {number}" for number in range(300)]
    content = bytearray(parquet({"text": texts}, row_group_size=100, compression="gzip", use_dictionary=False))
    start = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(1).column(0).data_page_offset + 60
    content[start : start + len(rubbish)] = rubbish
    return bytes(content)


def cut_gzip() -> File:
    """A gzip file that breaks off: every whole line that zlib can get is a row, and one stands for the rest."""
    packed = gzip.compress(lines(*({"text": f"{MARKER} {n} {n * 7919 % 100_003}"} for n in range(3000))))
    cut = packed[: len(packed) * 2 // 3]
    whole = zlib.decompressobj(31).decompress(cut).count(b"\n")
    return File(cut, whole + 1, {whole: f"{UNREADABLE}Truncated"})


FILES = {
    "texts.jsonl": judged(TEXTS),
    "drift.jsonl": judged(DRIFT),
    "numbers.jsonl": judged([({"text": 1}, NUMBER), ({"text": 2.5}, NUMBER)]),
    "table.csv": judged(TABLE, b"id,text\n"),
    "cut.jsonl.gz": cut_gzip(),
    "no_gzip.csv.gz": File(b"text\nhello\n", 1, {0: UNREADABLE}),
    "footer.parquet": File(groups()[:-20], 1, {0: UNREADABLE}),
    "group.parquet": File(groups(b"\xff" * 100), 300, dict.fromkeys(range(100, 200), UNREADABLE)),
    "header.csv": File(b"id,text\n", 0, {}),
    "header.parquet": File(parquet({"text": pa.array([], pa.string())}), 0, {}),
    "zz_good.jsonl": judged([(GOOD, None)]),
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a new folder."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def flags_of(trained: Trained, inputs: Path, output: Path) -> tuple[object, ...]:
    """Flags of a small run."""
    return ("--model", trained.bundle, "--input", inputs, "--output", output, "--num-actors", 1)


def rows_of(output: Path, folder: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of scored/ or rejected/, which may be empty, by file name and source_row; each is there once."""
    rows = read_rows(output / folder).to_pylist() if list((output / folder).glob("*.parquet")) else []
    found = {(Path(row["source_file"]).name, row["source_row"]): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def scored(ray_cluster: str, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The output of FILES and STRAYS, scored in one run by a process of its own, and its stdout and stderr."""
    folder = tmp_path_factory.mktemp("bad")
    strays = {name: b"" if why == "empty" else b"\x89PNG\r\n\0 text" for name, why in STRAYS.items()}
    inputs = write(folder / "in", {**strays, **{name: file.content for name, file in FILES.items()}})
    done = finished("score", *flags_of(trained, inputs, folder / "out"), "--rows-per-file", 500, address=ray_cluster)
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout, done.stderr


def test_every_row_ends_where_it_must(scored: tuple[Path, str, str]) -> None:
    good, rejected = (rows_of(scored[0], folder) for folder in ("scored", "rejected"))
    assert {name for name, _ in [*good, *rejected]} == {name for name, file in FILES.items() if file.rows}
    for name, file in FILES.items():
        reasons = {row: found["reason"] for (source, row), found in rejected.items() if source == name}
        assert reasons.keys() == file.rejected.keys(), name
        assert all(reasons[row].startswith(reason) for row, reason in file.rejected.items()), (name, reasons)
        assert {row for source, row in good if source == name} == set(range(file.rows)) - file.rejected.keys(), name
    assert [good["texts.jsonl", row]["text"] for row in range(3)] == [NUL, HUGE, EMOJI]
    assert good["drift.jsonl", 1500]["likes"] is None
    assert json.loads(good["drift.jsonl", 1501]["_extra"]) == {"lang": "en"}


def test_totals_and_manifest_are_true(scored: tuple[Path, str, str]) -> None:
    expected = {name: (file.rows, len(file.rejected)) for name, file in FILES.items()}
    rows, rejected = (sum(counts) for counts in zip(*expected.values(), strict=True))
    result, manifest = json.loads(scored[1]), json.loads((scored[0] / "manifest.json").read_text())
    for told in (result, manifest):
        assert [told[name] for name in ("rows_in", "rows_scored", "rows_rejected")] == [rows, rows - rejected, rejected]
    assert {Path(file["path"]).name: (file["rows"], file["rejected"]) for file in manifest["inputs"]} == expected
    assert {Path(path).name: why for path, why in (line.rsplit(": ", 1) for line in manifest["skipped"])} == STRAYS
    assert sum(manifest["rejected_by_reason"].values()) == rejected


def test_nothing_of_the_texts_is_told(scored: tuple[Path, str, str]) -> None:
    output, stdout, stderr = scored
    told = [stdout, stderr, *(path.read_text() for path in output.rglob("*.json"))]
    assert not any(MARKER in words or "Traceback" in words for words in told)


@pytest.mark.parametrize("name", ["footer.parquet", "cut.jsonl.gz"])
def test_strict_stops_and_the_same_command_without_it_goes_on(trained: Trained, tmp_path: Path, name: str) -> None:
    # The one is found while planning, the other while reading.
    inputs = write(tmp_path / "in", {"a.jsonl": lines(*[GOOD] * 400), name: FILES[name].content})
    flags = (*flags_of(trained, inputs, tmp_path / "out"), "--rows-per-file", 300)
    message = refusal(score.JOB, *flags, "--strict")
    assert message.startswith(f"score: --strict: {inputs / name}: ")
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    result = run_job(score.JOB, *flags)
    assert (result["rows_in"], result["rows_rejected"]) == (400 + FILES[name].rows, 1)
    assert len(rows_of(tmp_path / "out", "scored")) == result["rows_scored"]
    (rejected,) = rows_of(tmp_path / "out", "rejected").values()
    assert rejected["reason"].removeprefix(UNREADABLE) in message


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.parquet": parquet({"text": [1]}), "b.parquet": groups()}, "'text' holds int64, not text"),
        ({"a.csv": b"caf\xe9,text\n1,hello\n", "b.jsonl": lines(GOOD)}, "its header is not valid UTF-8 (byte 0xe9"),
        ({"a.csv": b'"id,text\n1,hello\n', "b.jsonl": lines(GOOD)}, "its header (line 1) can't be parsed: quote"),
        ({"a.parquet": groups()[:-20]}, "no file can be read"),
        ({"a.csv": b"", "b.jsonl": b""}, "no file to read"),
    ],
)
def test_what_must_be_mended_is_one_line(trained: Trained, tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    message = refusal(score.JOB, *flags_of(trained, write(tmp_path / "in", files), tmp_path / "out"))
    assert said in message
    assert str(tmp_path / "in") in message
    assert not (tmp_path / "out").exists()


def test_headers_alone_are_an_archive_without_rows(trained: Trained, tmp_path: Path) -> None:
    inputs = write(tmp_path / "in", {"a.csv": b"id,text\n", "b.tsv": b"id\ttext"})
    result = run_job(score.JOB, *flags_of(trained, inputs, tmp_path / "out"))
    assert [result[name] for name in ("rows_in", "rows_scored", "rows_rejected")] == [0, 0, 0]


BROKEN = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", b"fine"]).buffers())
# Parquet files whose damage shows late, and how many rows each has.
LATE = {
    "bad_name.parquet": (parquet({"text": ["x"], "name": [1]}, store_schema=False).replace(b"name", b"n\xe9me"), 1),
    # The last 100, as Thrift writes it, are the rows of the last group: now 36, while the total is still right.
    "too_few_rows.parquet": (b"\xc8\0".join(groups().rsplit(b"\xc8\x01", 1)), 300),
    "bad_strings.parquet": (parquet({"text": [None, "x"], "a": pa.ListArray.from_arrays([0, 1, 2], BROKEN)}), 2),
    # A day that Python can't hold, in a column that is a string elsewhere.
    "far_day.parquet": (parquet({"text": [MARKER] * 2, "likes": pa.array([2**30, 1], pa.date32())}), 2),
}


def test_damage_that_shows_late(trained: Trained, tmp_path: Path) -> None:
    files = {name: content for name, (content, _) in LATE.items()}
    inputs = write(tmp_path / "in", {**files, "good.jsonl": lines({**GOOD, "likes": "many"})})
    run_job(score.JOB, *flags_of(trained, inputs, tmp_path / "out"))
    good, rejected = (rows_of(tmp_path / "out", folder) for folder in ("scored", "rejected"))
    assert ("good.jsonl", 0) in good
    for name, (_, rows) in LATE.items():
        there = {row for source, row in [*good, *rejected] if source == name}
        said = any(row["reason"].startswith(UNREADABLE) for (source, _), row in rejected.items() if source == name)
        assert there == set(range(rows)) or said, f"{name}: lost in silence"


def test_output_that_cannot_be_made(trained: Trained, tmp_path: Path) -> None:
    flags = flags_of(trained, write(tmp_path / "in", {"a.jsonl": lines(GOOD)}), Path("/dev/null/out"))
    assert "/dev/null/out" in refusal(score.JOB, *flags)
