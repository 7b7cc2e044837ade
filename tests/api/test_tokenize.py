"""`POST /tokenize`: TGI's array of tokens with their places, and its limits."""

from __future__ import annotations

from typing import Any

import pytest

from serving.api.schema.tokenize import MAX_CHARS, placed
from serving.config import HttpConfig
from serving.vocabulary import Vocabulary
from tests.api.conftest import Front, FrontFactory
from tests.api.fake_engine import FakeText
from tests.api.openai_client import OpenAIFront


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


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi é"}]}


def test_a_chat_becomes_a_prompt_and_its_tokens(front: Front) -> None:
    response = front.client.post("/chat_tokenize", json=CHAT)
    assert response.status_code == 200, response.data
    assert set(response.json) == {"tokenize_response", "templated_text"}
    text = response.json["templated_text"]
    assert text == "user: hi é\nassistant: "
    tokens = response.json["tokenize_response"]
    assert [token["id"] for token in tokens] == list(text.encode())
    assert (tokens[0]["start"], tokens[-1]["stop"]) == (0, len(text.encode()))
    assert front.engine.requests == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({**CHAT, "n": 0}, "n"),
        ({**CHAT, "audio": {}}, "audio"),
        ({"messages": [{"role": "user", "content": "a" * (MAX_CHARS + 1)}]}, "messages"),
    ],
)
def test_a_wrong_chat_is_refused_in_the_native_shape(front: Front, body: Any, field: str) -> None:
    assert f"`{field}`" in front.error(body, path="/chat_tokenize")


def test_unknown_fields_of_a_chat_are_named(front: Front, new_front: FrontFactory) -> None:
    response = front.client.post("/chat_tokenize", json={**CHAT, "unheard_of": 1, "nothing": None})
    assert (response.status_code, response.headers["x-ignored-parameters"]) == (200, "unheard_of")
    strict = new_front(http=HttpConfig(unknown_parameters="refuse"))
    assert "`unheard_of`" in strict.error({**CHAT, "unheard_of": 1}, path="/chat_tokenize")


@pytest.mark.parametrize("path", ["/tokenize", "/chat_tokenize"])
def test_unknown_fields_are_counted_logged_and_bounded(
    front: Front, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level("INFO")
    many = {f"{'x' * 60}{i}": 1 for i in range(500)}
    body = many | ({"inputs": "a"} if path == "/tokenize" else CHAT)
    response = front.client.post(path, json=body)
    named = response.headers["x-ignored-parameters"]
    assert (response.status_code, len(named.split(",")), len(named) < 2000) == (200, 20, True)
    assert "textgen_ignored_parameters 20.0" in front.client.get("/metrics").get_data(as_text=True)
    [line] = [vars(record) for record in caplog.records if record.message == "request"]
    assert line["ignored_parameters"] == named


def test_all_that_the_template_shows_is_limited() -> None:
    front = OpenAIFront(text=FakeText("{{ documents[0].text }}{{ messages[0].content }}"))
    client = front.app.test_client()
    for path, most in (("/chat_tokenize", MAX_CHARS), ("/v1/chat/completions", 3216)):
        response = client.post(path, json={**CHAT, "documents": [{"text": "a" * (MAX_CHARS + 1)}]})
        assert response.status_code in (400, 422)
        assert f"at most {most}" in response.get_data(as_text=True)
    assert front.engine.requests == []


def test_tokens_whose_text_was_not_tokenized_as_it_stands() -> None:
    """Where a message spells a special token, the ids are not those of the prompt's text."""
    vocabulary = Vocabulary(
        token_bytes=(b" a", b"</", b"s>", b"", "é".encode()[:1], "é".encode()[1:]),
        special_text={3: "</s>"},
        eos_token_ids=frozenset({3}),
    )
    tokens = placed([0, 1, 2, 3, 4, 5, 99], "a</s></s>é", vocabulary)
    assert [(token.start, token.stop) for token in tokens] == [
        (0, 1), (1, 3), (3, 5), (5, 9), (9, 10), (10, 11), (11, 11)
    ]  # fmt: skip
    assert [token.text for token in tokens][:4] == ["a", "</", "s>", "</s>"]
