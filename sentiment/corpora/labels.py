"""Labels as they come in, brought to 0 (negative) and 1 (positive)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sentiment.errors import DataError
from sentiment.schema import NEGATIVE, POSITIVE

# Sentiment140's own 2: not a mistake, so it is counted apart from what can't be understood.
NEUTRAL = "neutral label"
NO_LABEL = "no label"
ACCEPTED = "0/1, neg/pos, negative/positive, or 4 for positive"
_KNOWN = {
    **dict.fromkeys(("0", "0.0", "neg", "negative"), NEGATIVE),
    **dict.fromkeys(("1", "1.0", "4", "4.0", "pos", "positive"), POSITIVE),
}
_NEUTRALS = frozenset({"2", "2.0", "neutral"})


def refuse_scale(reasons: Mapping[str, int], rows: int) -> None:
    """Refuse labels that are numbers of a scale, such as stars: their 1 would pass for positive.

    Args:
        reasons: Rejected rows by reason.
        rows: Rows that have a label, these included.

    Raises:
        DataError: Numbers that are no label of ours are more than a third of all.
    """
    numbers = {reason: count for reason, count in reasons.items() if re.match(r"unknown label '-?\d", reason)}
    if sum(numbers.values()) * 3 > rows:
        seen = sorted({reason.split("'")[1] for reason in numbers})[:8]
        raise DataError(
            f"the label column looks like a scale (it also holds {', '.join(seen)}); accepted: {ACCEPTED}. Map it to 0 "
            "and 1 first, or name another column with --label-column"
        )


def read_label(value: object, *, has_neutral: bool) -> tuple[int | None, str | None]:
    """Understand one label.

    Args:
        value: As it stands in the file.
        has_neutral: Whether the file's form knows a neutral label (Sentiment140).

    Returns:
        (0 or 1, None), (None, reason), or (None, None) where there is no label.
    """
    if value is None:
        return None, None
    word = str(int(value) if isinstance(value, bool) else value).strip().lower()[:20]
    if word in _KNOWN:
        return _KNOWN[word], None
    if not word:
        return None, None
    if has_neutral and word in _NEUTRALS:
        return None, NEUTRAL
    return None, f"unknown label {word!a}; accepted: {ACCEPTED}"
