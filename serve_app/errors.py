"""What goes wrong with a request, in the form of text-embeddings-inference: `{"error": words, "error_type": kind}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

_LOG = logging.getLogger("ray.serve")

ErrorType = Literal["validation", "unauthorized", "not_found", "overloaded", "unhealthy", "timeout", "internal"]


class ErrorResponse(BaseModel):
    """What every answer but a 2xx holds."""

    error: str = Field(
        description="what was wrong, with which field", examples=["inputs: at most 1024 texts, got 2000"]
    )
    error_type: ErrorType = Field(description="kind of error, for programs", examples=["validation"])


class ApiError(Exception):
    """An answer other than 2xx.

    Args:
        status: HTTP status code.
        kind: For programs.
        message: For people; never holds what the user wrote.
        retry_after_s: When it may work again, s.
    """

    def __init__(self, status: int, kind: ErrorType, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.retry_after_s = status, kind, message, retry_after_s

    @property
    def body(self) -> ErrorResponse:
        """The answer's body."""
        return ErrorResponse(error=self.message, error_type=self.kind)


def internal(error: BaseException) -> ApiError:
    """A bug: the log gets its kind and place, but not its words, which may hold what the user wrote.

    Args:
        error: What was raised.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else "an unknown place"
    _LOG.error("%s at %s", type(error).__name__, where)
    return ApiError(500, "internal", "the service failed; its log says where")


def invalid(message: str, status: int = 422) -> ApiError:
    """The request says what can't be answered."""
    return ApiError(status, "validation", message)


def explain(problems: Sequence[Mapping[str, Any]], whole: str = "body") -> ApiError:
    """What pydantic found: the first thing that is wrong, by its field; never with what stood there.

    Args:
        problems: `ValidationError.errors()`.
        whole: What is called wrong where no field is.
    """
    first = problems[0]
    if first["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {first['ctx']['error']}", 400)
    place = [part for part in first["loc"] if part != "body"]
    if tuple(place[:2]) == ("inputs", "str"):
        # One problem for each form that it might have; that of a list knows which text it is.
        at = next((str(part) for problem in problems for part in problem["loc"] if isinstance(part, int)), None)
        return invalid(f"inputs{'' if at is None else '.' + at}: must be a text or a list of texts")
    return invalid(f"{'.'.join(map(str, place)) or whole}: {first['msg']}")
