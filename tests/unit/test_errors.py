"""What other libraries' errors become in a message or in `rejected/`."""

from __future__ import annotations

from sentiment.errors import brief


def test_an_error_becomes_one_short_line_that_still_says_something() -> None:
    assert brief(OSError("can't open it:\n\n  no such\tfile \n")) == "can't open it: no such file"
    assert brief(OSError("\nthe first line is empty")) == "the first line is empty"
    assert brief(EOFError()) == "EOFError"
    long = brief(ValueError("ab " * 100))
    assert (len(long), long[-1]) == (160, "…")
