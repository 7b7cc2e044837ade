"""The OpenAPI document is true: whatever it allows or forbids, no request gets an answer it does not describe."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis import checks as known
from schemathesis.specs.openapi import checks as openapi_checks

from serving.api.app import create_app
from serving.api.openapi import Document
from serving.config import HttpConfig, ServerConfig, Stage
from tests.api.fake_engine import FakeEngine, FakeStream, FakeText
from tests.fuzz.line_bodies import CONTENT_TYPE

CHECKS = [
    known.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.unsupported_method,
    openapi_checks.negative_data_rejection,
]
CASES = [
    (each.method.upper(), each.path, mode)
    for each in Document(ServerConfig()).operations
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or each.bodies
]


def answer_all(stream: FakeStream) -> None:
    """Every sequence of every prompt says `hi` and ends."""
    stream.accept()
    for index in range(stream.request.params.n):
        stream.tokens("hi", "length", index=index)


def schema_of(config: ServerConfig) -> Any:
    text = FakeText()
    app = create_app(FakeEngine(answer_all), lambda: text, config, lambda: Stage(stage="ready"))
    return schemathesis.openapi.from_wsgi("/api-doc/openapi.json", app)


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    strict = HttpConfig(unknown_parameters="refuse")
    return {"report": schema_of(ServerConfig()), "refuse": schema_of(ServerConfig(http=strict))}


def test_bodies_of_lines_are_among_the_cases(schemas: dict[str, Any]) -> None:
    body = schemas["report"]["/invocations"]["POST"].definition.raw["requestBody"]
    assert CONTENT_TYPE in body["content"]


@pytest.mark.parametrize("unknown", ["report", "refuse"])
@pytest.mark.parametrize(("method", "path", "mode"), CASES, ids=lambda part: getattr(part, "value", part))
def test_answers_are_as_documented(
    schemas: dict[str, Any], full: bool, method: str, path: str, mode: GenerationMode, unknown: str
) -> None:
    operation = schemas[unknown][path][method]

    @hypothesis.settings(
        max_examples=1000 if full else 20,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def call(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    call()
