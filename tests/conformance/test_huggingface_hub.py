"""`huggingface_hub.InferenceClient` and its asynchronous twin, given this server's URL and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, OverloadedError, ValidationError

from tests.conformance.conftest import (
    ANSWER,
    DAY_SCHEMA,
    DAYS,
    FORECAST,
    KEY,
    PORTRAIT,
    PORTRAIT_QUESTION,
    PORTRAIT_SCHEMA,
    PROMPT,
    QUESTION,
    REMINDER,
    Endpoint,
)

ASKED = [{"role": "user", "content": QUESTION}]
PORTRAIT_ASKED = [{"role": "user", "content": PORTRAIT_QUESTION}]
SAMPLED: dict[str, Any] = {
    "best_of": 1,
    "decoder_input_details": False,
    "do_sample": True,
    "frequency_penalty": 0.2,
    "max_new_tokens": 12,
    "repetition_penalty": 1.1,
    "return_full_text": False,
    "seed": 11,
    "stop": ["Hugo"],
    "temperature": 0.9,
    "top_k": 20,
    "top_n_tokens": 2,
    "top_p": 0.95,
    "truncate": 100,
    "typical_p": 0.95,
    "watermark": True,
}


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[InferenceClient]:
    with InferenceClient(base_url=endpoint.url, timeout=60) as client:
        yield client


def _asynchronously(endpoint: Endpoint, method: str, *args: Any, **arguments: Any) -> Any:
    """The answer of a method of the asynchronous client; a stream's pieces as a list."""

    async def call() -> Any:
        async with AsyncInferenceClient(base_url=endpoint.url, timeout=60) as client:
            answer = await getattr(client, method)(*args, **arguments)
            return [piece async for piece in answer] if arguments.get("stream") else answer

    return asyncio.run(call())


def test_text_generation(client: InferenceClient, endpoint: Endpoint) -> None:
    text = client.text_generation(PROMPT, max_new_tokens=10, return_full_text=False)
    assert text == ", there was a small red fox named Milo who"
    assert client.text_generation(PROMPT, max_new_tokens=10) == PROMPT + text, (
        "the default of TGI's route `/`"
    )
    assert "".join(client.text_generation(PROMPT, max_new_tokens=10, stream=True)) == text
    arguments = {"max_new_tokens": 10, "return_full_text": False}
    assert _asynchronously(endpoint, "text_generation", PROMPT, **arguments) == text
    assert "".join(_asynchronously(endpoint, "text_generation", PROMPT, stream=True, **arguments)) == text


def test_text_generation_with_details(client: InferenceClient) -> None:
    answer = client.text_generation(
        PROMPT,
        max_new_tokens=6,
        details=True,
        decoder_input_details=True,
        top_n_tokens=2,
        return_full_text=False,
    )
    details = answer.details
    assert details is not None
    assert (details.finish_reason, details.generated_tokens, len(details.tokens)) == ("length", 6, 6)
    assert "".join(token.text for token in details.tokens) == answer.generated_text
    assert [token.text for token in details.prefill] == ["<|begin_of_text|>", "Once", " upon", " a", " time"]
    assert details.prefill[0].logprob is None and all(token.logprob < 0 for token in details.prefill[1:])
    assert details.top_tokens is not None and len(details.top_tokens) == 6


@pytest.mark.parametrize("arguments", [{"max_new_tokens": 12}, SAMPLED], ids=["greedy", "sampled"])
def test_streamed_details(client: InferenceClient, endpoint: Endpoint, arguments: dict[str, Any]) -> None:
    given = {"details": True, "return_full_text": False, **arguments}
    answer = client.text_generation(PROMPT, **given)
    assert answer.details is not None
    for events in (
        list(client.text_generation(PROMPT, stream=True, **given)),
        _asynchronously(endpoint, "text_generation", PROMPT, stream=True, **given),
    ):
        assert [event.index for event in events] == list(range(1, len(events) + 1))
        assert [event.token.id for event in events] == [token.id for token in answer.details.tokens]
        assert events[-1].generated_text == answer.generated_text
        last = events[-1].details
        assert (last.finish_reason, last.generated_tokens) == (
            answer.details.finish_reason,
            answer.details.generated_tokens,
        )
        assert (last.seed, last.input_length) == (answer.details.seed, 5)


def test_text_generation_with_a_grammar(client: InferenceClient) -> None:
    grammar: Any = {"type": "json", "value": DAY_SCHEMA}
    text = client.text_generation("When? ", grammar=grammar, max_new_tokens=40, return_full_text=False)
    assert json.loads(text)["day"] in DAYS
    digits: Any = {"type": "regex", "value": "[1-9][0-9]{2}"}
    assert 100 <= int(client.text_generation("3 + 4 =", grammar=digits, return_full_text=False)) <= 999


