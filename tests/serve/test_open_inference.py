"""The Open Inference Protocol, plain and binary; Triton's own client is in test_service.py."""

from __future__ import annotations

import json
import struct

import pytest
from served import Served

from sentiment.predictor import Predictor

TEXTS = ["what a lovely day", "my train is late again", ".", "😀" * 20]


def infer(served: Served, tensor: dict[str, object], **more: object) -> dict[str, object]:
    answer = served.client.post("/v2/models/sentiment/infer", json={"inputs": [tensor], **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_infer_in_plain_json(served: Served, predictor: Predictor) -> None:
    tensor = {"name": "text", "shape": [4, 1], "datatype": "BYTES", "data": [[text] for text in TEXTS]}
    said = infer(served, tensor, id="7")
    assert (said["model_name"], said["model_version"], said["id"]) == ("sentiment", predictor.model_id, "7")
    outputs = {output["name"]: output for output in said["outputs"]}  # type: ignore[attr-defined]
    assert outputs["label"]["data"] == [one.label for one in predictor.predict(TEXTS)]
    assert outputs["p_positive"]["data"] == pytest.approx(
        [one.p_positive for one in predictor.predict(TEXTS)], abs=1e-5
    )
    assert {output["shape"][0] for output in outputs.values()} == {4}


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"name": "words", "shape": [1], "datatype": "BYTES", "data": ["a"]}, "the input is called text"),
        ({"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a"]}, "inputs.0.shape: there are 1 texts"),
        ({"name": "text", "shape": [1], "datatype": "FP32", "data": [1.0]}, "inputs.0.datatype"),
        ({"name": "text", "shape": [1], "datatype": "BYTES", "data": [1]}, "inputs.0.data: must be texts"),
        ({"name": "text", "shape": [1], "datatype": "BYTES"}, "inputs.0.data: must be texts"),
    ],
)
def test_infer_mistakes(served: Served, tensor: dict[str, object], words: str) -> None:
    answer = served.client.post("/v2/models/sentiment/infer", json={"inputs": [tensor]})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert words in answer.json()["error"]


@pytest.mark.parametrize("behind", [struct.pack("<I", 9) + b"short", b"\x01\x00", struct.pack("<I", 1) + b"\xff"])
def test_damaged_binary_tensors(served: Served, behind: bytes) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(behind)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = served.client.post("/v2/models/sentiment/infer", content=head + behind, headers=headers)
    assert answer.status_code in {400, 422}
    assert answer.json()["error"].startswith("inputs.0: ")
    for length in ("x", str(len(head) + 100)):
        headers = {"Inference-Header-Content-Length": length}
        answer = served.client.post("/v2/models/sentiment/infer", content=head, headers=headers)
        assert answer.status_code == 400


def test_no_more_outputs_than_there_are(served: Served) -> None:
    """Each is written out: thousands in a small request would be gigabytes."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    body = {"inputs": [tensor], "outputs": [{"name": "label"}] * 4}
    answer = served.client.post("/v2/models/sentiment/infer", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert served.client.post("/v2/models/sentiment/infer", json={**body, "outputs": body["outputs"][:3]}).is_success


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "x", "1_0", "10000000"])
def test_lengths_that_are_none(served: Served, length: str) -> None:
    answer = served.client.post(
        "/v2/models/sentiment/infer", content=b"{}", headers={"Inference-Header-Content-Length": length}
    )
    assert (answer.status_code, answer.json()["error_type"]) == (400, "validation")


def test_models_are_described(served: Served, predictor: Predictor) -> None:
    assert served.client.get("/v2").json()["name"] == "sentiment-at-scale"
    assert served.client.get("/v2/models/sentiment").json()["versions"] == [predictor.model_id]
    assert served.client.get("/v2/models/sentiment/ready").json()["ready"] is True
    for path in ("/v2/models/other", "/v2/models/other/ready"):
        assert served.client.get(path).json() == {
            "error": "no such model; there is sentiment",
            "error_type": "not_found",
        }
    there, other = (f"/v2/models/sentiment/versions/{version}" for version in (predictor.model_id, "7"))
    assert served.client.get(there).json() == served.client.get("/v2/models/sentiment").json()
    assert served.client.get(f"{there}/ready").json()["ready"] is True
    answer = served.client.get(other)
    assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")


def test_half_a_surrogate_pair_is_no_id(served: Served) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a \ud800"]}
    body = json.dumps({"id": "\ud800", "inputs": [tensor]})
    answer = served.client.post("/v2/models/sentiment/infer", content=body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    body = json.dumps({"id": "7", "inputs": [tensor]})  # In a text it is read as what it is: something unreadable.
    assert served.client.post("/v2/models/sentiment/infer", content=body).status_code == 200
