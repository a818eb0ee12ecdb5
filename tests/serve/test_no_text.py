"""A text with nothing to read in it has one answer at every door: "no text", and for that text alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import Served, serve_app

from sentiment import predict as cli
from sentiment.predictor import Predictor

# The scoring job has the same ones in tests/ray/test_bad_archives.py.
NOTHING = ["", " ", " \t\u00a0\n", "\0\x01\x7f", "\u200b", "\ufeff\u200d", "#", "<br>"]
TEXTS = ["what a lovely day", *NOTHING, "late again", "?"]
Answers = list[str | None]  # a label, None for a text that is refused by itself


@pytest.fixture(scope="module")
def plain(bundle: Path) -> Iterator[Served]:
    yield from serve_app(bundle)


def library(_: Served, bundle: Path, __: pytest.CaptureFixture[str]) -> Answers:
    said = Predictor.load(bundle, use_gpu=False).predict(TEXTS)
    return [one and one.label for one in said]


def hugging_face(plain: Served, _: Path, __: pytest.CaptureFixture[str]) -> Answers:
    said = plain.client.post("/predict", json={"inputs": TEXTS}).json()
    refused = [one for one in said if isinstance(one, dict)]
    assert refused == [{"error": "no text", "error_type": "validation"}] * len(refused)
    return [None if isinstance(one, dict) else one[0]["label"] for one in said]


def stream(plain: Served, _: Path, __: pytest.CaptureFixture[str]) -> Answers:
    body = "".join(json.dumps({"text": text, "id": at}) + "\n" for at, text in enumerate(TEXTS))
    lines = [json.loads(line) for line in plain.client.post("/score", content=body).text.splitlines()]
    assert [line["id"] for line in lines] == list(range(len(TEXTS)))
    assert {(line["error"], line["error_type"]) for line in lines if "label" not in line} == {("no text", "validation")}
    return [line.get("label") for line in lines]


def open_inference(plain: Served, _: Path, __: pytest.CaptureFixture[str]) -> Answers:
    """One text each: a tensor can't say that it has no value for one of several."""
    labels: Answers = []
    for text in TEXTS:
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
        answer = plain.client.post("/v2/models/sentiment/infer", json={"inputs": [tensor]})
        refusal = {"error": "inputs.0.data.0: no text", "error_type": "validation"}
        assert answer.is_success or (answer.status_code, answer.json()) == (422, refusal)
        labels.append(answer.json()["outputs"][0]["data"][0] if answer.is_success else None)
    return labels


def command(_: Served, bundle: Path, capsys: pytest.CaptureFixture[str]) -> Answers:
    assert cli.main(["--model", str(bundle), "--no-use-gpu", "--json", "--", *TEXTS]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["reason"] for one in said if one["label"] is None} == {"no text"}
    return [one["label"] for one in said]


@pytest.mark.parametrize("door", [library, hugging_face, stream, open_inference, command])
def test_all_doors_refuse_the_same_texts(
    plain: Served,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    door: Callable[[Served, Path, pytest.CaptureFixture[str]], Answers],
) -> None:
    labels = door(plain, bundle, capsys)
    assert [label is None for label in labels] == [text in NOTHING for text in TEXTS]


@pytest.mark.parametrize("path", ["/predict", "/"])
@pytest.mark.parametrize("inputs", [*NOTHING, NOTHING])
def test_a_request_without_any_text_is_refused(plain: Served, path: str, inputs: str | list[str]) -> None:
    answer = plain.client.post(path, json={"inputs": inputs})
    assert (answer.status_code, answer.json()) == (422, {"error": "inputs: no text", "error_type": "validation"})


def test_a_tensor_names_all_elements_without_text(plain: Served) -> None:
    tensor = {"name": "text", "shape": [4], "datatype": "BYTES", "data": ["a", "", "b", "\u200b"]}
    answer = plain.client.post("/v2/models/sentiment/infer", json={"inputs": [tensor]})
    assert (answer.status_code, answer.json()["error"]) == (422, "inputs.0.data.1,3: no text")
