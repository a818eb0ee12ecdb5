"""The unit that files are read in: rows whose table is only made if somebody wants it.

Where pieces begin and end follows from the file alone, never from what is built of it, so a reader that passes over
what was done before comes to the same rows under the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

# Rows of a piece at most: sorted by length they fill 32 batches of 256, and Arrow's cost for each call is spread.
ROWS_PER_PIECE = 8192
# Cut before that where texts are long: 8,192 lines of 16 MiB would be 128 GiB.
BYTES_PER_PIECE = 32 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of one file, or of several one-row files.

    Attributes:
        num_rows: How many.
        size_bytes: What they take in memory, about.
        position: Stored bytes of the files up to here, about.
        build: Makes their table, in the plan's schema; called once at most, before the next piece is asked for.
    """

    num_rows: int
    size_bytes: int
    position: int
    build: Callable[[], pa.Table]
