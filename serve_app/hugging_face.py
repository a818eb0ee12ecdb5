"""Hugging Face's text-classification task: `POST /predict`, and `POST /` for clients that know only the address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sentiment.predictor import labels_and_scores
from sentiment.schema import LABELS
from serve_app.engine import Engine, Scores
from serve_app.errors import ErrorResponse, explain
from serve_app.schemas import LabelScore, Parameters, PredictRequest

PATHS = ("/predict", "/")


def routes(engine: Engine) -> list[Route]:
    """The endpoints, as plain routes of Starlette: FastAPI's way to a handler costs more than all else of a request.

    Args:
        engine: Answers.
    """
    return [Route(path, _endpoint(engine, path), methods=["POST"]) for path in PATHS]


def _endpoint(engine: Engine, path: str) -> Callable[[Request], Awaitable[Response]]:
    async def predict(http: Request) -> Response:
        http.state.route = path
        try:
            request = PredictRequest.model_validate_json(await http.body())
        except ValidationError as error:
            raise explain(error.errors(include_url=False, include_input=False)) from None
        parameters = request.parameters or Parameters()
        scores = await engine.score(request.texts, truncate=parameters.truncation is not False)
        return Response(to_json(ranked(scores, parameters)), media_type="application/json")

    return predict


def description() -> APIRouter:
    """The same for the OpenAPI document, whose requests never get this far."""
    described = APIRouter(tags=["Hugging Face"])
    answers: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": words}
        for status, words in ((413, "Too much"), (422, "Not what is asked for"), (429, "Too busy"), (504, "Too slow"))
    }

    @described.post(PATHS[0], response_model=list[list[LabelScore]], responses=answers)
    async def predict(request: PredictRequest) -> None:
        """Classify texts: a list for each text, with its labels, best first; also for a single text."""
        raise AssertionError("the plain route comes first")

    return described


def ranked(scores: Scores, parameters: Parameters) -> list[list[dict[str, object]]]:
    """Labels and scores of each text, best first; a tie is positive, as everywhere.

    Args:
        scores: Of the texts.
        parameters: How many labels, and which function.
    """
    if parameters.function_to_apply == "none":
        half_N = scores.logits.astype(np.float64) / 2
        both_N2 = np.stack([-half_N, half_N], axis=1)
    else:
        p_N = scores.p_positive
        both_N2 = np.stack([1 - p_N, p_N], axis=1)
    top_k = min(parameters.top_k or len(LABELS), len(LABELS))
    likelier, _ = labels_and_scores(scores.p_positive.astype(np.float32))
    answers = []
    for pair, first in zip(both_N2.tolist(), likelier, strict=True):
        order = (1, 0) if first == LABELS[1] else (0, 1)
        answers.append([{"label": LABELS[at], "score": pair[at]} for at in order[:top_k]])
    return answers
