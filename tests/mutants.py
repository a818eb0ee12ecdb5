"""Damaged and hostile files by the thousand, and what reading each of them comes to.

Run as a process, for the reader of a mutant that brings its process down must not bring the test down:

    python tests/mutants.py parquet.gz 0 10000     # format, the first mutant and the one after the last

It prints a line for each mutant: "number name" before it is read, and a JSON object afterwards.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sentiment.data import parquet_format
from sentiment.data.formats import read_file
from sentiment.data.read_plan import plan
from sentiment.errors import DataError

_TEXTS = [f"tweet {number} é😀 so lovely" for number in range(20)]
_ODD_BYTES = (0, 1, 9, 10, 13, 34, 44, 91, 92, 93, 123, 125, 127, 128, 255)
_CUT, _INSERTED = 2000, 9
PLAIN = ("csv", "tsv", "jsonl", "json", "parquet")
FORMATS = (*PLAIN, "csv.gz", "jsonl.gz", "json.gz", "parquet.gz", "csv.zst", "jsonl.zst", "json.zst", "parquet.zst")


def _csv(delimiter: str) -> list[bytes]:
    plain = [delimiter.join(("id", "text", "x")), *(delimiter.join((str(n), t, "")) for n, t in enumerate(_TEXTS))]
    quoted = ["text,label", *(f'"{text}, ""said"" she\nand went",{n % 2}' for n, text in enumerate(_TEXTS))]
    tweets = [f'"{n % 2 * 4}","{n}","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","me","{t}"' for n, t in enumerate(_TEXTS)]
    wide = [delimiter.join(["text"] * 1990), delimiter.join(["a"] * 1990)]
    return ["\n".join(lines).encode() for lines in (plain, quoted, tweets, wide)]


def _objects() -> list[dict[str, Any]]:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    return [
        *({"text": text, "n": n, "x": n / 3, "tags": ["a", {"b": []}], "on": None} for n, text in enumerate(_TEXTS)),
        {"text": "deep", "x": deep},
        {"text": "wide", **{f"key {number}": number for number in range(600)}},
    ]


def _parquet() -> list[bytes]:
    count = len(_TEXTS)
    flat = {"text": _TEXTS, "id": range(count), "x": [n / 3 for n in range(count)], "tag": ["a", None] * (count // 2)}
    nested = {
        "text": pa.array(_TEXTS).dictionary_encode(),
        "list": [[n] * (n % 4) for n in range(count)],
        "struct": [{"a": n, "b": [str(n)]} for n in range(count)],
        "day": pa.array(range(count), pa.date32()),
        "fixed": pa.array([b"ab"] * count, pa.binary(2)),
        "map": pa.array([[("a", n)] for n in range(count)], pa.map_(pa.string(), pa.int64())),
    }
    # A few bytes each that stand for many rows, for long values or for long lists.
    equal = {"text": ["x" * 50_000] * count, "n": [0] * count}
    nulls = {"text": pa.nulls(10_000, pa.string())}
    lists = {"text": ["a", None], "x": pa.array([[0] * 1_000_000, []], pa.list_(pa.int64()))}
    ways: list[dict[str, Any]] = [
        {},
        {"compression": "none", "row_group_size": 20},
        {"compression": "gzip", "use_dictionary": False},
        {"data_page_version": "2.0", "write_page_index": True},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    ]
    made = []
    for columns, how in [
        *((table, how) for table in (flat, nested) for how in ways),
        *((it, {}) for it in (equal, nulls, lists)),
    ]:
        sink = io.BytesIO()
        pq.write_table(
            pa.table(
                {name: pa.array(values) if isinstance(values, range) else values for name, values in columns.items()}
            ),
            sink,
            **how,
        )
        made.append(sink.getvalue())
    return made


@cache
def seeds(form: str) -> list[bytes]:
    """Sound files of a format, and some that are to the limits of what is read."""
    if form in ("csv", "tsv"):
        return _csv({"csv": ",", "tsv": "\t"}[form])
    if form == "parquet":
        return _parquet()
    if form == "json":
        return [json.dumps(_objects()).encode(), json.dumps(_objects()[:-2], indent=1, ensure_ascii=False).encode()]
    return ["\n".join(json.dumps(item, ensure_ascii=odd) for item in _objects()).encode() for odd in (True, False)]


def _damaged(content: bytes, chance: random.Random, *, in_footer: bool) -> bytes:
    """Some bits flipped; bytes set, cut out, put in or doubled."""
    damaged = bytearray(content)
    footer = int.from_bytes(content[-8:-4], "little") + 8
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        first = max(0, len(damaged) - footer) if in_footer and chance.random() < 0.6 else 0
        at = chance.randrange(first, len(damaged))
        match chance.randrange(8):
            case 0 | 1 | 2:
                damaged[at] ^= 1 << chance.randrange(8)
            case 3:
                damaged[at] = chance.choice(_ODD_BYTES)
            case 4:
                del damaged[at : at + chance.randrange(1, _CUT if chance.random() < 0.1 else _INSERTED)]
            case 5:
                damaged[at:at] = chance.randbytes(chance.randrange(1, _INSERTED))
            case 6:
                damaged[at:at] = damaged[at : at + chance.randrange(1, _CUT)] * chance.randrange(1, 20)
            case _:
                del damaged[at:]
        damaged = damaged or bytearray(b"\n")
    return bytes(damaged)


def mutant(form: str, number: int) -> bytes:
    """One of a format's mutants, the same each time."""
    chance = random.Random(f"{form} {number}")
    plain, _, compression = form.partition(".")
    content = chance.choice(seeds(plain))
    if not compression:
        return _damaged(content, chance, in_footer=plain == "parquet")
    pack: Callable[[bytes], bytes] = gzip.compress if compression == "gz" else _zstd
    if chance.random() < 0.5:
        return pack(_damaged(content, chance, in_footer=plain == "parquet"))
    # Rubbish that is packed well: a few stored bytes stand for a few million.
    packed = pack(content + b"\0" * ((1 << 22 if chance.random() < 0.02 else 0) if plain != "parquet" else 0))
    return _damaged(packed, chance, in_footer=False)


def _zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def outcome(path: Path) -> dict[str, Any]:
    """Plan and read one file; all that may be raised is the refusal of a file that is alone in its archive."""
    try:
        reads = plan([str(path)])
    except DataError as error:
        return {"refused": str(error)}
    rows = 0
    reasons: dict[str, int] = {}
    for file in reads.files:
        for table in read_file(file, reads):
            assert table.schema == reads.schema
            table.validate(full=True)
            rows += table.num_rows
            for reason in table["reason"].drop_null().to_pylist():
                reasons[reason] = reasons.get(reason, 0) + 1
    return {"rows": rows, "rejected": sum(reasons.values()), "crashes": sum("crashed" in reason for reason in reasons)}


def _peak_mib() -> tuple[int, int]:
    """Most memory that this process and its parser of Parquet had so far."""
    theirs = [0]
    for parser in parquet_format._idle_parsers:
        status = Path(f"/proc/{parser.process.pid}/status").read_text()
        theirs += [int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmHWM")]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, max(theirs)


def main(form: str, first: int, end: int) -> None:
    """Read mutants."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.{form}")
        for number in range(first, end):
            path.write_bytes(mutant(form, number))
            print(number, flush=True)
            began = time.monotonic()
            try:
                found = outcome(path)
            except Exception as error:
                found = {"raised": f"{number}: {type(error).__name__}: {error}"[:500]}
            print(json.dumps({**found, "seconds": time.monotonic() - began, "peak": _peak_mib()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
