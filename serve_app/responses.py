"""What the answers of all protocols have in common: errors in one form, and the header that names the model.

Errors have the form of text-embeddings-inference, `{"error": message, "error_type": kind}`.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from sentiment.text import NO_TEXT

_LOG = logging.getLogger("ray.serve")
# Characters of a header's value that aren't percent-encoded, beside letters and digits.
_SAFE_IN_HEADERS = string.punctuation + " "

ErrorType = Literal["validation", "unauthorized", "not_found", "overloaded", "unhealthy", "timeout", "internal"]
_TYPE_OF_STATUS: dict[int, ErrorType] = {
    **{401: "unauthorized", 404: "not_found", 405: "not_found", 429: "overloaded"},
    **{500: "internal", 503: "unhealthy", 504: "timeout"},
}


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
        message: What was wrong, for people; never holds what the user wrote.
        error_type: Kind of error, for programs; by default what usually goes with the status.
        retry_after_s: Seconds after which the same request may succeed.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: ErrorType | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after_s, self.headers = status, retry_after_s, headers or {}
        self.body = ErrorResponse(error=message, error_type=error_type or _TYPE_OF_STATUS.get(status, "validation"))

    def response(self) -> Response:
        """The error as a whole HTTP answer."""
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after_s)))
        return Response(self.body.model_dump_json(), self.status, headers, media_type="application/json")


def schema_error(error: ValidationError | RequestValidationError, root: str = "body") -> ApiError:
    """Turn what pydantic found into an error: the first problem, by its field, never with the value that stood there.

    Args:
        error: What pydantic or FastAPI raised.
        root: What the message calls the document as a whole, for problems that concern no single field.
    """
    if isinstance(error, RequestValidationError):
        problems = error.errors()
    else:
        problems = error.errors(include_url=False, include_input=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}")
    path = [part for part in first["loc"] if part != "body"]
    if tuple(path[:2]) == ("inputs", "str"):
        # A text or a list: pydantic lists a problem for each of the two; the list's has the number of the text.
        index = next((part for problem in problems for part in problem["loc"] if isinstance(part, int)), None)
        return ApiError(422, f"inputs{'' if index is None else f'.{index}'}: must be a text or a list of texts")
    return ApiError(422, f"{'.'.join(map(str, path)) or root}: {first['msg']}")


def api_error(error: BaseException) -> ApiError:
    """Turn whatever was raised into an answer.

    A bug becomes a 500. Its type and place are logged, but not its message, which may hold what the user wrote.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        return schema_error(error)
    if isinstance(error, ClientDisconnect):
        return ApiError(400, "the connection was closed before the request was complete")
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else "an unknown place"
    _LOG.error("%s at %s", type(error).__name__, place)
    return ApiError(500, "the service failed; its log says where")


def model_header(model_id: str) -> dict[str, str]:
    """The header that names the model that answered; what no header can hold of its id is percent-encoded."""
    return {"X-Model-Id": quote(model_id, safe=_SAFE_IN_HEADERS)}


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    return value


# An id that comes back with the answer: JSON can write lone surrogates, but no answer in UTF-8 can hold them.
Id = Annotated[str, AfterValidator(_encodable)]
