"""`python -m sentiment …` is the command `sentiment …`."""

from __future__ import annotations

import sys

from sentiment.commands import main

if __name__ == "__main__":
    sys.exit(main())
