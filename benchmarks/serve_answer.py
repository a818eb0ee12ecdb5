"""What the rivals of `benchmarks/serve.py` take and give: Hugging Face's form, as our service has it, one text each."""

from __future__ import annotations

from pydantic import BaseModel

from sentiment.predictor import Prediction, Predictor

Answer = list[list[dict[str, str | float]]]


class Text(BaseModel):
    """A request."""

    inputs: str


def answer(predictor: Predictor, text: str) -> Answer:
    """Classify a text.

    Args:
        predictor: The model.
        text: As it came.
    """
    return form(predictor.predict([text])[0])


def form(found: Prediction) -> Answer:
    """Write a prediction as an answer: the likelier label of the one text.

    Args:
        found: What the model says.
    """
    return [[{"label": found.label, "score": found.score}]]
