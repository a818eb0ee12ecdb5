"""What bfloat16's rounding may do to logits, whichever processor rounds where."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# bfloat16 has 8 significant bits: a rounding moves a value by up to 2^-8 of itself, and n of them one after another
# by about 2^-8 √n, as they have random signs. The deepest model in these tests is MiniLM with a GRU: ten roundings in
# each of 6 layers, two in each of 2 × 24 steps, n = 156 (4.9 %). This is n = 256 (6.3 %). Seen: 0.2 to 1.4 % without
# bfloat16 in hardware, where kernels round most often.
BF16 = 2**-8 * 256**0.5


def relative_error(found: npt.ArrayLike, exact: npt.ArrayLike) -> float:
    """Root mean square of the difference, relative to that of the exact values.

    Of all together: a value near 0 may be the small difference of large terms, and its own relative error anything.
    """
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