def test_text_generation_errors(client: InferenceClient, occupied: Endpoint) -> None:
    for arguments in (
        {"max_new_tokens": 10**6},
        {"stop": ["a"] * 5},
        {"max_new_tokens": 10**6, "stream": True},
    ):
        with pytest.raises(ValidationError, match=next(iter(arguments))):
            list(client.text_generation(PROMPT, **arguments))
    with (
        InferenceClient(base_url=occupied.url, token=KEY) as busy,
        pytest.raises(OverloadedError, match="overloaded"),
    ):
        busy.text_generation(PROMPT)
    with (
        InferenceClient(base_url=occupied.url, token="another key") as stranger,
        pytest.raises(HfHubHTTPError, match="401"),
    ):
        stranger.chat_completion(ASKED)


def test_chat(client: InferenceClient, endpoint: Endpoint) -> None:
    arguments = {"max_tokens": 40, "temperature": 0, "logprobs": True, "top_logprobs": 2, "seed": 1, "n": 1}
    for answer in (
        client.chat_completion(ASKED, **arguments),
        client.chat.completions.create(messages=ASKED, model="tgi", **arguments),
        _asynchronously(endpoint, "chat_completion", ASKED, **arguments),
    ):
        [choice] = answer.choices
        assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
        assert (choice.finish_reason, answer.object) == ("stop", "chat.completion")
        assert choice.logprobs is not None and len(choice.logprobs.content[0].top_logprobs) == 2
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("with_usage", [False, True])
def test_chat_stream(client: InferenceClient, endpoint: Endpoint, with_usage: bool) -> None:
    options: Any = {"include_usage": True} if with_usage else None
    given = {"max_tokens": 40, "temperature": 0, "stream": True, "stream_options": options}
    for chunks in (
        list(client.chat_completion(ASKED, **given)),
        _asynchronously(endpoint, "chat_completion", ASKED, **given),
    ):
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
        assert "".join(choice.delta.content or "" for choice in choices) == ANSWER
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
        usages = [chunk.usage for chunk in chunks if chunk.usage]
        assert len(usages) == int(with_usage)
        assert not with_usage or (chunks[-1].choices, usages[0].completion_tokens) == ([], 12)


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json", "value": PORTRAIT_SCHEMA},
        {"type": "json_object", "value": PORTRAIT_SCHEMA},
        {
            "type": "json_schema",
            "json_schema": {"name": "portrait", "schema": PORTRAIT_SCHEMA, "strict": True},
        },
        {"type": "json_object"},
    ],
    ids=lambda form: ",".join(map(str, form)) + form["type"],
)
def test_response_format(client: InferenceClient, endpoint: Endpoint, response_format: Any) -> None:
    given = {"max_tokens": 80, "temperature": 0, "response_format": response_format}
    answer = client.chat_completion(PORTRAIT_ASKED, **given)
    assert json.loads(answer.choices[0].message.content or "") == PORTRAIT
    other = _asynchronously(endpoint, "chat_completion", PORTRAIT_ASKED, **given)
    assert other.choices[0].message == answer.choices[0].message
    pieces = client.chat_completion(PORTRAIT_ASKED, stream=True, **given)
    assert (
        "".join(piece.choices[0].delta.content or "" for piece in pieces) == answer.choices[0].message.content
    )


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "remind"}}], ids=str
)
def test_forced_tools(client: InferenceClient, choice: Any) -> None:
    given = {"tools": [FORECAST, REMINDER], "tool_choice": choice, "temperature": 0, "max_tokens": 80}
    answer = client.chat_completion(ASKED, **given)
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls or []
    assert calls and all(json.loads(call.function.arguments)["day"] in DAYS for call in calls)
    names = [call.function.name for call in calls]
    assert names == ["remind"] if isinstance(choice, dict) else set(names) <= {"forecast", "remind"}
    pieces: dict[int, list[str]] = {}
    for chunk in client.chat_completion(ASKED, stream=True, **given):
        for call in chunk.choices[0].delta.tool_calls or []:
            pieces.setdefault(call.index, []).append(call.function.arguments or "")
    assert ["".join(pieces[index]) for index in sorted(pieces)] == [call.function.arguments for call in calls]


def test_tools_that_may_not_be_called(client: InferenceClient) -> None:
    answer = client.chat_completion(ASKED, tools=[FORECAST], tool_choice="none", temperature=0, max_tokens=40)
    assert (answer.choices[0].message.content, answer.choices[0].message.tool_calls) == (ANSWER, None)


def test_chat_errors(client: InferenceClient) -> None:
    with pytest.raises(BadRequestError, match="max_tokens"):
        client.chat_completion(ASKED, max_tokens=10**6)
    with pytest.raises(BadRequestError, match="temperature"):
        list(client.chat_completion(ASKED, temperature=3, stream=True))
    with pytest.raises(HfHubHTTPError, match="model_not_found"):
        client.chat_completion(ASKED, model="someone/else")
