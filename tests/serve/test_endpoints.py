"""What clients send and get: Hugging Face's form, errors, keys, limits."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from served import Notes, Served, digests, serve_app
from starlette.types import Message

from sentiment.errors import ConfigError
from sentiment.predictor import FloatArray, Predictor
from sentiment.schema import LABELS
from sentiment.settings import ServeSettings
from serve_app import asgi
from serve_app.app import Replica, api_key_digests
from serve_app.asgi import SWAGGER, create_app
from serve_app.engine import Engine

NEGATIVE, POSITIVE = LABELS
TEXTS = ["what a lovely day", "my train is late again", ".", "😀" * 20]


def test_one_text_is_answered_like_a_batch_of_one(served: Served, predictor: Predictor) -> None:
    (expected,) = predictor.predict([TEXTS[0]])
    for inputs in (TEXTS[0], [TEXTS[0]]):
        answer = served.client.post("/predict", json={"inputs": inputs})
        assert answer.status_code == 200
        ((best, other),) = answer.json()
        assert (best["label"], best["score"]) == (expected.label, pytest.approx(expected.score, abs=1e-5))
        assert best["score"] + other["score"] == pytest.approx(1)
        assert {best["label"], other["label"]} == {POSITIVE, NEGATIVE}


def test_every_answer_names_its_model(served: Served, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], "parameters": {}}
    infer, binary = {"inputs": [tensor]}, {"parameters": {"binary_data_output": True}}
    asked = [
        *(("/predict", {"inputs": "a"}), ("/", {"inputs": "a"}), ("/score", "a")),
        *(("/v2/models/sentiment/infer", infer), ("/v2/models/sentiment/infer", {**infer, **binary})),
    ]
    for path, body in asked:
        assert served.client.post(path, json=body).headers["X-Model-Id"] == predictor.model_id
    # The recipe's name is in a file that somebody else may have written.
    monkeypatch.setattr(served.engine.predictor, "model_id", "größe\r\nX-Other: 1")
    for path, body in asked:
        assert served.client.post(path, json=body).headers["X-Model-Id"] == "gr%C3%B6%C3%9Fe%0D%0AX-Other: 1"


def test_texts_come_back_in_order(served: Served, predictor: Predictor) -> None:
    answer = served.client.post("/predict", json={"inputs": TEXTS, "parameters": {"top_k": 1}}).json()
    expected = predictor.predict(TEXTS)
    assert [[label["label"] for label in labels] for labels in answer] == [[one.label] for one in expected]
    assert [labels[0]["score"] for labels in answer] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_the_base_address_is_an_endpoint_too(served: Served) -> None:
    body = {"inputs": TEXTS[0]}
    assert served.client.post("/", json=body).json() == served.client.post("/predict", json=body).json()
    assert served.client.post("/predict", json={"inputs": []}).json() == []


def test_functions_agree(served: Served) -> None:
    def ask(function: str) -> dict[str, float]:
        body = {"inputs": TEXTS[0], "parameters": {"function_to_apply": function}}
        return {label["label"]: label["score"] for label in served.client.post("/predict", json=body).json()[0]}

    softmax, logits = ask("softmax"), ask("none")
    assert ask("sigmoid") == softmax
    assert logits[POSITIVE] == -logits[NEGATIVE]
    assert softmax[POSITIVE] == pytest.approx(1 / (1 + math.exp(logits[NEGATIVE] - logits[POSITIVE])))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("{", 400, "the body is not JSON"),
        ('{"inputs": 3}', 422, "inputs: must be a text or a list of texts"),
        ('{"inputs": ["a", ["b", "c"]]}', 422, "inputs.1: must be a text or a list of texts"),
        ('{"input": "a"}', 422, "inputs: Field required"),
        ('{"inputs": "a", "parameters": {"topk": 1}}', 422, "parameters.topk: Extra inputs are not permitted"),
        ('{"inputs": "a", "parameters": {"top_k": 0}}', 422, "parameters.top_k: "),
        ('{"inputs": "a", "parameters": {"function_to_apply": "relu"}}', 422, "parameters.function_to_apply: "),
        (json.dumps({"inputs": "secret " * 30}), 413, "inputs: at most 200 characters, got 210"),
        (json.dumps({"inputs": ["a", "b" * 201]}), 413, "inputs.1: at most 200 characters, got 201"),
        (json.dumps({"inputs": ["a"] * 9}), 413, "inputs: at most 8 texts, got 9"),
        (json.dumps({"inputs": "a b " * 20, "parameters": {"truncation": False}}), 413, "the model reads 32 tokens"),
        (json.dumps({"inputs": ["a"] * 3000}), 413, "the body has more than 10485 bytes"),
    ],
)
def test_mistakes_are_told(served: Served, body: str, status: int, words: str) -> None:
    answer = served.client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "error_type"}
    assert words in answer.json()["error"]
    assert answer.json()["error_type"] == "validation"
    assert "secret" not in answer.text
    assert served.notes.answers[-1][1:] == (status, "validation")


def test_a_body_of_unknown_length_is_bounded_too(served: Served) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"inputs": "'
        for _ in range(100):
            yield b"a" * 1000
        yield b'"}'

    answer = served.client.post("/predict", content=chunks(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error_type"]) == (413, "validation")


def test_whatever_is_wrong_with_a_new_bundle_the_old_one_stays(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Raised, it would make Ray end every replica."""

    async def main() -> None:
        service = Replica(ServeSettings(model=str(bundle)).rooted(str(bundle.parent)), ())
        with pytest.raises(ConfigError, match="user_config holds `model`"):
            await service.reconfigure({"modle": str(bundle)})
        # Relative ones begin where those of `args` do.
        await service.reconfigure({"model": bundle.name})
        for wrong in ({"modle": "a"}, {"model": None}, {"model": str(bundle.parent / "none")}):
            await service.reconfigure(wrong)

        def no_room(*_: object) -> None:
            raise RuntimeError("CUDA out of memory")

        monkeypatch.setattr(Engine, "load", no_room)
        await service.reconfigure({"model": str(bundle.parent)})
        await service.check_health()
        assert len((await service._engine.score(["a"])).logits) == 1

    asyncio.run(main())
    assert caplog.text.count(f"{bundle} stays in service") == 4
    assert "CUDA out of memory" in caplog.text


