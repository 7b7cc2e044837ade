"""The two shapes of an error: which requests get which, with which status; short, with the id of the request."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from serving.api.error_styles import NATIVE, OPENAI, ErrorStyle
from serving.errors import (
    BodyTimeout,
    ContextTooLong,
    DeadlineExceeded,
    Draining,
    GenerationFailed,
    HandlerFailed,
    HandlerRefused,
    IncompleteGeneration,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    SessionMissing,
    SessionRefused,
    TemplateError,
    ToolError,
    Unauthorized,
    UnsupportedMediaType,
)
from tests.api.openai_client import OpenAIFront

MESSAGES = [{"role": "user", "content": "hi"}]

CASES: list[tuple[RequestError, int, int, str, str | None]] = [
    # error, native status, OpenAI's status, type and code
    (InvalidRequest("x", field="f"), 422, 400, "invalid_request_error", None),
    (ContextTooLong("x", field="f"), 422, 400, "invalid_request_error", "context_length_exceeded"),
    (Unauthorized("x"), 401, 401, "authentication_error", "invalid_api_key"),
    (ToolError("x"), 422, 400, "invalid_request_error", "tool_error"),
    (TemplateError("x"), 422, 400, "invalid_request_error", "template_error"),
    (MalformedBody("x"), 400, 400, "invalid_request_error", "malformed_json"),
    (PayloadTooLarge("x"), 413, 413, "invalid_request_error", "payload_too_large"),
    (UnsupportedMediaType("x"), 415, 415, "invalid_request_error", "unsupported_media_type"),
    (BodyTimeout("x"), 408, 408, "invalid_request_error", "body_timeout"),
    (NotFound("x"), 404, 404, "invalid_request_error", "not_found"),
    (NotFound("x", field="model"), 404, 404, "invalid_request_error", "model_not_found"),
    (MethodNotAllowed("x"), 405, 405, "invalid_request_error", "method_not_allowed"),
    (Overloaded("x"), 429, 429, "rate_limit_error", "rate_limit_exceeded"),
    (Draining("x"), 503, 503, "server_error", "draining"),
    (NotReady("x"), 503, 503, "server_error", "not_ready"),
    (SessionRefused("x"), 400, 400, "invalid_request_error", "session"),
    (SessionMissing("x"), 424, 424, "invalid_request_error", "session"),
    (DeadlineExceeded("x"), 424, 424, "invalid_request_error", "deadline"),
    (HandlerFailed("x"), 500, 500, "server_error", "handler"),
    (HandlerRefused("x"), 400, 400, "invalid_request_error", "handler_refused"),
    (GenerationFailed("x"), 424, 500, "server_error", "generation"),
    (IncompleteGeneration("x"), 500, 500, "server_error", "incomplete_generation"),
]


@pytest.mark.parametrize(("error", "native", "openai", "kind", "code"), CASES, ids=lambda v: type(v).__name__)
def test_styles(error: RequestError, native: int, openai: int, kind: str, code: str | None) -> None:
    assert NATIVE.status_of(error) == native
    problem = OPENAI.problem(error)
    detail: Any = OPENAI.body(problem, "r")
    assert (problem.status, detail.error.type, detail.error.code) == (openai, kind, code)
    assert detail.error.param == getattr(error, "field", None)


def test_every_error_has_a_case() -> None:
    def below(cls: type[RequestError]) -> set[type[RequestError]]:
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    product = {cls for cls in below(RequestError) if cls.__module__ == "serving.errors"}
    assert product - {RequestError} == {type(error) for error, *_ in CASES}


@pytest.mark.parametrize("style", [NATIVE, OPENAI])
@pytest.mark.parametrize("text", ["a", '"', "\x00", "\\", "ü", "漢", "😀", '😀a\x00"'])
def test_bodies_are_short(style: ErrorStyle, text: str) -> None:
    error = InvalidRequest(text * 2000, field=text * 2000)
    body = msgspec.json.encode(style.body(style.problem(error), "i" * 64))
    assert 600 < len(body) < 1024
    assert json.loads(body)


def test_style_goes_by_path() -> None:
    client = OpenAIFront().app.test_client()
    for path in ("/v1/nothing", "/v1/chat/completions/x"):
        response = client.post(path, json={})
        assert (response.status_code, response.json["error"]["code"]) == (404, "not_found")
    response = client.get("/v1/chat/completions")
    assert (response.status_code, response.json["error"]["code"]) == (405, "method_not_allowed")
    assert "POST" in response.headers["allow"]
    assert client.get("/nothing").json["error_type"] == "not_found"
    for path in ("/v1/chat/completions", "/v1/completions"):
        response = client.post(path, data=b"{", content_type="application/json")
        assert (response.status_code, response.json["error"]["code"]) == (400, "malformed_json")
        response = client.post(path, data=b"{}", content_type="text/plain")
        assert (response.status_code, response.json["error"]["code"]) == (415, "unsupported_media_type")
    assert (
        client.post("/invocations", data=b"{", content_type="application/json").json["error_type"]
        == "malformed_json"
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "error", [InvalidRequest("bad grammar", field="grammar"), GenerationFailed("no"), Draining("no")]
)
def test_what_comes_before_the_first_token_is_a_status(error: RequestError, stream: bool) -> None:
    front = OpenAIFront(lambda stream: stream.put(error))
    client = front.app.test_client()
    for path, body in (
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "a"}),
    ):
        response = client.post(path, json={**body, "stream": stream})
        assert response.status_code == OPENAI.status_of(error)
        assert response.json["error"]["request_id"] == response.headers["x-request-id"]


def test_a_bug_shows_no_details(caplog: pytest.LogCaptureFixture) -> None:
    def script(stream: object) -> None:
        raise ZeroDivisionError("secret")

    client = OpenAIFront(script).app.test_client()
    response = client.post("/v1/chat/completions", json={"messages": MESSAGES})
    assert response.status_code == 500
    error = response.json["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal")
    assert "secret" not in response.get_data(as_text=True)
    assert any(getattr(r, "request_id", None) == error["request_id"] and r.exc_info for r in caplog.records)
