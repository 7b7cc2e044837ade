"""The `text_generation` package, TGI's own client, unchanged: every method and parameter, and its exceptions."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
import requests
from text_generation import AsyncClient, Client
from text_generation.errors import (
    BadRequestError,
    NotFoundError,
    OverloadedError,
    UnknownError,
    ValidationError,
)
from text_generation.types import ChatComplete, Grammar, GrammarType, Message, Response, StreamResponse, Tool

from tests.conformance.conftest import ANSWER, DAY_SCHEMA, DAYS, FORECAST, KEY, PROMPT, QUESTION, Endpoint

# The client was written for pydantic 1 and still calls its names.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

ASKED = [Message(role="user", content=QUESTION)]

ALL_PARAMETERS: dict[str, Any] = {
    "max_new_tokens": 10,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.1,
    "return_full_text": True,
    "stop_sequences": ["test"],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 10,
    "truncate": 5,
    "typical_p": 0.9,
    "watermark": True,
    "seed": 0,
    "top_n_tokens": 2,
}

EACH_PARAMETER: list[dict[str, Any]] = [
    {"do_sample": True, "seed": 1},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.5},
    {"return_full_text": True},
    {"stop_sequences": [" fox"]},
    {"temperature": 0.7, "seed": 2},
    {"top_k": 3, "seed": 3},
    {"top_p": 0.6, "seed": 4},
    {"truncate": 2},
    {"typical_p": 0.5, "seed": 5},
    {"watermark": True, "do_sample": True, "seed": 6},
    {"top_n_tokens": 3},
    {"grammar": Grammar(type=GrammarType.Regex, value="[0-9]{3}-[a-z]{4}")},
    {"grammar": Grammar(type=GrammarType.Json, value=DAY_SCHEMA), "max_new_tokens": 30},
    ALL_PARAMETERS,
]  # fmt: skip

INVALID: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": 10**6}, "max_new_tokens"),
    ({"stop_sequences": ["a"] * 5}, "stop"),
    ({"top_n_tokens": 6}, "top_n_tokens"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"truncate": 10**6}, "truncate"),
    ({"grammar": Grammar(type=GrammarType.Regex, value="(")}, "grammar"),
]


@pytest.fixture
def client(endpoint: Endpoint) -> Client:
    return Client(endpoint.url, timeout=60)


def _async_generate(endpoint: Endpoint, prompt: str, **parameters: Any) -> Response:
    return asyncio.run(AsyncClient(endpoint.url, timeout=60).generate(prompt, **parameters))


def _async_stream(endpoint: Endpoint, prompt: str, **parameters: Any) -> list[StreamResponse]:
    async def collect() -> list[StreamResponse]:
        stream = AsyncClient(endpoint.url, timeout=60).generate_stream(prompt, **parameters)
        return [event async for event in stream]

    return asyncio.run(collect())


def test_generate(client: Client) -> None:
    response = client.generate(PROMPT, max_new_tokens=10)
    assert response.generated_text == ", there was a small red fox named Milo who"
    details = response.details
    assert details.finish_reason == "length" and details.generated_tokens == len(details.tokens) == 10
    assert "".join(token.text for token in details.tokens) == response.generated_text
    assert all(
        token.logprob is not None and token.logprob <= 0 and not token.special for token in details.tokens
    )
    assert details.seed is None and details.prefill == [] and details.best_of_sequences is None


def test_generate_until_the_end(client: Client) -> None:
    response = client.generate(PROMPT, max_new_tokens=400)
    assert response.details.finish_reason == "eos_token"
    assert response.generated_text.endswith("And so Milo learned that friends make every day brighter.")
    assert response.details.tokens[-1].special
    assert response.details.generated_tokens == len(response.details.tokens)


def test_all_parameters_at_once(client: Client) -> None:
    response = client.generate(f"a fine day and {PROMPT}", decoder_input_details=True, **ALL_PARAMETERS)
    details = response.details
    assert response.generated_text.startswith(f"a fine day and {PROMPT}")
    assert details.seed == 0
    assert len(details.prefill) == 5, "the prompt is cut to `truncate` tokens"
    assert details.prefill[0].logprob is None and all(token.logprob for token in details.prefill[1:])
    assert details.top_tokens is not None
    for token, alternatives in zip(details.tokens, details.top_tokens, strict=True):
        assert token.id in [alternative.id for alternative in alternatives]
    again = client.generate(f"a fine day and {PROMPT}", decoder_input_details=True, **ALL_PARAMETERS)
    assert [token.id for token in again.details.tokens] == [token.id for token in details.tokens]


@pytest.mark.parametrize("parameters", EACH_PARAMETER, ids=lambda given: ",".join(given)[:40])
def test_four_ways_to_ask_agree(client: Client, endpoint: Endpoint, parameters: dict[str, Any]) -> None:
    given = {"max_new_tokens": 12, **parameters}
    response = client.generate(PROMPT, **given)
    ids = [token.id for token in response.details.tokens]
    other = _async_generate(endpoint, PROMPT, **given)
    assert (other.generated_text, [token.id for token in other.details.tokens]) == (
        response.generated_text,
        ids,
    )
    for events in (list(client.generate_stream(PROMPT, **given)), _async_stream(endpoint, PROMPT, **given)):
        assert [event.token.id for event in events] == ids
        assert events[-1].generated_text == response.generated_text
        assert all(event.generated_text is None and event.details is None for event in events[:-1])
        details = events[-1].details
        assert details is not None
        assert details.finish_reason == response.details.finish_reason
        assert details.generated_tokens == response.details.generated_tokens
        assert details.seed == response.details.seed == given.get("seed")


def test_the_effect_of_parameters(client: Client) -> None:
    def text(**parameters: Any) -> str:
        return str(client.generate(PROMPT, **{"max_new_tokens": 12, **parameters}).generated_text)

    greedy = text()
    assert text(return_full_text=True) == PROMPT + greedy
    stopped = text(stop_sequences=[" fox"])
    assert greedy.startswith(stopped) and stopped.endswith(" fox"), "a native stop string stays in the text"
    assert re.fullmatch("[0-9]{3}-[a-z]{4}", text(**EACH_PARAMETER[12]))
    assert json.loads(text(**EACH_PARAMETER[13]))["day"] in DAYS
    assert text(truncate=2) != greedy


def test_best_of(client: Client) -> None:
    response = client.generate(PROMPT, max_new_tokens=8, best_of=2, temperature=1.5)
    others = response.details.best_of_sequences
    assert others is not None and len(others) == 1, "the winner is not listed again"
    assert others[0].generated_tokens == len(others[0].tokens)

    def total(tokens: Any) -> float:
        return sum(token.logprob for token in tokens) / len(tokens)

    assert total(response.details.tokens) >= total(others[0].tokens)


@pytest.mark.parametrize(("parameters", "field"), INVALID, ids=lambda given: str(given)[:40])
def test_invalid_values(client: Client, endpoint: Endpoint, parameters: dict[str, Any], field: str) -> None:
    """Streams fail before they begin, so a stream's error is the same exception."""
    with pytest.raises(ValidationError, match=field):
        client.generate(PROMPT, **parameters)
    with pytest.raises(ValidationError, match=field):
        list(client.generate_stream(PROMPT, **parameters))
    with pytest.raises(ValidationError, match=field):
        _async_generate(endpoint, PROMPT, **parameters)
    with pytest.raises(ValidationError, match=field):
        _async_stream(endpoint, PROMPT, **parameters)


