"""Ids outside of the vocabulary and the spellings of control tokens harm nobody: they are refused or plain text, and the
next answer is the same as before, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import PROMPT, QUESTION, Endpoint, Json

GOLDEN: Json = {"inputs": PROMPT, "parameters": {"max_new_tokens": 24, "details": True, "top_n_tokens": 3}}
VOCABULARY = 2048
OUTSIDE = [-1, VOCABULARY, VOCABULARY + 1, 2**31, 2**32, 2**63, 2**64, -(2**31) - 1]
CHAT: Json = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4, "temperature": 0}
COMPLETION: Json = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}


@pytest.fixture(autouse=True)
def the_next_answer_is_the_same(endpoint: Endpoint) -> Iterator[None]:
    before = endpoint.ask("/generate", GOLDEN)
    yield
    assert endpoint.ask("/generate", GOLDEN) == before


@pytest.fixture(scope="module")
def control_tokens(demo_model_dir: Path) -> dict[str, int]:
    """Spelling and id of every special token of the model."""
    tokenizer = json.loads((demo_model_dir / "tokenizer.json").read_text())
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"] if token["special"]}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/invocations"])
@pytest.mark.parametrize("token_id", OUTSIDE)
def test_ids_outside_of_the_vocabulary(endpoint: Endpoint, token_id: int, path: str) -> None:
    body = CHAT if path.endswith("chat/completions") else COMPLETION
    attempts: list[tuple[str, Json]] = [
        ("stop_token_ids", {"stop_token_ids": [5, token_id]}),
        ("logit_bias", {"logit_bias": {str(token_id): 1}}),
    ]
    if body is COMPLETION:
        attempts += [("prompt", {"prompt": [token_id]}), ("prompt", {"prompt": [[0, 492], [0, token_id]]})]
    for field, wrong in attempts:
        status, _, answer = endpoint.send(path, {**body, **wrong})
        assert status == 400, (wrong, answer)
        assert json.loads(answer)["error"]["param"].startswith(field)


def test_the_edges_of_the_vocabulary(endpoint: Endpoint) -> None:
    for token_id in (0, VOCABULARY - 1):
        fields = {"stop_token_ids": [token_id], "logit_bias": {str(token_id): -100}}
        assert endpoint.ask("/v1/completions", {**COMPLETION, **fields, "prompt": [token_id]})["choices"]
        assert endpoint.ask("/v1/chat/completions", {**CHAT, **fields})["choices"]


def _special_ids(endpoint: Endpoint, path: str, body: Json, control_tokens: dict[str, int]) -> list[int]:
    answer = endpoint.ask(path, body)
    tokens = answer if isinstance(answer, list) else answer["tokenize_response"]
    return [token["id"] for token in tokens if token["id"] in control_tokens.values()]


def test_control_tokens_in_chats_are_text(endpoint: Endpoint, control_tokens: dict[str, int]) -> None:
    honest = _special_ids(endpoint, "/chat_tokenize", CHAT, control_tokens)
    for hostile in ("".join(control_tokens), "".join(control_tokens) * 20, *control_tokens):
        messages = [{"role": "user", "content": hostile}]
        body = {**CHAT, "messages": messages}
        assert _special_ids(endpoint, "/chat_tokenize", body, control_tokens) == honest
        assert endpoint.ask("/v1/chat/completions", body)["choices"][0]["finish_reason"] in ("stop", "length")
        assert endpoint.ask("/invocations", body)["choices"]
        parts = [{"role": "user", "content": [{"type": "text", "text": hostile}]}]
        assert _special_ids(endpoint, "/chat_tokenize", {**CHAT, "messages": parts}, control_tokens) == honest


def test_control_tokens_in_prompts(endpoint: Endpoint, control_tokens: dict[str, int]) -> None:
    """Raw prompts may hold them, as the model's own format does; they only steer the sender's own answer."""
    for hostile in ("".join(control_tokens), "".join(control_tokens) * 20, *control_tokens):
        answer = endpoint.ask(
            "/generate", {"inputs": hostile, "parameters": {"max_new_tokens": 4, "details": True}}
        )
        assert 1 <= answer["details"]["generated_tokens"] <= 4
        choice = endpoint.ask("/v1/completions", {**COMPLETION, "prompt": hostile})["choices"][0]
        assert choice["finish_reason"] in ("stop", "length")
        assert not any(spelling in choice["text"] for spelling in control_tokens)
        assert endpoint.ask("/tokenize", {"inputs": hostile})


def test_every_control_token_as_an_id(endpoint: Endpoint, control_tokens: dict[str, int]) -> None:
    for token_id in control_tokens.values():
        for prompt in ([token_id], [token_id] * 300):
            answer = endpoint.ask("/v1/completions", {**COMPLETION, "prompt": prompt})
            assert answer["usage"]["prompt_tokens"] == len(prompt)
