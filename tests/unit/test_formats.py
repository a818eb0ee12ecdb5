"""A format is added by one class and one entry of the registry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from read_back import TEXT, read_tables

from sentiment.data.byte_stream import ByteStream, InputFile
from sentiment.data.formats import FORMATS, format_of
from sentiment.data.json_format import table_of_objects
from sentiment.data.read_plan import ReadPlan, plan
from sentiment.data.schema_inference import InferredSchema
from sentiment.data.text_records import Records, iter_lines, text_batches
from sentiment.data.validation import Batch


class PlainFormat:
    """A text a line, as `fortune` has them."""

    extensions = ("plain",)
    layout = None
    is_combined = False
    has_extra = False

    def detect(self, file: InputFile, encoding: str) -> tuple[InputFile, InferredSchema] | None:
        return replace(file, columns=("text",)), InferredSchema.of_strings(["text"])

    def read(self, files: Sequence[InputFile], read_plan: ReadPlan, max_rows: int) -> Iterator[Batch]:
        return text_batches(files[0], read_plan, max_rows, self._parse, table_of_objects)

    def _parse(self, stream: ByteStream) -> Iterator[Records]:
        for first, raws, problem in iter_lines(stream.read):
            records = Records()
            for line, raw in enumerate(raws, first):
                records.add(line, {"text": raw.decode("utf-8", "replace")}, problem, raw)
            yield records


def test_a_format_that_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "plain", PlainFormat())
    with pa.CompressedOutputStream(str(tmp_path / "a.plain.gz"), "gzip") as out:
        out.write(b"one\n \ntwo\n")
    (tmp_path / "b.csv").write_text("tweet\nthree\n")
    (table, other) = read_tables(plan([str(tmp_path)]))
    assert table[TEXT].to_pylist() == ["one", None, "two"]
    assert table["reason"].to_pylist() == [None, "no text", None]
    assert other[TEXT].to_pylist() == ["three"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a/b.CSV", ("csv", None)),
        ("a.tsv.gz", ("tsv", "gzip")),
        ("a.json.zst", ("jsonl", "zstd")),
        ("aclImdb/train/pos/1_7.txt", ("imdb", None)),
        ("pos/1_7.txt", None),
        ("csv", None),
        ("a.gz", None),
    ],
)
def test_formats_by_name(path: str, found: tuple[str, str | None] | None) -> None:
    assert format_of(path) == found
