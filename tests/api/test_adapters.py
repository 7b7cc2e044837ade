"""Adapters, until they are served: every way to ask for one gets one clear error, and never the base model's answer."""

from __future__ import annotations

from typing import Any

import pytest

from serving.api.adapters import ADAPTER_HEADERS
from tests.api.openai_client import OpenAIFront, says

MESSAGES = [{"role": "user", "content": "hi"}]
INFERENCE: list[dict[str, Any]] = [{"inputs": "a"}, {"messages": MESSAGES}, {"prompt": "a"}]
ROUTES = [
    ("POST", "/adapters"),
    ("POST", "/adapters?name=mine&src=/opt/ml/adapters/mine&preload=true"),
    ("GET", "/adapters"),
    ("GET", "/adapters?limit=100&next_page_token=x"),
    ("GET", "/adapters/mine"),
    ("DELETE", "/adapters/mine"),
    ("POST", "/adapters/mine/update?src=x"),
    ("POST", "/models/demo/adapters?name=mine&src=x"),
    ("GET", "/models/demo/adapters"),
    ("GET", "/models/demo/adapters/mine"),
    ("DELETE", "/models/demo/adapters/mine"),
    ("POST", "/models/demo/adapters/mine/update?src=x"),
]


@pytest.fixture
def front() -> OpenAIFront:
    return OpenAIFront(says("ok"))


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_the_routes_say_that_adapters_are_not_supported(front: OpenAIFront, method: str, path: str) -> None:
    body = {"name": "mine", "src": "/opt/ml/adapters/mine"} if method == "POST" else None
    response = front.app.test_client().open(path, method=method, json=body)
    assert response.status_code == 404
    assert "not supported yet" in response.json["error"] and response.json["error_type"] == "not_found"
    assert ("'mine'" in response.json["error"]) == ("/mine" in path.split("?")[0])


def test_other_methods_and_model_routes(front: OpenAIFront) -> None:
    client = front.app.test_client()
    assert client.put("/adapters").status_code == 405
    for path in ("/models", "/models/demo", "/models/demo/invoke"):
        error = client.post(path, json={"model_name": "demo", "url": "/opt/ml/models/demo"})
        assert error.status_code == 404 and "no route" in error.json["error"]


@pytest.mark.parametrize("header", ADAPTER_HEADERS)
@pytest.mark.parametrize(
    "path", ["/invocations", "/", "/generate", "/v1/chat/completions", "/v1/completions"]
)
def test_headers_are_never_answered_by_the_base_model(front: OpenAIFront, header: str, path: str) -> None:
    for body in INFERENCE:
        key = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/invocations": None}.get(
            path, "inputs"
        )
        if key is not None and key not in body:
            continue
        response = front.app.test_client().post(path, json=body, headers={header: "mine"})
        assert response.status_code == 404
        assert "'mine'" in response.get_data(as_text=True) and "not supported yet" in response.get_data(
            as_text=True
        )
    assert front.engine.requests == []


@pytest.mark.parametrize("named", ["mine", ["mine"], ["", "mine"], {"name": "mine"}])
@pytest.mark.parametrize("field", ["adapters", "adapter_id"])
@pytest.mark.parametrize("body", INFERENCE)
def test_bodies_are_never_answered_by_the_base_model(
    front: OpenAIFront, body: dict[str, Any], field: str, named: Any
) -> None:
    response = front.app.test_client().post("/invocations", json={**body, field: named})
    assert response.status_code == 404 and "not supported yet" in response.get_data(as_text=True)
    if "inputs" not in body:
        assert response.json["error"]["param"] == field
    assert front.engine.requests == []


@pytest.mark.parametrize("body", INFERENCE)
def test_naming_no_adapter_means_the_base_model(front: OpenAIFront, body: dict[str, Any]) -> None:
    response = front.app.test_client().post(
        "/invocations", json={**body, "adapters": None, "adapter_id": None}, headers={ADAPTER_HEADERS[0]: ""}
    )
    assert response.status_code == 200