def test_a_relative_root_is_put_before_the_model_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent.parent)
    settings = ServeSettings(model=bundle.name).rooted(bundle.parent.name)

    async def main() -> None:
        service = Replica(settings, ())
        await service.reconfigure({"model": settings.model})  # as `application` has it
        await service.check_health()

    asyncio.run(main())


def test_a_broken_model_is_not_healthy(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that Ray replaces the replica."""

    def broken(self: Predictor, ids: Sequence[Sequence[int]]) -> FloatArray:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    async def main() -> None:
        service = Replica(ServeSettings(model=str(bundle)), ())
        await service.reconfigure({"model": str(bundle)})
        monkeypatch.setattr(Predictor, "logits", broken)
        for _ in range(10):
            await service.check_health()
            with pytest.raises(RuntimeError, match="CUDA error"):
                await service._engine.score(["a"])
        with pytest.raises(RuntimeError, match="10 batches in a row have failed"):
            await service.check_health()

    asyncio.run(main())


def test_json_is_read_whatever_it_is_called(served: Served) -> None:
    """`curl -d` without a header calls it a form."""
    answer = served.client.post(
        "/predict", content='{"inputs": "a"}', headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert answer.status_code == 200


def test_load_balancers_may_ask_for_the_head(served: Served) -> None:
    for path in ("/", "/health", "/v2/health/live", "/v2/health/ready"):
        assert served.client.head(path).status_code == 200


def test_other_paths_and_methods(served: Served) -> None:
    for answer, status in ((served.client.get("/nothing"), 404), (served.client.delete("/predict"), 405)):
        assert (answer.status_code, answer.json()["error_type"]) == (status, "not_found")


def test_nothing_is_answered_before_the_model_is_there(bundle: Path) -> None:
    notes = Notes()
    engine = Engine(ServeSettings(model=str(bundle)), notes)
    with TestClient(create_app(engine, notes)) as client:
        for path in ("/health", "/v2/health/ready", "/info"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error_type"]) == (503, "unhealthy")
            assert int(answer.headers["Retry-After"]) >= 1
        assert client.get("/v2/health/live").status_code == 200
        assert client.post("/predict", json={"inputs": "a"}).status_code == 503
        assert client.post("/score", content=b'"a"\n').status_code == 503


def test_a_bug_is_a_500_without_the_text(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(ids: object) -> None:
        raise RuntimeError("secret")

    with monkeypatch.context() as patched:
        patched.setattr(served.engine.predictor, "logits", fail)
        answer = served.client.post("/predict", json={"inputs": "secret"})
        (line,) = served.client.post("/score", content=b'"secret"').text.splitlines()
    assert (answer.status_code, answer.json()["error_type"]) == (500, "internal")
    assert json.loads(line) == {"line": 1, "error": answer.json()["error"], "error_type": "internal"}
    assert ("/predict", 500, "internal") in served.notes.answers
    assert "secret" not in answer.text + caplog.text
    assert "RuntimeError at" in caplog.text
    assert served.client.post("/predict", json={"inputs": "a"}).status_code == 200


def test_info_says_what_may_be_sent(served: Served, predictor: Predictor) -> None:
    info = served.client.get("/info").json()
    assert info["model_id"] == predictor.model_id
    assert info["labels"] == [NEGATIVE, POSITIVE]
    assert info["limits"]["max_texts"] == 8
    assert info["limits"]["max_tokens"] == 32
    assert info["requires_api_key"] is False
    assert info["versions"]["ray"]


def test_every_field_has_an_example(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    ours = {name: schema for name, schema in document["components"]["schemas"].items() if "ValidationError" not in name}
    missing = [
        f"{name}.{field}"
        for name, schema in ours.items()
        for field, facts in schema.get("properties", {}).items()
        if not facts.get("examples") and "$ref" not in str(facts)
    ]
    assert missing == []


@pytest.fixture
def held(bundle: Path) -> Iterator[tuple[Served, threading.Event]]:
    """A model that answers only when it's told to, behind a short queue and a short patience."""
    go = threading.Event()
    for served in serve_app(bundle, max_queued_texts=3, retry_after_s=7, request_timeout_s=0.5):
        model = served.engine.predictor
        answer = model.logits

        def wait_then_answer(ids: Sequence[Sequence[int]], answer: Any = answer) -> FloatArray:
            assert go.wait(20)
            found: FloatArray = answer(ids)
            return found

        model.logits = wait_then_answer  # type: ignore[method-assign]
        yield served, go
        go.set()


def test_a_full_queue_and_a_slow_model_are_told(held: tuple[Served, threading.Event]) -> None:
    served, go = held
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(served.client.post, "/predict", json={"inputs": "a"}) for _ in range(3)]
        while served.engine._batcher.waiting < 3:
            time.sleep(0.001)
        refused = served.client.post("/predict", json={"inputs": "a"})
        late = [task.result() for task in waiting]
    assert (refused.status_code, refused.json()["error_type"]) == (429, "overloaded")
    assert refused.headers["Retry-After"] == "7"
    assert "3 texts wait already, 3 may" in refused.json()["error"]
    for answer in late:
        assert (answer.status_code, answer.json()["error_type"]) == (504, "timeout")
        assert "no answer within 0.5 s" in answer.json()["error"]
    go.set()
    assert served.client.post("/predict", json={"inputs": "a"}).status_code == 200


