"""What goes wrong with a request, in the form of text-embeddings-inference: `{"error": words, "error_type": kind}`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

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


def invalid(message: str, status: int = 422) -> ApiError:
    """The request says what can't be answered."""
    return ApiError(status, "validation", message)