def test_a_full_server(occupied: Endpoint) -> None:
    client = Client(occupied.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    with pytest.raises(OverloadedError, match="overloaded"):
        client.generate(PROMPT)
    with pytest.raises(OverloadedError, match="overloaded"):
        list(client.generate_stream(PROMPT))


def test_a_missing_key(guarded: Endpoint) -> None:
    with pytest.raises(UnknownError, match="[Kk]ey"):
        Client(guarded.url, timeout=60).generate(PROMPT)


def test_an_unknown_path(endpoint: Endpoint) -> None:
    with pytest.raises(NotFoundError):
        Client(f"{endpoint.url}/elsewhere", timeout=60).generate(PROMPT)


def test_chat(client: Client, endpoint: Endpoint) -> None:
    answer = client.chat(ASKED, max_tokens=40, temperature=0, logprobs=True, top_logprobs=2, seed=1, n=1)
    assert isinstance(answer, ChatComplete)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert choice.finish_reason == "stop" and answer.object == "chat.completion"
    assert choice.logprobs is not None and len(choice.logprobs["content"][0]["top_logprobs"]) == 2
    assert answer.usage["completion_tokens"] > 0
    other = asyncio.run(AsyncClient(endpoint.url, timeout=60).chat(ASKED, max_tokens=40, temperature=0))
    assert other.choices[0].message.content == ANSWER


def test_chat_with_a_forced_tool(client: Client) -> None:
    answer = client.chat(
        ASKED, tools=[Tool(**FORECAST)], tool_choice="required", temperature=0, max_tokens=60
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call["function"]["name"] == "forecast"
    assert json.loads(call["function"]["arguments"])["day"] in DAYS


def test_chat_errors_are_of_openai_kind(client: Client) -> None:
    """`/v1` speaks OpenAI's errors; this client passes them on by their status."""
    with pytest.raises(BadRequestError) as caught:
        client.chat(ASKED, max_tokens=10**6)
    assert "max_tokens" in str(caught.value)


def test_a_chat_stream_is_what_the_client_reads(endpoint: Endpoint) -> None:
    """The client's own reader of chat streams takes neither OpenAI's closing `[DONE]` nor chunks without a role,
    against TGI 3 as little as here; its request is right, and so is what comes back."""
    body = {"model": "tgi", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    nulls = dict.fromkeys(("repetition_penalty", "logit_bias", "n", "tools", "tool_choice", "top_p", "seed"))
    url = f"{endpoint.url}/v1/chat/completions"
    with requests.post(url, json={**body, **nulls, "temperature": 0}, timeout=60, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == b"data: [DONE]"
    chunks = [json.loads(line[5:]) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == ANSWER
