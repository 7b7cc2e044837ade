"""Browsers: preflights without a key, and the headers that let scripts read answers."""

from __future__ import annotations

import pytest

from serving.config import HttpConfig
from tests.api.conftest import Front, FrontFactory

PAGE = "https://app.example"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}
PATHS = (
    "/generate",
    "/generate_stream",
    "/",
    "/invocations",
    "/info",
    "/ping",
    "/v1/chat/completions",
    "/nothing",
)


def names(header: str) -> set[str]:
    return {name.strip().lower() for name in header.split(",")}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", [None, "secret"])
def test_preflights_need_no_key(new_front: FrontFactory, path: str, key: str | None) -> None:
    front = new_front(http=HttpConfig(api_key=key))
    response = front.client.options(path, headers=PREFLIGHT)
    assert (response.status_code, response.data) == (204, b"")
    assert response.headers["access-control-allow-origin"] == "*"
    assert names(response.headers["access-control-allow-methods"]) == {"get", "post", "options"}
    assert names(response.headers["access-control-allow-headers"]) >= {"authorization", "content-type"}
    assert "access-control-allow-credentials" not in response.headers


def test_answers_can_be_read_by_scripts(front: Front) -> None:
    for path in ("/generate", "/generate_stream", "/nothing", "/tokenize"):
        response = front.client.post(path, json={"inputs": "a"}, headers={"Origin": PAGE})
        assert response.headers["access-control-allow-origin"] == "*"
        exposed = names(response.headers["access-control-expose-headers"])
        assert exposed >= {"x-request-id", "x-ignored-parameters", "retry-after"}
        assert exposed >= {
            name for name in names(",".join(response.headers.keys())) if name.startswith("x-")
        } - {"x-accel-buffering"}


def test_errors_can_be_read_too(new_front: FrontFactory) -> None:
    front = new_front(http=HttpConfig(api_key="secret"))
    response = front.client.post("/generate", json={"inputs": "a"}, headers={"Origin": PAGE})
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == "*"


def test_callers_that_are_no_browsers_see_nothing_of_it(front: Front) -> None:
    response = front.client.post("/generate", json={"inputs": "a"})
    assert not [name for name, _ in response.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (PAGE, True),
        ("http://localhost:3000", True),
        ("https://app.example:444", False),
        ("http://app.example", False),
        ("https://app.example.evil", False),
        ("https://evil-app.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_configured_origins(new_front: FrontFactory, origin: str, allowed: bool) -> None:
    front = new_front(http=HttpConfig(cors_allow_origin=(PAGE, "http://localhost:3000/")))
    preflight = front.client.options("/generate", headers={**PREFLIGHT, "Origin": origin})
    answer = front.client.post("/generate", json={"inputs": "a"}, headers={"Origin": origin})
    for response in (preflight, answer):
        assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert "origin" in names(response.headers["vary"])
    assert (preflight.status_code, answer.status_code) == (204, 200)
    assert ("access-control-allow-headers" in preflight.headers) is allowed


def test_a_star_among_the_origins_means_any(new_front: FrontFactory) -> None:
    front = new_front(http=HttpConfig(cors_allow_origin=("*",)))
    assert front.client.get("/ping", headers={"Origin": PAGE}).headers["access-control-allow-origin"] == "*"


def test_options_that_are_no_preflight_are_ordinary_requests(new_front: FrontFactory) -> None:
    front = new_front(http=HttpConfig(api_key="secret"))
    assert front.client.options("/generate").status_code == 401
    assert front.client.options("/generate", headers={"Origin": PAGE}).status_code == 401
