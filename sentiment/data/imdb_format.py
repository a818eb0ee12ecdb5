"""IMDB's folder layout: `aclImdb/{train,test}/{pos,neg}/<id>_<rating>.txt`, one review a file, label from its folder.

Each file is one record of its own: row 0, line 1. See https://ai.stanford.edu/~amaas/data/sentiment/.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from sentiment.data.byte_stream import ByteStream, InputFile, UnreadableError
from sentiment.data.json_format import table_of_objects
from sentiment.data.schema_inference import InferredSchema
from sentiment.data.text_records import MAX_LINE_BYTES, OVERLONG, Records, decode
from sentiment.data.validation import BYTES_PER_BATCH, UNREADABLE, Batch, undecodable

if TYPE_CHECKING:
    from sentiment.data.read_plan import ReadPlan


class ImdbFormat:
    """A format of `sentiment.data.formats`; its reviews share batches, for a table for each would be all overhead."""

    extensions: tuple[str, ...] = ()
    layout = re.compile(r"(?:^|/)(train|test)/(pos|neg)/([^/]+)\.txt$")
    is_combined = True
    has_extra = False

    def detect(self, file: InputFile, encoding: str) -> tuple[InputFile, InferredSchema]:
        """Its columns are known without looking into it."""
        schema = InferredSchema.of_strings(("split", "id", "rating", "label", "text"))
        schema.columns["rating"], schema.strings = "int", {"text"}
        encoding = "utf-8" if encoding == "auto" else encoding
        names = tuple(schema.columns)
        return replace(file, encoding=encoding, columns=names, text_column="text", label_column="label"), schema

    def read(self, files: Sequence[InputFile], plan: ReadPlan, max_rows: int) -> Iterator[Batch]:
        """Read files, which are opened when their batch is built."""
        held: list[InputFile] = []
        size = position = 0
        for number, file in enumerate(files, 1):
            held.append(file)
            size, position = size + max(0, file.size_bytes), position + max(0, file.size_bytes)
            if len(held) >= max_rows or size >= BYTES_PER_BATCH or number == len(files):
                yield Batch(len(held), size, position, functools.partial(self._table, held, plan))
                held, size = [], 0

    def _table(self, files: Sequence[InputFile], plan: ReadPlan) -> pa.Table:
        tables = []
        for file in files:
            records = Records()
            records.add(1, *self._read_review(file))
            tables.append(table_of_objects(records, file, plan, 0))
        return pa.concat_tables(tables).combine_chunks()

    def _read_review(self, file: InputFile) -> tuple[dict[str, str | int | None] | None, str | None, bytes]:
        """Read one review: (fields, reason, raw bytes), where the fields are None if there is a reason."""
        stream, raw = ByteStream(file), bytearray()
        try:
            while len(raw) <= MAX_LINE_BYTES and (chunk := stream.read()):
                raw += chunk
            text = decode(bytes(raw), file.encoding)
        except UnreadableError as failure:
            return None, UNREADABLE + str(failure), bytes(raw)
        except UnicodeDecodeError as error:
            return None, undecodable(error), bytes(raw)
        finally:
            stream.close()
        if len(raw) > MAX_LINE_BYTES:
            return None, OVERLONG, bytes(raw)
        split, label, name = self.layout.findall(file.inner)[0]
        rating = name.rpartition("_")[2]
        number = int(rating) if rating.isascii() and rating.isdigit() and len(rating) < 4 else None
        return {"split": split, "id": name, "rating": number, "label": label, "text": text}, None, bytes(raw)
