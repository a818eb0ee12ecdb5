"""KServe's Open Inference Protocol, version 2, over HTTP: what Triton's clients and KServe's gateways speak.

A text is an element of a BYTES tensor, plain in the JSON or, as Triton's client sends it, behind the JSON in the
protocol's binary form: each element its length as 4 bytes, little-endian, then the bytes.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from sentiment.text import NO_TEXT
from serve_app.engine import Engine, Scores
from serve_app.responses import ApiError, ErrorResponse, Id, model_header, schema_error

# Length of the JSON in a body that has tensors behind it; the same name in requests and answers.
HEADER_LENGTH = "Inference-Header-Content-Length"
# More than any length has; Python itself refuses to convert thousands of digits.
_MAX_DIGITS = 20
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


def add_endpoints(app: FastAPI, engine: Engine) -> None:
    """Add the protocol's endpoints to the application; they have the engine score their texts."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    not_found: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "No such model"}}

    def check(name: str, http: Request) -> None:
        if name != engine.settings.name:
            raise ApiError(404, f"no such model; there is {engine.settings.name}")
        if http.path_params.get("version", engine.predictor.model_id) != engine.predictor.model_id:
            raise ApiError(404, f"no such version; there is {engine.predictor.model_id}")

    @router.get("")
    async def server() -> dict[str, Any]:
        """Say what the server is."""
        return {"name": "sentiment-at-scale", "version": "2", "extensions": ["binary_tensor_data"]}

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """Answer."""
        return {"live": True}

    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """Say whether the model is loaded and warm."""
        return {"ready": bool(engine.predictor)}

    @router.get("/models/{name}/versions/{version}", include_in_schema=False)
    @router.get("/models/{name}", responses=not_found)
    async def model(name: str, http: Request) -> dict[str, Any]:
        """Say what goes in and out."""
        check(name, http)
        outputs = [{"name": output, "datatype": datatype, "shape": [-1]} for output, datatype in OUTPUTS.items()]
        inputs = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
        versions = [engine.predictor.model_id]
        return {"name": name, "versions": versions, "platform": "pytorch", "inputs": inputs, "outputs": outputs}

    @router.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
    @router.get("/models/{name}/ready", responses=not_found)
    async def model_ready(name: str, http: Request) -> dict[str, Any]:
        """Say whether the model is loaded and warm."""
        check(name, http)
        return {"name": name, "ready": bool(engine.predictor)}

    body = {"required": True, "content": {"application/json": {"schema": InferRequest.model_json_schema()}}}

    @router.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
    @router.post(
        "/models/{name}/infer", response_model=InferResponse, responses=not_found, openapi_extra={"requestBody": body}
    )
    async def infer(name: str, http: Request) -> Response:
        """Classify the texts of a BYTES tensor."""
        check(name, http)
        request, texts = _parse(await http.body(), http.headers.get(HEADER_LENGTH))
        scores = await engine.score(texts, field="inputs.0.data")
        if not all(scores.has_text):
            # A tensor has a value for each text, and none of them could say that there is none. All such texts are
            # named, so that a client can leave them out in one go.
            indices = [str(index) for index, has_text in enumerate(scores.has_text) if not has_text]
            raise ApiError(422, f"inputs.0.data.{','.join(indices)}: {NO_TEXT}")
        return _respond(request, scores, name)

    app.include_router(router)


def _parse(body: bytes, header_length: str | None) -> tuple[InferRequest, list[str]]:
    """Read a request and its texts; `header_length` says how many bytes of the body are JSON, None: all of them."""
    length = str(len(body)) if header_length is None else header_length
    if not (length.isdecimal() and len(length) < _MAX_DIGITS and int(length) <= len(body)):
        raise ApiError(400, f"{HEADER_LENGTH}: not a length within the body")
    json_bytes = int(length)
    try:
        request = InferRequest.model_validate(json.loads(body[:json_bytes]))
    except ValidationError as error:
        raise schema_error(error) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON") from None
    tensor = request.inputs[0]
    size = tensor.parameters.get("binary_data_size")
    if tensor.name != INPUT:
        raise ApiError(422, f"inputs.0.name: the input is called {INPUT}")
    if size is None:
        # The data may be nested as its shape is.
        texts = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in tensor.data or []]
        if tensor.data is None or not all(isinstance(text, str) for text in texts):
            raise ApiError(422, "inputs.0.data: must be texts")
    elif isinstance(size, int) and size == len(body) - json_bytes:
        texts = _decode(body[json_bytes:])
    else:
        raise ApiError(400, "inputs.0.parameters.binary_data_size: not the length of what follows the JSON")
    if tensor.shape not in ([len(texts)], [len(texts), 1]):
        raise ApiError(422, f"inputs.0.shape: there are {len(texts)} texts, so [{len(texts)}] or [{len(texts)}, 1]")
    return request, texts


def _decode(binary: bytes) -> list[str]:
    """Read the elements of a BYTES tensor in binary form."""
    texts, start = [], 0
    while start < len(binary):
        if start + 4 > len(binary):
            raise ApiError(400, "inputs.0: the binary form ends within an element's length")
        (length,) = struct.unpack_from("<I", binary, start)
        end = start + 4 + length
        if end > len(binary):
            raise ApiError(400, "inputs.0: the binary form ends within an element")
        try:
            texts.append(binary[start + 4 : end].decode())
        except UnicodeDecodeError:
            raise ApiError(422, f"inputs.0: element {len(texts)} is not UTF-8") from None
        start = end
    return texts


def _respond(request: InferRequest, scores: Scores, name: str) -> Response:
    values: dict[str, Any] = dict(zip(OUTPUTS, scores.outputs(), strict=True))
    requested = request.outputs or [InferOutput(name=output) for output in OUTPUTS]
    all_binary = request.parameters.get("binary_data_output") is True
    outputs, binaries = [], b""
    for output in requested:
        value = values[output.name]
        tensor: dict[str, Any] = {"name": output.name, "shape": [len(value)], "datatype": OUTPUTS[output.name]}
        if output.parameters.get("binary_data", all_binary) is True:
            if isinstance(value, np.ndarray):
                binary = value.astype("<f4").tobytes()
            else:
                binary = b"".join(struct.pack("<I", len(label)) + label for label in map(str.encode, value))
            tensor["parameters"] = {"binary_data_size": len(binary)}
            binaries += binary
        else:
            tensor["data"] = list(value) if isinstance(value, list) else value.tolist()
        outputs.append(tensor)
    headers = model_header(scores.model_id)
    answer = {"model_name": name, "model_version": scores.model_id, "outputs": outputs}
    head = to_json(answer if request.id is None else {**answer, "id": request.id})
    if not binaries:
        return Response(head, media_type="application/json", headers=headers)
    headers[HEADER_LENGTH] = str(len(head))
    return Response(head + binaries, media_type="application/octet-stream", headers=headers)
