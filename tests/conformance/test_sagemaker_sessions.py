"""What vLLM's tests of SageMaker sessions and adapters (`tests/entrypoints/sagemaker`) expect of a server, on ours. Where
they load an adapter, ours says that it serves none, with a status that they accept for one that cannot be had."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest

from tests.conformance.conftest import CLIENT_TIMEOUT_S, Endpoint

SESSION_ID = "X-Amzn-SageMaker-Session-Id"
NEW_SESSION_ID = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_SESSION_ID = "X-Amzn-SageMaker-Closed-Session-Id"

Answer = tuple[int, http.client.HTTPMessage, bytes]


def _call(endpoint: Endpoint, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=CLIENT_TIMEOUT_S)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"content-type": "application/json", **named})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def _invoke(endpoint: Endpoint, body: Any, session: str | None = None) -> Answer:
    headers = {} if session is None else {SESSION_ID: session}
    return _call(endpoint, "POST", "/invocations", body, **headers)


@pytest.fixture
def session(endpoint: Endpoint) -> str:
    status, headers, _ = _invoke(endpoint, {"requestType": "NEW_SESSION"})
    assert status == 200
    session_id, expiration = headers[NEW_SESSION_ID].split(";")
    assert session_id and expiration.startswith(" Expires=")
    return session_id


def test_creating_with_more_than_the_type_is_a_bad_request(endpoint: Endpoint) -> None:
    status, headers, _ = _invoke(endpoint, {"requestType": "NEW_SESSION", "extra-field": "extra-field-data"})
    assert status == 400 and NEW_SESSION_ID not in headers


@pytest.mark.parametrize(
    ("named", "extra", "says"),
    [("nonexistent-session-id", {}, "session not found"), (None, {"extra-field": "extra-field-data"}, None)],
)
def test_bad_requests_to_close(
    endpoint: Endpoint, session: str, named: str | None, extra: dict[str, str], says: str | None
) -> None:
    status, _, body = _invoke(endpoint, {"requestType": "CLOSE", **extra}, named or session)
    assert status == 400
    assert says is None or says in json.loads(body)["error"]["message"]
    assert _invoke(endpoint, {"requestType": "CLOSE"}, session)[0] == 200, "it was not closed before"


def test_closing_without_a_session_id(endpoint: Endpoint, session: str) -> None:
    status, _, body = _invoke(endpoint, {"requestType": "CLOSE"})
    assert status == 424 and "invalid session_id" in json.loads(body)["error"]["message"]
    assert _invoke(endpoint, {"requestType": "CLOSE"}, session)[0] == 200


def test_a_session_from_its_beginning_to_its_end(endpoint: Endpoint, session: str) -> None:
    body = {"model": "any-name", "prompt": "what is 1+1?", "max_tokens": 5, "temperature": 0.0}
    status, _, answer = _invoke(endpoint, body, session)
    assert status == 200 and json.loads(answer)["choices"]
    status, headers, _ = _invoke(endpoint, {"requestType": "CLOSE"}, session)
    assert status == 200 and headers[CLOSED_SESSION_ID] == session
    assert _invoke(endpoint, body, session)[0] == 400


def test_an_adapter_that_is_not_there(endpoint: Endpoint) -> None:
    loading = {"name": "nonexistent-adapter", "src": "/path/does/not/exist"}
    status, _, body = _call(endpoint, "POST", "/adapters", loading)
    assert status == 404 and b"not supported yet" in body
    status, _, body = _call(endpoint, "DELETE", "/adapters/nonexistent-adapter-name")
    assert status in (400, 404) and b"not supported yet" in body


def test_an_invocation_of_an_adapter_is_not_the_base_models(endpoint: Endpoint) -> None:
    status, _, body = _call(
        endpoint,
        "POST",
        "/invocations",
        {"prompt": "Hello, how are you?", "max_tokens": 10},
        X_Amzn_SageMaker_Adapter_Identifier="smollm2-lora-invoke-test",
    )
    assert status == 404 and b"not supported yet" in body
    status, _, body = _call(endpoint, "GET", "/v1/models")
    assert status == 200 and b"lora" not in body
