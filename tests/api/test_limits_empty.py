"""Nothing where something is expected: empty, blank and special-token inputs have defined answers on the native routes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Front

ROUTES = ("/generate", "/generate_stream", "/", "/invocations")
FINE = (
    " ",
    "\n",
    "\t",
    "   \r\n",
    "\u0000",
    "\u00a0",
    "\u200b",
    "\ufeff",
    "\ufffd",
    "</s>",
    "</s></s>",
    "🙂",
    "\u202e",
)
ODD: list[dict[str, Any]] = [
    {"inputs": ""},
    {"inputs": None},
    {"inputs": []},
    {"inputs": {}},
    {"inputs": [""]},
    {"inputs": 0},
    {"inputs": False},
    {"inputs": "a", "parameters": {"stop": [""]}},
    {"inputs": "a", "parameters": {"max_new_tokens": 0}},
    {"inputs": "a", "parameters": {"truncate": 0}},
    {"inputs": "a", "parameters": {"grammar": {}}},
    {"inputs": "a", "parameters": {"grammar": {"type": "json", "value": ""}}},
    {"inputs": "a", "parameters": {"grammar": {"type": "", "value": {}}}},
    {"inputs": "a", "parameters": []},
    {"parameters": {}},
    {},
]


@pytest.mark.parametrize("path", ROUTES)
def test_blank_and_special_inputs_are_texts(front: Front, path: str) -> None:
    for text in FINE:
        assert front.client.post(path, json={"inputs": text}).status_code == 200, repr(text)
    for parameters in ({}, {"stop": []}, {"stop": ["\n"]}, {"return_full_text": None}):
        body = {"inputs": "a", "parameters": parameters}
        assert front.client.post(path, json=body).status_code == 200, parameters


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("body", ODD, ids=range(len(ODD)))
def test_nothing_is_refused_by_name(front: Front, path: str, body: dict[str, Any]) -> None:
    error = front.error(body, path=path)
    assert "`inputs`" in error or "`parameters" in error
    assert front.engine.requests == []
