"""Hugging Face's text-classification task: `POST /predict`, and `POST /` for clients that know only the address."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sentiment.predictor import labels_and_scores
from sentiment.schema import LABELS, POSITIVE
from sentiment.text import NO_TEXT
from serve_app.engine import Engine, Scores
from serve_app.responses import NO_TEXT_ERROR, ApiError, ErrorResponse, model_header, schema_error


class Parameters(BaseModel):
    """How to answer, as Hugging Face's text-classification task has it."""

    model_config = ConfigDict(extra="forbid")

    top_k: int | None = Field(None, ge=1, description="labels for each text, best first; all by default", examples=[1])
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = Field(
        None,
        description="softmax and sigmoid, which are the same for a model with one logit: the label's probability; "
        "none: half the logit, positive for one label and negative for the other, whose softmax that is",
        examples=["softmax"],
    )
    truncation: bool | None = Field(
        None, description="false: refuse texts longer than the model reads instead of cutting them", examples=[True]
    )


class PredictRequest(BaseModel):
    """Texts to classify, in the form of Hugging Face's text-classification task."""

    model_config = ConfigDict(extra="forbid")

    inputs: str | list[str] = Field(
        description="one text, or several; a list is always a batch, never a pair",
        examples=["what a lovely day", ["what a lovely day", "my train is late again"]],
    )
    parameters: Parameters | None = Field(None, description="how to answer", examples=[{"top_k": 1}])
    options: dict[str, Any] | None = Field(
        None, description="sent by older clients of Hugging Face; ignored", examples=[{"wait_for_model": True}]
    )


class LabelScore(BaseModel):
    """A label and how much it fits."""

    label: str = Field(description="label", examples=[LABELS[POSITIVE]])
    score: float = Field(description="its probability, unless another function was asked for", examples=[0.98])


def add_endpoints(app: FastAPI, engine: Engine) -> None:
    """Add the protocol's endpoints to the application; they have the engine score their texts."""
    # Plain routes of Starlette: FastAPI's way to a handler costs more than all else of a request.
    app.router.routes[:0] = [
        Route(path, partial(_predict, engine, path), methods=["POST"]) for path in ("/predict", "/")
    ]
    statuses = {413: "Too much", 422: "Not what is asked for", 429: "Too busy", 504: "Too slow"}
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": description} for status, description in statuses.items()
    }

    @app.post(
        "/predict", tags=["Hugging Face"], response_model=list[list[LabelScore] | ErrorResponse], responses=responses
    )
    async def predict(request: PredictRequest) -> None:
        """Classify texts: a list for each text, with its labels, best first; also for a single text.

        A text with nothing to read in it gets an error instead of the list; if no text has, that is a 422.
        """
        raise AssertionError("it is there for the OpenAPI document; the plain route comes first")


async def _predict(engine: Engine, path: str, http: Request) -> Response:
    http.scope["state"]["route"] = path  # for metrics: Starlette's plain routes don't leave it in the scope
    try:
        request = PredictRequest.model_validate_json(await http.body())
    except ValidationError as error:
        raise schema_error(error) from None
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    parameters = request.parameters or Parameters()
    scores = await engine.score(texts, truncate=parameters.truncation is not False)
    if texts and not any(scores.has_text):
        raise ApiError(422, f"inputs: {NO_TEXT}")
    body = to_json(_ranked(scores, parameters))
    return Response(body, media_type="application/json", headers=model_header(scores.model_id))


def _ranked(scores: Scores, parameters: Parameters) -> list[list[dict[str, object]] | ErrorResponse]:
    """Give for each text its labels with their scores, best first, or an error if it has nothing to read in it.

    One text of a batch that can't be scored doesn't cost the others their answers, and its error stands where a client
    looks for its labels. It is no list, so that no client takes it for one without a look.
    """
    p_N, half_N = scores.p_positive, scores.logits.astype(np.float64) / 2
    best_labels, _ = labels_and_scores(p_N.astype(np.float32))  # A tie is positive, as everywhere.
    pair_2N = (-half_N, half_N) if parameters.function_to_apply == "none" else (1 - p_N, p_N)
    ranked = []
    for best, *pair in zip(best_labels, *(value_N.tolist() for value_N in pair_2N), strict=True):
        labels: list[dict[str, object]] = [
            {"label": label, "score": score} for label, score in zip(LABELS, pair, strict=True)
        ]
        ranked.append((labels if best == LABELS[0] else labels[::-1])[: parameters.top_k])
    return scores.for_each_text(ranked, NO_TEXT_ERROR)
