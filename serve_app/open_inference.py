"""KServe's Open Inference Protocol, version 2, over HTTP: what Triton's clients and KServe's gateways speak.

A text is an element of a BYTES tensor, plain in the JSON or, as Triton's client sends it, behind the JSON in the
protocol's binary form: each element its length as 4 bytes, little-endian, then the bytes.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from sentiment.predictor import labels_and_scores
from serve_app.engine import Engine
from serve_app.errors import ApiError, ErrorResponse, explain, invalid
from serve_app.schemas import Id

# Length of the JSON in a body that has tensors behind it; the same name in requests and answers.
HEADER_LENGTH = "Inference-Header-Content-Length"
# More than any length has; Python itself refuses thousands of them.
_MOST_DIGITS = 20
INPUT = "text"
OUTPUTS = {"label": "BYTES", "score": "FP32", "p_positive": "FP32"}


class InferInput(BaseModel):
    """An input tensor."""

    name: str = Field(description="text", examples=[INPUT])
    shape: list[int] = Field(description="[texts] or [texts, 1]", examples=[[1]])
    datatype: Literal["BYTES"] = Field(description="BYTES", examples=["BYTES"])
    parameters: dict[str, Any] = Field({}, description="binary_data_size: bytes behind the JSON", examples=[{}])
    data: list[Any] | None = Field(None, description="texts, if not in binary form", examples=[["a lovely day"]])


class InferOutput(BaseModel):
    """An output tensor that is asked for."""

    name: Literal["label", "score", "p_positive"] = Field(description="which", examples=["label"])
    parameters: dict[str, Any] = Field({}, description="binary_data: in binary form", examples=[{"binary_data": False}])


class InferRequest(BaseModel):
    """Texts to classify."""

    model_config = ConfigDict(extra="ignore")

    id: Id | None = Field(None, description="comes back", examples=["42"])
    parameters: dict[str, Any] = Field({}, description="binary_data_output: all in binary form", examples=[{}])
    inputs: list[InferInput] = Field(description="the tensor `text`", min_length=1, max_length=1)
    outputs: list[InferOutput] | None = Field(
        None,
        description="which outputs; all by default",
        examples=[[{"name": "label"}]],
        max_length=len(OUTPUTS),
    )


class Tensor(BaseModel):
    """An output tensor."""

    name: str = Field(description="label, score or p_positive", examples=["label"])
    shape: list[int] = Field(description="[texts]", examples=[[1]])
    datatype: str = Field(description="BYTES or FP32", examples=["BYTES"])
    data: list[Any] = Field(description="values", examples=[["POSITIVE"]])


class InferResponse(BaseModel):
    """What the model says."""

    model_name: str = Field(description="name in the path", examples=["sentiment"])
    model_version: str = Field(description="which bundle it is", examples=["tweets-0a1b2c3d4e5f"])
    id: str | None = Field(None, description="as it came in", examples=["42"])
    outputs: list[Tensor] = Field(description="tensors")


def router(engine: Engine) -> APIRouter:
    """The endpoints.

    Args:
        engine: Answers.
    """
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    missing: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "No such model"}}

    def check(name: str, http: Request) -> None:
        if name != engine.settings.name:
            raise ApiError(404, "not_found", f"no such model; there is {engine.settings.name}")
        if http.path_params.get("version", engine.predictor.model_id) != engine.predictor.model_id:
            raise ApiError(404, "not_found", f"no such version; there is {engine.predictor.model_id}")

    @routes.get("")
    async def server() -> dict[str, Any]:
        """Say what the server is."""
        return {"name": "sentiment-at-scale", "version": "2", "extensions": ["binary_tensor_data"]}

    @routes.head("/health/live", include_in_schema=False)
    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """Answer."""
        return {"live": True}

    @routes.head("/health/ready", include_in_schema=False)
    @routes.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """Say whether the model is loaded and warm."""
        return {"ready": bool(engine.predictor)}

    @routes.get("/models/{name}/versions/{version}", include_in_schema=False)
    @routes.get("/models/{name}", responses=missing)
    async def model(name: str, http: Request) -> dict[str, Any]:
        """Say what goes in and out."""
        check(name, http)
        outputs = [{"name": output, "datatype": datatype, "shape": [-1]} for output, datatype in OUTPUTS.items()]
        inputs = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
        versions = [engine.predictor.model_id]
        return {"name": name, "versions": versions, "platform": "pytorch", "inputs": inputs, "outputs": outputs}

    @routes.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
    @routes.get("/models/{name}/ready", responses=missing)
    async def model_ready(name: str, http: Request) -> dict[str, Any]:
        """Say whether the model is loaded and warm."""
        check(name, http)
        return {"name": name, "ready": bool(engine.predictor)}

    body = {"required": True, "content": {"application/json": {"schema": InferRequest.model_json_schema()}}}

    @routes.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
    @routes.post(
        "/models/{name}/infer", response_model=InferResponse, responses=missing, openapi_extra={"requestBody": body}
    )
    async def infer(name: str, http: Request) -> Response:
        """Classify the texts of a BYTES tensor."""
        check(name, http)
        request, texts = parse(await http.body(), http.headers.get(HEADER_LENGTH))
        scores = await engine.score(texts, field="inputs.0.data")
        p_positive = scores.p_positive.astype(np.float32)
        labels, likely = labels_and_scores(p_positive)
        values: dict[str, Any] = {"label": labels, "score": likely, "p_positive": p_positive}
        return _answer(request, values, engine.settings.name, scores.model_id)

    return routes


def parse(body: bytes, header_length: str | None) -> tuple[InferRequest, list[str]]:
    """Read a request, in either form.

    Args:
        body: JSON, with or without tensors behind it.
        header_length: Bytes of the JSON, if there are.

    Returns:
        The request and its texts.

    Raises:
        ApiError: It isn't what the protocol says.
    """
    is_length = header_length is None or (header_length.isdecimal() and len(header_length) < _MOST_DIGITS)
    if not is_length or int(header_length or 0) > len(body):
        raise invalid(f"{HEADER_LENGTH}: not a length within the body", 400)
    end = len(body) if header_length is None else int(header_length)
    try:
        request = InferRequest.model_validate(json.loads(body[:end]))
    except ValidationError as error:
        raise explain(error.errors(include_url=False, include_input=False)) from None
    except (ValueError, RecursionError):
        raise invalid("the body is not JSON", 400) from None
    tensor = request.inputs[0]
    size = tensor.parameters.get("binary_data_size")
    if tensor.name != INPUT:
        raise invalid(f"inputs.0.name: the input is called {INPUT}")
    if size is None:
        texts = _plain(tensor.data)
    elif isinstance(size, int) and size == len(body) - end:
        texts = _elements(body[end:])
    else:
        raise invalid("inputs.0.parameters.binary_data_size: not the length of what follows the JSON", 400)
    if tensor.shape not in ([len(texts)], [len(texts), 1]):
        raise invalid(f"inputs.0.shape: there are {len(texts)} texts, so [{len(texts)}] or [{len(texts)}, 1]")
    return request, texts


def _plain(data: list[Any] | None) -> list[str]:
    """The texts of JSON data, which may be nested as its shape is."""
    flat = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in data or []]
    if data is None or not all(isinstance(value, str) for value in flat):
        raise invalid("inputs.0.data: must be texts")
    return flat


def _elements(binary: bytes) -> list[str]:
    texts, at = [], 0
    while at < len(binary):
        if at + 4 > len(binary):
            raise invalid("inputs.0: the binary form ends within an element's length", 400)
        (length,) = struct.unpack_from("<I", binary, at)
        at += 4
        if at + length > len(binary):
            raise invalid("inputs.0: the binary form ends within an element", 400)
        try:
            texts.append(binary[at : at + length].decode())
        except UnicodeDecodeError:
            raise invalid(f"inputs.0: element {len(texts)} is not UTF-8") from None
        at += length
    return texts


def _answer(request: InferRequest, values: dict[str, Any], name: str, version: str) -> Response:
    asked = request.outputs or [InferOutput(name=output) for output in OUTPUTS]
    all_binary = request.parameters.get("binary_data_output") is True
    outputs, behind = [], b""
    for output in asked:
        value = values[output.name]
        tensor: dict[str, Any] = {"name": output.name, "shape": [len(value)], "datatype": OUTPUTS[output.name]}
        if output.parameters.get("binary_data", all_binary) is True:
            binary = _binary(value)
            tensor["parameters"] = {"binary_data_size": len(binary)}
            behind += binary
        else:
            tensor["data"] = list(value) if isinstance(value, list) else value.tolist()
        outputs.append(tensor)
    said = {"model_name": name, "model_version": version, "outputs": outputs}
    head = to_json(said if request.id is None else {**said, "id": request.id})
    if not behind:
        return Response(head, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(head + behind, media_type="application/octet-stream", headers=headers)


def _binary(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.astype("<f4").tobytes()
    return b"".join(struct.pack("<I", len(label)) + label for label in map(str.encode, value))
