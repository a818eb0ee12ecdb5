"""The forms of requests and answers, an example on every field: Hugging Face's, and what the service says of itself.

Those of the Open Inference Protocol are in `serve_app.open_inference`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sentiment.schema import LABELS, POSITIVE

Activation = Literal["sigmoid", "softmax", "none"]


def _encodable(value: str) -> str:
    """JSON can write lone surrogates, but nobody can answer with them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    return value


Id = Annotated[str, AfterValidator(_encodable)]


class Parameters(BaseModel):
    """How to answer, as Hugging Face's text-classification task has it."""

    model_config = ConfigDict(extra="forbid")

    top_k: int | None = Field(None, ge=1, description="labels for each text, best first; all by default", examples=[1])
    function_to_apply: Activation | None = Field(
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

    @property
    def texts(self) -> list[str]:
        """All inputs."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


class LabelScore(BaseModel):
    """A label and how much it fits."""

    label: str = Field(description="label", examples=[LABELS[POSITIVE]])
    score: float = Field(description="its probability, unless another function was asked for", examples=[0.98])


class ScoreLine(BaseModel):
    """One line that comes in at /score; a line may also be a plain JSON string."""

    text: str = Field(description="text to score", examples=["what a lovely day"])
    id: Id | int | None = Field(None, description="comes back with the answer", examples=["tweet-1"])


class ScoredLine(BaseModel):
    """One line that goes out at /score; instead of it, one with `error` and `error_type` for a bad line."""

    line: int = Field(description="number of the line that it answers, from 1", examples=[1])
    id: str | int | None = Field(None, description="as it came in", examples=["tweet-1"])
    label: str = Field(description="likelier label", examples=[LABELS[POSITIVE]])
    score: float = Field(description="its probability", examples=[0.98])
    p_positive: float = Field(description="probability of the positive label", examples=[0.98])


class Limits(BaseModel):
    """What a request may hold."""

    max_texts: int = Field(description="texts of a request", examples=[1024])
    max_text_chars: int = Field(description="characters of a text", examples=[100_000])
    max_tokens: int = Field(description="tokens of a text that the model reads; the rest is cut", examples=[512])
    max_body_bytes: int = Field(description="size of a request; /score has none", examples=[8 << 20])
    max_queued_texts: int = Field(description="texts that may wait in a replica", examples=[2048])
    request_timeout_s: float = Field(description="seconds until a request is given up", examples=[30.0])


class Info(BaseModel):
    """What is served, and how."""

    name: str = Field(description="of the model in /v2", examples=["sentiment"])
    model_id: str = Field(description="which bundle it is", examples=["tweets-0a1b2c3d4e5f"])
    labels: list[str] = Field(description="in the order of their numbers", examples=[list(LABELS)])
    precision: str = Field(description="number format of the forward pass", examples=["bf16"])
    device: str = Field(description="what it runs on", examples=["cpu"])
    requires_api_key: bool = Field(description="whether requests need `Authorization: Bearer KEY`", examples=[False])
    limits: Limits = Field(
        description="what a request may hold",
        examples=[
            {
                "max_texts": 1024,
                "max_text_chars": 100_000,
                "max_tokens": 512,
                "max_body_bytes": 8 << 20,
                "max_queued_texts": 2048,
                "request_timeout_s": 30.0,
            }
        ],
    )
    versions: dict[str, str] = Field(description="of what matters", examples=[{"torch": "2.13.0", "ray": "2.60.0"}])


class Health(BaseModel):
    """The model is loaded and warm."""

    status: Literal["ok"] = Field("ok", description="always ok: otherwise the answer is a 503", examples=["ok"])
