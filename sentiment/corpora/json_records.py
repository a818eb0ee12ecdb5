"""Records of JSON files, one object a line or a whole-file array, each parsed or carrying its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sentiment.corpora.lines import KEEP_BYTES, UNREADABLE, Lines, Records, decode, undecodable


def json_lines(lines: Iterator[Lines], encoding: str) -> Iterator[Records]:
    """Parse JSON lines, each an object.

    Args:
        lines: Blocks of physical lines.
        encoding: utf-8 or latin-1.

    Yields:
        Records whose values are dicts; blank lines are none.
    """
    for block in lines:
        try:
            values = [json.loads(decode(raw, encoding)) for raw in block.raw]
        except (ValueError, RecursionError):
            values = []
        if values and not block.trouble and set(map(type, values)) == {dict}:
            count = len(values)
            yield Records(values, list(range(block.first, block.first + count)), [None] * count, block.raw)
            continue
        out = Records()
        for line, raw in enumerate(block.raw, block.first):
            if block.trouble:
                out.add(line, None, block.trouble, raw)
            elif raw.strip(b" \t\r"):
                out.add(line, *json_object(raw, encoding), raw)
        yield out


def json_object(raw: bytes, encoding: str) -> tuple[dict[str, Any] | None, str | None]:
    """Parse one line as a JSON object.

    Args:
        raw: The line.
        encoding: utf-8 or latin-1.

    Returns:
        (the object, None) or (None, the reason).
    """
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
    return (value, None) if isinstance(value, dict) else (None, f"{a_kind(value)}, not a JSON object")


def is_array(head: bytes) -> bool:
    """Tell a whole-file array from JSON lines the first of which is a list too, or broken behind its `[`.

    Args:
        head: The first bytes of a file: whole lines, if it has any that short.

    Returns:
        Whether it is an array.
    """
    lines = [line for line in head.split(b"\n") if line.strip()]
    if not lines or not lines[0].lstrip().startswith(b"["):
        return False
    # Nothing follows the end of an array; and where the first line is no JSON, lines that are some can still be had.
    return _may_go_on(_lenient(lines[0])) or not any(_is_json(_lenient(line)) for line in lines[1:])


def _lenient(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").rstrip()


def _may_go_on(line: str) -> bool:
    """Whether what begins with this line may become JSON: it can be parsed to its end, where something is missing."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line)
    except (ValueError, RecursionError):
        return True
    return False


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def json_array(text: str, failure: str | None = None) -> Iterator[Records]:
    """Walk a whole-file JSON array of objects.

    Args:
        text: The file, beginning with `[`.
        failure: Why the file couldn't be read to its end, or holds damage somewhere, if so.

    Yields:
        One record per element; where the array breaks off, one rejected record stands for the rest.
    """
    decoder, space, at = json.JSONDecoder(), re.compile(r"[\s,]*"), text.index("[") + 1
    out, line, counted = Records(), 1, 0
    while (at := _end(space, text, at)) < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep or too long a number"
            problem = failure or f"not valid JSON ({said})"
            out.add(line, None, UNREADABLE + problem, _bytes(text[at : at + KEEP_BYTES]))
            break
        reason = None if isinstance(value, dict) else f"{a_kind(value)}, not a JSON object"
        out.add(line, value, reason, _bytes(text[at : min(end, at + KEEP_BYTES)]))
        at = end
        if len(out) >= 1024:
            yield out
            out = Records()
    else:
        if failure is not None or at >= len(text):
            out.add(line, None, UNREADABLE + (failure or "the array isn't closed"), b"")
        elif rest := text[at + 1 :].strip():
            out.add(line, None, f"{UNREADABLE}something follows the end of the array", _bytes(rest[:KEEP_BYTES]))
    yield out


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def a_kind(value: object) -> str:
    """Name a JSON value's type in people's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a value"
