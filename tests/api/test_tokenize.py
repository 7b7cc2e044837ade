"""`POST /tokenize`: TGI's array of tokens with their places, and its limits."""

from __future__ import annotations

from typing import Any

import pytest

from serving.api.schema.tokenize import MAX_CHARS
from serving.config import HttpConfig
from tests.api.conftest import Front, FrontFactory


def test_tokens_and_their_bytes(front: Front) -> None:
    response = front.client.post("/tokenize", json={"inputs": "hi é"})
    assert response.status_code == 200
    for token in response.json:
        assert set(token) == {"id", "text", "start", "stop"}
    assert [(token["start"], token["stop"]) for token in response.json][:3] == [(0, 1), (1, 2), (2, 3)]
    assert [token["id"] for token in response.json] == list("hi é".encode())


def test_parameters_change_nothing(front: Front) -> None:
    body: dict[str, Any] = {"inputs": "hello", "parameters": {"truncate": 2, "max_new_tokens": 10**6}}
    assert len(front.client.post("/tokenize", json=body).json) == 5
    for wrong in (None, [], "x"):
        assert "`parameters`" in front.error({"inputs": "a", "parameters": wrong}, path="/tokenize")
    assert front.engine.requests == []


@pytest.mark.parametrize("body", [{}, {"inputs": 3}, {"inputs": None}, {"inputs": ["a"]}, {"prompt": "a"}])
def test_inputs_must_be_a_text(front: Front, body: Any) -> None:
    assert "`inputs`" in front.error(body, path="/tokenize")


def test_longer_than_the_model_reads_is_fine(front: Front) -> None:
    assert len(front.client.post("/tokenize", json={"inputs": "a" * 5000}).json) == 5000


def test_there_is_a_limit_all_the_same(front: Front) -> None:
    error = front.error({"inputs": "a" * (MAX_CHARS + 1)}, path="/tokenize")
    assert f"at most {MAX_CHARS} characters here. Given: {MAX_CHARS + 1}" in error


def test_unknown_fields(front: Front, new_front: FrontFactory) -> None:
    response = front.client.post("/tokenize", json={"inputs": "a", "add_special_tokens": False})
    assert (response.status_code, response.headers["x-ignored-parameters"]) == (200, "add_special_tokens")
    strict = new_front(http=HttpConfig(unknown_parameters="refuse"))
    assert "`add_special_tokens`" in strict.error({"inputs": "a", "add_special_tokens": 1}, path="/tokenize")


def test_only_post(front: Front) -> None:
    response = front.client.get("/tokenize")
    assert (response.status_code, response.json["error_type"]) == (405, "method_not_allowed")
