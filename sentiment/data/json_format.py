"""JSON files, one object a line or an array that is the whole file, each record parsed or carrying its reason."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sentiment.data.byte_stream import READ_BYTES, ByteStream, InputFile, UnreadableError
from sentiment.data.schema_inference import EXTRA, InferredSchema, json_text
from sentiment.data.text_records import (
    MAX_LINE_BYTES,
    LineBlock,
    Records,
    decode,
    iter_lines,
    read_sample,
    text_batches,
)
from sentiment.data.validation import (
    KEEP_BYTES,
    UNREADABLE,
    Batch,
    column_array,
    describe_value,
    make_table,
    raw_text,
    undecodable,
    validate,
)

if TYPE_CHECKING:
    from sentiment.data.read_plan import ReadPlan

_SAMPLE_RECORDS = 1000
_DECODER = json.JSONDecoder()
_SPACE, _BETWEEN = re.compile(r"\s*"), re.compile(r"[\s,]*")


class JsonLinesFormat:
    """A format of `sentiment.data.formats`; a file that turns out to be an array becomes one of JsonArrayFormat."""

    extensions: tuple[str, ...] = ("jsonl", "ndjson", "json")
    layout = None
    is_combined = False
    has_extra = True

    def detect(self, file: InputFile, encoding: str) -> tuple[InputFile, InferredSchema] | None:
        """Tell lines from an array and take the types of a sample."""
        read = read_sample(file)
        if read is None:
            return None
        sample, _, is_complete = read
        settled = "utf-8" if encoding == "auto" else encoding
        if is_array(sample):
            name, blocks = "json", json_array(io.BytesIO(sample).read, settled)
        else:
            name, blocks = "jsonl", json_lines(iter_lines(io.BytesIO(sample).read), settled)
        # One more than are looked at, to see whether these are all.
        values = list(islice((value for block in blocks for value in block.values), _SAMPLE_RECORDS + 1))
        objects = [value for value in values[:_SAMPLE_RECORDS] if value is not None]
        schema = InferredSchema.of_objects(objects, is_complete=is_complete and len(values) <= _SAMPLE_RECORDS)
        return replace(file, format=name, encoding=settled, columns=tuple(schema.columns)), schema

    def read(self, files: Sequence[InputFile], plan: ReadPlan, max_rows: int) -> Iterator[Batch]:
        """Read a file."""
        (file,) = files
        return text_batches(file, plan, max_rows, lambda stream: self._parse(stream, file.encoding), table_of_objects)

    def _parse(self, stream: ByteStream, encoding: str) -> Iterator[Records]:
        return json_lines(iter_lines(stream.read), encoding)


class JsonArrayFormat(JsonLinesFormat):
    """An array that is the whole file."""

    extensions: tuple[str, ...] = ()

    def _parse(self, stream: ByteStream, encoding: str) -> Iterator[Records]:
        return json_array(stream.read, encoding)


def table_of_objects(records: Records, file: InputFile, plan: ReadPlan, first_row: int) -> pa.Table:
    """Turn objects into a table of the plan's schema; a value that doesn't fit rejects its row.

    Args:
        records: Consecutive records of one file, dicts; their reasons are completed.
        first_row: `source_row` of the first record.
    """

    def values_of(name: str | None) -> list[Any]:
        return [None if value is None else value.get(name) for value in records.values]

    reasons, old_names = records.reasons, {new: old for old, new in plan.renamed}
    labels = validate(values_of(file.text_column), values_of(file.label_column), reasons, plan)
    columns, problems = {}, dict[int, str]()
    for item in plan.columns:
        name = old_names.get(item.name, item.name)
        if item.name != EXTRA:
            columns[name] = column_array(values_of(name), item.type, name, problems)
    extra: list[str | None] = [None] * len(records)
    for index, value in enumerate(records.values):
        if value is not None and not value.keys() <= columns.keys():
            extra[index] = json_text({name: item for name, item in value.items() if name not in columns})
    has_extra = EXTRA in plan.columns.names
    if not has_extra and any(extra):
        said = "a field the file didn't have when the read was planned"
        problems = {index: said for index, item in enumerate(extra) if item is not None} | problems
    for index, problem in problems.items():
        reasons[index] = reasons[index] or problem
    return make_table(
        columns,
        file,
        plan,
        first_row,
        lines=records.lines,
        reasons=reasons,
        raw_of=lambda index: raw_text(records.raws[index]),
        labels=labels,
        ids=None if plan.id_column is None else values_of(plan.id_column),
        extra=pa.array(extra, pa.string()) if has_extra else None,
    )


def json_lines(blocks: Iterator[LineBlock], encoding: str) -> Iterator[Records]:
    """Parse JSON lines, each an object.

    Args:
        blocks: Blocks of physical lines.
        encoding: utf-8 or latin-1.

    Yields:
        Records whose values are dicts; blank lines are none.
    """
    for first, raws, problem in blocks:
        try:
            values = [json.loads(decode(raw, encoding)) for raw in raws]
        except (ValueError, RecursionError):
            values = []
        if values and not problem and set(map(type, values)) == {dict}:
            count = len(values)
            yield Records(values, list(range(first, first + count)), [None] * count, raws)
            continue
        out = Records()
        for line, raw in enumerate(raws, first):
            if problem:
                out.add(line, None, problem, raw)
            elif raw.strip(b" \t\r"):
                out.add(line, *_parse_object(raw, encoding), raw)
        yield out


def _parse_object(raw: bytes, encoding: str) -> tuple[dict[str, Any] | None, str | None]:
    """Parse one line as a JSON object: (the object, None) or (None, the reason)."""
    try:
        value = json.loads(decode(raw, encoding))
    except UnicodeDecodeError as error:
        return None, undecodable(error)
    except json.JSONDecodeError as error:
        return None, f"not valid JSON ({error.msg} at column {error.colno})"
    except RecursionError:
        return None, "not usable JSON (nested too deep)"
    except ValueError:
        return None, "not usable JSON (a number with too many digits)"
    return (value, None) if isinstance(value, dict) else (None, f"{describe_value(value)}, not a JSON object")


def is_array(head: bytes) -> bool:
    """Tell a whole-file array from JSON lines the first of which is a list too, or broken behind its `[`.

    Args:
        head: The first bytes of a file: whole lines, if it has any that short.

    Returns:
        Whether it is an array.
    """
    lines = [line.decode("utf-8", "replace").rstrip() for line in head.split(b"\n") if line.strip()]
    if not lines or not lines[0].lstrip().startswith("["):
        return False
    # Nothing follows the end of an array; and where the first line is no JSON, lines that are some can still be had.
    error = _json_error(lines[0])
    is_cut = error is not None and (not isinstance(error, json.JSONDecodeError) or error.pos >= len(lines[0]))
    return is_cut or all(map(_json_error, lines[1:]))


def _json_error(line: str) -> Exception | None:
    try:
        json.loads(line)
    except (ValueError, RecursionError) as error:
        return error
    return None


class _TextStream:
    """A stream's text, of which only what hasn't been walked yet is kept.

    Bytes that aren't UTF-8 become half surrogate pairs, which reject the rows they are in and no others.
    """

    def __init__(self, read: Callable[[], bytes], encoding: str) -> None:
        self._read = read
        self._decoder = codecs.getincrementaldecoder("latin-1" if encoding == "latin-1" else "utf-8")("surrogateescape")
        self.text, self.index, self.line = "", 0, 1
        self.has_ended = False
        self.failure: str | None = None

    def advance(self, index: int) -> None:
        """Walk on to a place in what is at hand."""
        self.line += self.text.count("\n", self.index, index)
        self.index = index

    def read_more(self) -> bool:
        """Read on, at least as much as is left at hand; False at the end."""
        if self.has_ended:
            return False
        left = self.text[self.index :]
        chunks, size, wanted = [left], len(left), 2 * len(left) or 1
        while size < wanted and not self.has_ended:
            try:
                chunk = self._read()
            except UnreadableError as failure:
                chunk, self.failure = b"", str(failure)
            self.has_ended = not chunk
            chunks.append(self._decoder.decode(chunk, self.has_ended))
            size += len(chunks[-1])
        self.text, self.index = "".join(chunks), 0
        return True

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Walk over what matches a pattern; gives the next character, none at the end."""
        while True:
            if match := pattern.match(self.text, self.index):
                self.advance(match.end())
            if self.index < len(self.text) or not self.read_more():
                return self.text[self.index : self.index + 1]

    def parse_element(self) -> tuple[Any, int, str | None]:
        """Parse the value that begins at the index: (the value, its end, None) or (None, the index, why not)."""
        while True:
            value, end, problem = None, self.index, None
            try:
                value, end = _DECODER.raw_decode(self.text, self.index)
                may_continue = end + len("e+") >= len(self.text)  # As a number does.
            except json.JSONDecodeError as error:
                problem, may_continue = f"not valid JSON ({error.msg})", True
            except (ValueError, RecursionError):
                problem, may_continue = "not valid JSON (nested too deep or too long a number)", False
            if self.has_ended or not may_continue:
                return value, end, problem
            if len(self.text) - self.index > MAX_LINE_BYTES:
                return None, self.index, f"an element longer than {MAX_LINE_BYTES >> 20} MiB"
            self.read_more()


