"""Hugging Face's text-classification task: `POST /predict`, and `POST /` for clients that know only the address."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic_core import to_json

from sentiment.schema import LABELS
from serve_app.engine import Engine, Scores
from serve_app.errors import ErrorResponse
from serve_app.schemas import LabelScore, Parameters, PredictRequest


def router(engine: Engine) -> APIRouter:
    """The endpoints.

    Args:
        engine: Answers.
    """
    routes = APIRouter(tags=["Hugging Face"])

    async def predict(request: PredictRequest) -> Response:
        """Classify texts: a list for each text, with its labels, best first; also for a single text."""
        parameters = request.parameters or Parameters()
        scores = await engine.score(request.texts, truncate=parameters.truncation is not False)
        return Response(to_json(ranked(scores, parameters)), media_type="application/json")

    answers: dict[int | str, dict[str, object]] = {
        status: {"model": ErrorResponse, "description": words}
        for status, words in ((413, "Too much"), (422, "Not what is asked for"), (429, "Too busy"), (504, "Too slow"))
    }
    add: Callable[..., None] = routes.add_api_route
    for path, shown in (("/predict", True), ("/", False)):
        add(
            path,
            predict,
            methods=["POST"],
            response_model=list[list[LabelScore]],
            responses=answers,
            include_in_schema=shown,
        )
    return routes


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
    answers = []
    for pair in both_N2.tolist():
        order = (1, 0) if pair[1] >= pair[0] else (0, 1)
        answers.append([{"label": LABELS[at], "score": pair[at]} for at in order[:top_k]])
    return answers
