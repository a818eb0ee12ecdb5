"""Labels as they come in, brought to 0 (negative) and 1 (positive)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sentiment.errors import DataError
from sentiment.schema import LABELS, NEGATIVE, POSITIVE

# Sentiment140's own 2: not a mistake, so it is counted apart from what can't be understood.
NEUTRAL = "neutral label"
NO_LABEL = "no label"
ACCEPTED = "0/1, false/true, neg/pos, negative/positive, or 4 for positive"
_KNOWN = {
    **dict.fromkeys(("0", "false", "neg", "negative"), NEGATIVE),
    **dict.fromkeys(("1", "4", "true", "pos", "positive"), POSITIVE),
}
_NEUTRALS = frozenset({"2", "neutral"})
# A column of classes has few values, and many rows of each; one with more may be the text.
_MAX_CLASSES, _MIN_ROWS = 12, 2
_UNKNOWN = re.compile(r"unknown label (.+); accepted")


def unknown_labels(reasons: Mapping[str, int]) -> str:
    """Say which labels weren't understood, with the rows of each, the most frequent first; nothing if all were."""
    counts = {found[1]: count for reason, count in reasons.items() if (found := _UNKNOWN.match(reason))}
    if not counts:
        return ""
    classes = [f"{word} {count:,}" for word, count in sorted(counts.items(), key=lambda item: -item[1])]
    if len(counts) > _MAX_CLASSES or min(counts.values()) < _MIN_ROWS:
        classes = [f"{len(counts):,} values in {sum(counts.values()):,} rows"]
    return f"labels that aren't understood: {', '.join(classes)}; accepted: {ACCEPTED}"


def refuse_labels(reasons: Mapping[str, int], rows: int, usable: int) -> None:
    """Refuse labels of which none is understood, and numbers of a scale (stars): their 1 would pass for positive.

    Raises:
        DataError: None of the `rows` that have a label is usable; or over a third are numbers that are no labels.
    """
    if not usable and (unknown := unknown_labels(reasons)):
        raise DataError(f"{unknown}. Map them to 0 and 1 first, or name another column with --label-column")
    numbers = {reason: count for reason, count in reasons.items() if re.match(r"unknown label '-?\d", reason)}
    if sum(numbers.values()) * 3 > rows:
        seen = sorted({reason.split("'")[1] for reason in numbers})[:8]
        raise DataError(
            f"the label column looks like a scale (it also holds {', '.join(seen)}); accepted: {ACCEPTED}. Map it to 0 "
            "and 1 first, or name another column with --label-column"
        )


def refuse_one_class(counts: Sequence[int], what: str) -> None:
    """Refuse rows that all have the same label: whatever always answers that would be right about all of them.

    `counts` are the rows of each label, in the labels' order.
    """
    if sum(count > 0 for count in counts) == 1:
        rows, label = max(zip(counts, LABELS, strict=True))
        raise DataError(
            f"all {rows:,} {what} are labeled {label}, and rows of both labels are needed; accepted: {ACCEPTED}. Add "
            "rows of the other label, or name the right column with --label-column"
        )


def read_label(value: object, *, has_neutral: bool) -> tuple[int | None, str | None]:
    """Understand one label as it stands in a file, which may have a neutral one (Sentiment140).

    Returns:
        (0 or 1, None), (None, reason), or (None, None) where there is no label.
    """
    if value is None:
        return None, None
    word = str(int(value) if isinstance(value, bool) else value).strip().lower()[:20]
    word = re.sub(r"\.0+$", "", word)  # As pandas writes them beside missing ones: 1.0, 1.00.
    if word in _KNOWN:
        return _KNOWN[word], None
    if not word:
        return None, None
    if has_neutral and word in _NEUTRALS:
        return None, NEUTRAL
    return None, f"unknown label {word!a}; accepted: {ACCEPTED}"
