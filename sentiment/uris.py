"""What a path or URI is made of, by its text alone; sentiment.stores knows where it leads."""

from __future__ import annotations

import re


def is_uri(path: str) -> bool:
    """Tell a URI (`s3://…`, `memory://…`) from a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def split_query(path: str) -> tuple[str, str]:
    """Part a URI from its options.

    Args:
        path: Path or URI; in a local path a question mark is a character like others.

    Returns:
        What comes before the options, and the options with their question mark, or nothing.
    """
    if not is_uri(path):
        return path, ""
    base, mark, query = path.partition("?")
    return base, mark + query


def join(base: str, name: str) -> str:
    """Address of something in a folder.

    Args:
        base: Path or URI of the folder; a URI's options stay at the end.
        name: Relative path inside it.
    """
    folder, query = split_query(base)
    if not folder.endswith("://"):  # All of a store: nothing may be taken from its mark.
        folder = f"{folder.rstrip('/')}/"
    return f"{folder}{name}{query}"
