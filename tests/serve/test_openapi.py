"""Whatever the OpenAPI document allows, and much that it doesn't, is answered without a server error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from served import listening


@schemathesis.serializer("application/x-ndjson")
def as_lines(context: schemathesis.SerializationContext, value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


@pytest.fixture(scope="module")
def document(bundle: Path) -> Iterator[schemathesis.BaseSchema]:
    with listening(bundle, max_texts=8, max_text_chars=200) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_no_request_is_a_server_error(document: schemathesis.BaseSchema) -> None:
    asked = set()
    for result in document.get_all_operations():
        operation = result.ok()
        asked.add(f"{operation.method.upper()} {operation.path}")

        @given(case=operation.as_strategy())
        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def ask(case: schemathesis.Case) -> None:
            answer = case.call()
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert set(answer.json()) == {"error", "error_type"}

        ask()
    assert {"POST /predict", "POST /score", "GET /info", "POST /v2/models/{name}/infer"} <= asked
