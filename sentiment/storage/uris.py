"""Parts of a path or URI, by its text alone: settings need them without pyarrow, which `filesystems` imports."""

from __future__ import annotations

import re


def is_uri(path: str) -> bool:
    """Tell a URI (`s3://…`, `memory://…`) from a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def split_query(path: str) -> tuple[str, str]:
    """Split a URI from its options, which keep their question mark; a local path has none."""
    if not is_uri(path):
        return path, ""
    base, mark, query = path.partition("?")
    return base, mark + query


def join(base: str, name: str) -> str:
    """Path or URI of something in a directory; a URI's options stay at the end."""
    directory, query = split_query(base)
    if not directory.endswith("://"):  # The root of a store: its slashes belong to the scheme.
        directory = f"{directory.rstrip('/')}/"
    return f"{directory}{name}{query}"
