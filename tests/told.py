"""What a command tells on stderr beside its signs of life."""

from __future__ import annotations

import re

# Lines of `status` and `progress` in `sentiment.observability`; a mistake's begin with the command's name and a colon.
_STATUS = re.compile(r"(?!\w+: ).*…( \d+ s)?|.*: [\d,]+( of [\d,]+)? (rows|steps)\b.*, \d+ s")


def told(stderr: str) -> str:
    """Leave the lines out that say what is being done."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not _STATUS.fullmatch(line.rstrip("\n")))