# --- API keys -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(bundle: Path) -> Iterator[Served]:
    yield from serve_app(bundle, "first-key", "zweiter-schlüssel")


@pytest.mark.parametrize("path", ["/predict", "/score", "/", "/v2/models/sentiment/infer"])
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic first-key", "Bearer first-key2"])
def test_wrong_keys_are_refused(locked: Served, path: str, header: str | None) -> None:
    answer = locked.client.post(path, headers={"Authorization": header} if header else {}, json={"inputs": "a"})
    assert (answer.status_code, answer.json()["error_type"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "first-key" not in answer.text


def test_right_keys_open(locked: Served) -> None:
    for key in ("first-key", "zweiter-schlüssel"):
        header = f"Bearer {key}".encode()
        answer = locked.client.post("/predict", headers={b"Authorization": header}, json={"inputs": "a"})
        assert answer.status_code == 200
    for path in ("/health", "/v2/health/ready", "/", "/openapi.json", "/docs", *SWAGGER):
        assert locked.client.get(path).status_code == 200
    assert locked.client.get("/info").status_code == 401


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "# of the team\r\none\r\n\r\n  two \t# Ann's\n   # old\nfi#ve\n"
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbf" + content.encode())
    monkeypatch.setenv("SENTIMENT_API_KEYS", "three, four")
    settings = ServeSettings(model="m", api_keys_file=str(tmp_path / "keys"))
    assert set(api_key_digests(settings)) == set(digests(["one", "two", "fi#ve", "three", "four"]))
    (tmp_path / "keys").write_text("\n# none\n")
    (tmp_path / "wide").write_text("one\n", encoding="utf-16")
    unreadable = (("none", r"can't be read \(No such file"), ("wide", r"can't be read \(not UTF-8\)"))
    for file, words in (("keys", "holds no key"), *unreadable):
        with pytest.raises(ConfigError, match=words):
            api_key_digests(ServeSettings(model="m", api_keys_file=str(tmp_path / file)))


def test_a_protocol_is_a_function_in_a_list(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One module and one line add it; keys, limits, errors and metrics are there already."""

    def add_endpoints(app: FastAPI, engine: Engine) -> None:
        @app.post("/label")
        async def label(http: Request) -> str:
            scores = await engine.score([(await http.body()).decode()])
            return LABELS[int(scores.p_positive[0] >= 0.5)]

    monkeypatch.setattr(asgi, "PROTOCOLS", (*asgi.PROTOCOLS, add_endpoints))
    for served in serve_app(bundle, "key", max_text_chars=20):
        key = {"Authorization": "Bearer key"}
        assert served.client.post("/label", content="a").status_code == 401
        assert served.client.post("/label", content="a", headers=key).json() in LABELS
        answer = served.client.post("/label", content="a" * 21, headers=key)
        assert answer.json() == {"error": "inputs: at most 20 characters, got 21", "error_type": "validation"}
        assert served.notes.answers[-1] == ("/label", 413, "validation")


def test_what_is_open_is_open_below_a_prefix(bundle: Path) -> None:
    notes = Notes()
    engine = Engine(ServeSettings(model=str(bundle)), notes)
    with TestClient(create_app(engine, notes, digests(["key"])), root_path="/pre") as client:
        assert client.get("/pre/").status_code == 200
        assert client.get("/pre/info").status_code == 401


def test_a_client_that_goes_before_its_request_is_complete_is_no_bug(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes()
    app = create_app(Engine(ServeSettings(model=str(bundle)), notes), notes)
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}

    async def main() -> None:
        messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

        async def receive() -> Message:
            return next(messages)

        async def send(_: Message) -> None:
            pass

        await app(scope, receive, send)

    asyncio.run(main())
    assert notes.answers == [("/predict", 400, "validation")]
    assert caplog.text == ""
