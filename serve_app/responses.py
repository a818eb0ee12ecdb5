"""What the answers of all protocols have in common: errors in one form, and the header that names the model.

Errors have the form of text-embeddings-inference, `{"error": message, "error_type": kind}`.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, Field
from starlette.responses import Response

from sentiment.text import NO_TEXT

_LOG = logging.getLogger("ray.serve")
# Characters of a header's value that aren't percent-encoded, beside letters and digits.
_SAFE_IN_HEADERS = string.punctuation + " "

ErrorType = Literal["validation", "unauthorized", "not_found", "overloaded", "unhealthy", "timeout", "internal"]


class ErrorResponse(BaseModel):
    """What every answer but a 2xx holds."""

    error: str = Field(
        description="what was wrong, with which field", examples=["inputs: at most 1024 texts, got 2000"]
    )
    error_type: ErrorType = Field(description="kind of error, for programs", examples=["validation"])


NO_TEXT_ERROR = ErrorResponse(error=NO_TEXT, error_type="validation")


class ApiError(Exception):
    """A request that can't be answered as asked; every protocol raises it, and the application turns it into JSON.

    Args:
        status: HTTP status code.
        error_type: Kind of error, for programs.
        message: What was wrong, for people; never holds what the user wrote.
        retry_after_s: Seconds after which the same request may succeed.
    """

    def __init__(self, status: int, error_type: ErrorType, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.error_type, self.message, self.retry_after_s = status, error_type, message, retry_after_s

    @property
    def body(self) -> ErrorResponse:
        """The error as it stands in an answer."""
        return ErrorResponse(error=self.message, error_type=self.error_type)

    def response(self) -> Response:
        """The error as a whole HTTP answer."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(self.body.model_dump_json(), self.status, headers, media_type="application/json")


def validation_error(message: str, status: int = 422) -> ApiError:
    """An error of the client's: the message says which part of the request is wrong."""
    return ApiError(status, "validation", message)


def schema_error(problems: Sequence[Mapping[str, Any]], root: str = "body") -> ApiError:
    """Turn what pydantic found into an error: the first problem, by its field, never with the value that stood there.

    Args:
        problems: `ValidationError.errors()`.
        root: What the message calls the document as a whole, for problems that concern no single field.
    """
    first = problems[0]
    if first["type"] == "json_invalid":
        return validation_error(f"the body is not JSON: {first['ctx']['error']}", 400)
    path = [part for part in first["loc"] if part != "body"]
    if tuple(path[:2]) == ("inputs", "str"):
        # A text or a list: pydantic lists a problem for each of the two; the list's has the number of the text.
        index = next((part for problem in problems for part in problem["loc"] if isinstance(part, int)), None)
        return validation_error(f"inputs{'' if index is None else f'.{index}'}: must be a text or a list of texts")
    return validation_error(f"{'.'.join(map(str, path)) or root}: {first['msg']}")


def internal_error(error: BaseException) -> ApiError:
    """Turn a bug into a 500; logs its type and place, but not its message, which may hold what the user wrote."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else "an unknown place"
    _LOG.error("%s at %s", type(error).__name__, place)
    return ApiError(500, "internal", "the service failed; its log says where")


def model_header(model_id: str) -> dict[str, str]:
    """The header with the model's id: after a new bundle went live, a client knows which of the two answered.

    Args:
        model_id: Id of the bundle; what no header can hold is percent-encoded.
    """
    return {"X-Model-Id": quote(model_id, safe=_SAFE_IN_HEADERS)}


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    return value


# An id that comes back with the answer: JSON can write lone surrogates, but no answer in UTF-8 can hold them.
Id = Annotated[str, AfterValidator(_encodable)]
