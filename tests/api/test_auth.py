"""The API key on every route, method and spelling of a path; what is open without it; and that it never leaks."""

from __future__ import annotations

import io
from typing import Any

import pytest

from serving.config import HttpConfig
from tests.api.conftest import Front, FrontFactory

KEY = "sk-Test_0123456789"
OPEN = ("/ping", "/health", "/metrics", "/execution-parameters")
CLOSED_GET = ("/", "/info", "/docs", "/api-doc/openapi.json", "/v1/models", "/v1/models/demo")
CLOSED_POST = (
    "/", "/generate", "/generate_stream", "/invocations", "/tokenize", "/chat_tokenize", "/v1/chat/completions",
    "/v1/completions", "/v1/responses",
)  # fmt: skip
NOWHERE = (
    "/nothing",
    "/v1",
    "/v1/",
    "//ping",
    "/ping/",
    "/ping/../info",
    "/./ping",
    "//generate",
    "/%2e%2e/ping",
)
WRONG: dict[str, dict[str, str] | list[tuple[str, str]]] = {
    "missing": {},
    "empty": {"Authorization": ""},
    "scheme only": {"Authorization": "Bearer"},
    "empty key": {"Authorization": "Bearer "},
    "wrong": {"Authorization": "Bearer wrong"},
    "prefix": {"Authorization": f"Bearer {KEY[:-1]}"},
    "longer": {"Authorization": f"Bearer {KEY}x"},
    "other case": {"Authorization": f"Bearer {KEY.lower()}"},
    "no scheme": {"Authorization": KEY},
    "other scheme": {"Authorization": f"Basic {KEY}"},
    "other header": {"X-Api-Key": KEY, "Api-Key": KEY, "Cookie": f"Authorization=Bearer {KEY}"},
    "twice": [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
    "joined": {"Authorization": f"Bearer {KEY}, Bearer {KEY}"},
    "not ascii": {"Authorization": "Bearer ké\xff"},
    "null": {"Authorization": "Bearer null"},
}


@pytest.fixture
def locked(new_front: FrontFactory) -> Front:
    return new_front(http=HttpConfig(api_key=KEY))


def assert_refused(response: Any) -> None:
    assert response.status_code == 401, response.get_data(as_text=True)
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    assert response.content_type == "application/json"
    assert KEY not in response.get_data(as_text=True)
    assert "allow" not in response.headers  # nothing tells whether the route exists
    error = response.json["error"]
    if isinstance(error, str):
        assert set(response.json) == {"error", "error_type", "request_id"}
        assert response.json["error_type"] == "unauthorized"
    else:
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert error["request_id"]


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_every_route_needs_the_key(locked: Front, headers: Any) -> None:
    for path in (*CLOSED_GET, *NOWHERE, *CLOSED_POST):
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
            response = locked.client.open(path, method=method, headers=headers)
            if method == "HEAD":
                assert response.status_code == 401
            else:
                assert_refused(response)
    for path in OPEN:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert_refused(locked.client.open(path, method=method, headers=headers))
    assert locked.engine.requests == []


@pytest.mark.parametrize("path", OPEN)
def test_probes_are_open(locked: Front, path: str) -> None:
    assert locked.client.get(path).status_code == 200
    assert locked.client.head(path).status_code == 200
    assert locked.client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_key_opens_whatever_the_case_of_the_scheme(locked: Front, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {KEY}"}
    for path in ("/generate", "/generate_stream", "/", "/invocations", "/tokenize"):
        assert locked.client.post(path, json={"inputs": "a"}, headers=headers).status_code == 200
    assert locked.client.get("/info", headers=headers).status_code == 200
    assert locked.client.get("/nothing", headers=headers).status_code == 404
    assert locked.client.get("/generate", headers=headers).status_code == 405


def test_slashes_are_neither_merged_nor_a_redirect(front: Front) -> None:
    for path in ("/v1//models", "/api-doc//openapi.json", "/v1/models//"):
        assert front.client.get(path).status_code == 404, path


def test_the_body_is_not_read(locked: Front) -> None:
    class Unreadable(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise AssertionError("the body was read")

    response = locked.client.post("/generate", input_stream=Unreadable(b"{}"), content_length=2)
    assert_refused(response)


def test_an_exemption_opens_invocations_only(new_front: FrontFactory) -> None:
    front = new_front(http=HttpConfig(api_key=KEY, api_key_exempt=("invocations",)))
    assert front.client.post("/invocations", json={"inputs": "a"}).status_code == 200
    for path in CLOSED_POST:
        if path != "/invocations":
            assert_refused(front.client.post(path, json={"inputs": "a"}))
    for method in ("GET", "PUT", "OPTIONS"):
        assert_refused(front.client.open("/invocations", method=method))
    for path in ("/invocations/", "//invocations", "/invocations/x"):
        assert_refused(front.client.post(path, json={"inputs": "a"}))


def test_without_a_key_all_is_open(front: Front) -> None:
    assert front.client.post("/generate", json={"inputs": "a"}).status_code == 200
    assert front.client.get("/info", headers={"Authorization": "Bearer wrong"}).status_code == 200


def test_a_key_may_hold_any_letters(new_front: FrontFactory) -> None:
    front = new_front(http=HttpConfig(api_key="ключ, с пробелом"))
    sent = "Bearer ключ, с пробелом".encode().decode("latin-1")  # WSGI's way to hold header bytes
    assert front.client.get("/info", headers={"Authorization": sent}).status_code == 200
    assert front.client.get("/info", headers={"Authorization": "Bearer "}).status_code == 401
