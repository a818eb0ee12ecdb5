"""Numbers as `benchmarks/scale_page.py` writes them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in words."""
    for unit, size in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{round_to(seconds / size)} {unit}"
    return f"{round_to(seconds)} s"


def in_bytes(size: float) -> str:
    """Bytes in words."""
    for unit, of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= of:
            return f"{round_to(size / of)} {unit}"
    return f"{round_to(size)} B"


def in_percent(share: float) -> str:
    """A share, 1 for all of it, in words."""
    return f"{share:,.1%}" if 1e-3 <= share < 0.1 else "under 0.1%" if share < 1e-3 else f"{share:,.0%}"


def in_number(count: float) -> str:
    """A number with few digits, large ones in words."""
    return f"{round_to(count)}" if count < 1e6 else words(count)


def round_to(value: float, digits: int = 2) -> str:
    """A number with few digits, as it is read."""
    if value >= 10 ** (digits + 1):
        return f"{float(f'{value:.{digits + 1}g}'):,.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def words(rows: float) -> str:
    """A number of rows in words."""
    for name, size in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if rows >= size:
            return f"{round_to(rows / size)} {name}"
    return f"{rows:,.0f}"