def json_array(read: Callable[[], bytes], encoding: str) -> Iterator[Records]:
    """Walk a whole-file JSON array of objects, element by element.

    Args:
        read: Returns the next bytes of the file, empty at the end; raises UnreadableError.
        encoding: utf-8 or latin-1.

    Yields:
        One record per element; where the array breaks off, or an element is longer than MAX_LINE_BYTES, one rejected
        record stands for the rest.
    """
    stream, out, line, size = _TextStream(read, encoding), Records(), 1, 0

    def rest(problem: str, raw: str) -> Records:
        out.add(line, None, UNREADABLE + (stream.failure or problem), raw.encode("utf-8", "surrogatepass"))
        return out

    if stream.skip(_SPACE) != "[":
        yield rest("no JSON array", stream.text[:KEEP_BYTES])
        return
    stream.advance(stream.index + 1)
    while (next_character := stream.skip(_BETWEEN)) not in ("", "]"):
        line, (value, end, problem) = stream.line, stream.parse_element()
        if problem:
            yield rest(problem, stream.text[stream.index :][:KEEP_BYTES])
            return
        reason = None if isinstance(value, dict) else f"{describe_value(value)}, not a JSON object"
        out.add(line, value, reason, stream.text[stream.index : end].encode("utf-8", "surrogatepass"))
        size += end - stream.index
        stream.advance(end)
        if len(out) >= 1024 or size >= READ_BYTES:
            yield out
            out, size = Records(), 0
    behind = ""
    if next_character:
        stream.advance(stream.index + 1)
        stream.skip(_SPACE)
        while True:  # To the end: damage is found behind what it is about.
            behind = (behind + stream.text[stream.index :])[:KEEP_BYTES]
            stream.index = len(stream.text)
            if not stream.read_more():
                break
    if stream.failure is not None or not next_character:
        rest("the array isn't closed", "")
    elif behind:
        rest("something follows the end of the array", behind.rstrip())
    yield out
