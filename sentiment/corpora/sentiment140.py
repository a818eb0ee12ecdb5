"""Sentiment140's csv: six quoted columns, no header, latin-1 with some UTF-8 in it; polarity 0, 2 (neutral) or 4.

The distributed file names no columns and its polarity is 0 or 4, 2 only in the manual test set
(http://help.sentiment140.com/for-students). Copies with a header row are common; they are read the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

COLUMNS = ("polarity", "id", "date", "query", "user", "text")
POLARITIES = frozenset({"0", "2", "4"})
_HEADER = (
    frozenset({"polarity", "target", "sentiment", "label"}),
    frozenset({"id", "ids"}),
    frozenset({"date"}),
    frozenset({"query", "flag"}),
    frozenset({"user", "username"}),
    frozenset({"text", "tweet"}),
)


def recognise(rows: Sequence[Sequence[str] | None]) -> str | None:
    """Tell Sentiment140's form from its first rows.

    Args:
        rows: The first records of a csv, None for one that didn't parse.

    Returns:
        "header", "bare", or None for another csv. One broken row in four is forgiven.
    """
    first = rows[0] if rows else None
    # Any other number of fields: the rest of a record that the file begins in the middle of.
    if first is not None and len(first) == len(_HEADER):
        named = [name.strip().lower() in names for name, names in zip(first, _HEADER, strict=True)]
        if all(named):
            return "header"
        if not first[0].strip().lstrip("-").isdigit():
            return None  # A header of its own, whatever the rows below it begin with.
    fitting = sum(row is not None and len(row) == len(COLUMNS) and row[0] in POLARITIES for row in rows)
    return "bare" if fitting and fitting >= 0.75 * len(rows) else None
