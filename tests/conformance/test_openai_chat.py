"""Chat completions through OpenAI's own client, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.conformance.conftest import (
    ANSWER,
    DAYS,
    FORECAST,
    KEY,
    MODEL,
    PORTRAIT,
    PORTRAIT_QUESTION,
    PORTRAIT_SCHEMA,
    QUESTION,
    REMINDER,
    Endpoint,
    environment,
)
from tests.e2e.conftest import serving

ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
GREEDY: dict[str, Any] = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 40}


# The demo model's own template refuses what tools answer; this one shows it, and the tools.
TOOL_TEMPLATE = (
    "{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|{{ 'user' if message.role == 'tool' else message.role }}|>\n"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "{{ message.content or '' }}<|end_of_turn|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


class Portrait(BaseModel):
    name: str
    kind: str
    home: str


class forecast(BaseModel):
    """The weather of a day."""

    day: Literal["today", "tomorrow"]


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[OpenAI]:
    with OpenAI(base_url=endpoint.v1, api_key="unused", max_retries=0) as client:
        yield client


def _asynchronously(endpoint: Endpoint, **arguments: Any) -> Any:
    """A chat completion of the asynchronous client; a stream's chunks as a list."""

    async def call() -> Any:
        async with AsyncOpenAI(base_url=endpoint.v1, api_key="unused", max_retries=0) as client:
            answer = await client.chat.completions.create(**arguments)
            return [chunk async for chunk in answer] if arguments.get("stream") else answer

    return asyncio.run(call())


def _joined_calls(chunks: Any) -> list[tuple[str, str, str]]:
    """(id, name, arguments) of each streamed tool call."""
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            for piece in choice.delta.tool_calls or []:
                call = calls.setdefault(piece.index, ["", "", ""])
                call[0] += piece.id or ""
                call[1] += piece.function.name or ""
                call[2] += piece.function.arguments or ""
    return [(call[0], call[1], call[2]) for _, call in sorted(calls.items())]


def test_chat(client: OpenAI, endpoint: Endpoint) -> None:
    answer = client.chat.completions.create(**GREEDY)
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    [choice] = answer.choices
    assert (choice.index, choice.message.content, choice.finish_reason) == (0, ANSWER, "stop")
    assert answer.usage is not None and (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (
        12,
        11,
    )
    other = _asynchronously(endpoint, **GREEDY)
    assert other.choices == answer.choices and other.id != answer.id


@pytest.mark.parametrize("with_usage", [False, True])
def test_stream(client: OpenAI, endpoint: Endpoint, with_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    for chunks in (
        list(client.chat.completions.create(stream=True, **GREEDY, **options)),
        _asynchronously(endpoint, stream=True, **GREEDY, **options),
    ):
        assert len({chunk.id for chunk in chunks}) == 1
        choices = [choice for chunk in chunks for choice in chunk.choices]
        assert [choice.delta.role for choice in choices if choice.delta.role] == ["assistant"]
        assert "".join(choice.delta.content or "" for choice in choices) == ANSWER
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
        usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
        assert [usage.completion_tokens for usage in usages] == ([12] if with_usage else [])


def test_streaming_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(**GREEDY) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert text == final.choices[0].message.content == ANSWER


def test_several_answers(client: OpenAI) -> None:
    given: dict[str, Any] = {**GREEDY, "n": 3, "temperature": 1.5, "seed": 3, "max_tokens": 12}
    answer = client.chat.completions.create(**given)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) > 1
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(stream=True, **given):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(logprobs=True, top_logprobs=3, **GREEDY)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert "".join(token.token for token in content) == ANSWER
    assert bytes(byte for token in content for byte in token.bytes or []).decode() == ANSWER
    for token in content:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token
        assert token.logprob == token.top_logprobs[0].logprob <= 0
    chunks = client.chat.completions.create(logprobs=True, top_logprobs=3, stream=True, **GREEDY)
    streamed = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert [token for logprobs in streamed for token in logprobs.content or []] == content


@pytest.mark.parametrize("stop", [" cheerful", [" painter", "girl and"], "ful gi"], ids=str)
def test_stop(client: OpenAI, stop: Any) -> None:
    answer = client.chat.completions.create(stop=stop, **GREEDY)
    [choice] = answer.choices
    first = min(ANSWER.index(text) for text in ([stop] if isinstance(stop, str) else stop))
    assert (choice.message.content, choice.finish_reason) == (ANSWER[:first], "stop")
    chunks = list(client.chat.completions.create(stop=stop, stream=True, **GREEDY))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER[:first]


def test_seeds_and_penalties(client: OpenAI) -> None:
    sampled: dict[str, Any] = {
        **GREEDY,
        "temperature": 1.3,
        "top_p": 0.9,
        "max_completion_tokens": 20,
        "seed": 5,
    }
    del sampled["max_tokens"]
    first, second = (client.chat.completions.create(**sampled).choices for _ in range(2))
    assert first == second
    penalized = client.chat.completions.create(
        presence_penalty=1.0, frequency_penalty=1.0, extra_body={"top_k": 5, "min_p": 0.01}, **sampled
    )
    assert penalized.usage is not None and penalized.usage.completion_tokens <= 20


def test_parse_structured_output(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": PORTRAIT_QUESTION}]
    answer = client.chat.completions.parse(
        model=MODEL, messages=messages, temperature=0, max_tokens=80, response_format=Portrait
    )
    assert answer.choices[0].message.parsed == Portrait(**PORTRAIT)


@pytest.mark.parametrize("stream", [False, True])
def test_json_schema(client: OpenAI, stream: bool) -> None:
    """The schema also holds where the model would rather talk."""
    messages: Any = [{"role": "user", "content": PORTRAIT_QUESTION}]
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "p", "schema": PORTRAIT_SCHEMA, "strict": True},
    }
    given: dict[str, Any] = {**GREEDY, "messages": messages, "max_tokens": 80, "response_format": form}
    if stream:
        chunks = client.chat.completions.create(stream=True, **given)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = client.chat.completions.create(**given).choices[0].message.content or ""
    assert json.loads(text) == PORTRAIT


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "remind"}}, "auto", "none"], ids=str
)
def test_tools(client: OpenAI, endpoint: Endpoint, choice: Any) -> None:
    given = {**GREEDY, "tools": [FORECAST, REMINDER], "tool_choice": choice, "max_tokens": 80}
    [answer] = client.chat.completions.create(**given).choices
    calls = [(call.function.name, call.function.arguments) for call in answer.message.tool_calls or []]
    for _, arguments in calls:
        assert set(json.loads(arguments)) == {"day"} and json.loads(arguments)["day"] in DAYS
    assert bool(calls) == (answer.finish_reason == "tool_calls")
    if isinstance(choice, dict):
        assert [name for name, _ in calls] == ["remind"]
    elif choice == "required":
        assert calls and answer.message.content is None
    elif choice == "none":
        assert answer.message.content == ANSWER
    for chunks in (
        list(client.chat.completions.create(stream=True, **given)),
        _asynchronously(endpoint, stream=True, **given),
    ):
        streamed = _joined_calls(chunks)
        assert [(name, arguments) for _, name, arguments in streamed] == calls
        assert len({call_id for call_id, _, _ in streamed}) == len(calls)
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text == (answer.message.content or "")
        assert chunks[-1].choices[0].finish_reason == answer.finish_reason


def test_parse_tools(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        tools=[openai.pydantic_function_tool(forecast)],
        tool_choice="required",
        parallel_tool_calls=False,
        **GREEDY,
    )
    [call] = answer.choices[0].message.tool_calls or []
    parsed = call.function.parsed_arguments
    assert isinstance(parsed, forecast) and parsed.day in DAYS


def test_headers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**GREEDY)
    assert raw.headers["x-request-id"] and raw.parse().choices[0].message.content == ANSWER
    chosen = client.chat.completions.with_raw_response.create(
        extra_headers={"x-request-id": "mine-0123456789"}, **GREEDY
    )
    assert chosen.headers["x-request-id"] == "mine-0123456789"
    assert chosen.parse()._request_id == "mine-0123456789"


@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests(client: OpenAI, stream: bool) -> None:
    for wrong, param in (
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(stream=stream, **{**GREEDY, **wrong})
        assert caught.value.param == param and caught.value.type == "invalid_request_error"
        assert caught.value.request_id


def test_unknown_models_and_paths(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**GREEDY, "model": "gpt-unknown"})
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="text")


def test_keys(guarded: Endpoint) -> None:
    body: dict[str, Any] = {"model": "", "messages": ASKED, "max_tokens": 3}
    with OpenAI(base_url=guarded.v1, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.chat.completions.create(**body)
        assert caught.value.code == "invalid_api_key"
    with OpenAI(base_url=guarded.v1, api_key=KEY, max_retries=0) as known:
        assert known.models.list().data


def test_rate_limits(occupied: Endpoint) -> None:
    with OpenAI(base_url=occupied.v1, api_key=KEY, max_retries=0) as client:
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="", messages=ASKED, max_tokens=3, stream=stream)
            assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.fixture(scope="module")
def tool_server() -> Iterator[Endpoint]:
    with serving(environment(MODEL_ID=MODEL, CHAT_TEMPLATE=TOOL_TEMPLATE)) as server:
        yield Endpoint(server.port)


def test_a_conversation_with_a_tool(tool_server: Endpoint) -> None:
    """A call goes back into the chat as it came, followed by what the tool answered."""
    given: dict[str, Any] = {"model": MODEL, "tools": [FORECAST], "temperature": 0, "max_tokens": 60}
    with OpenAI(base_url=tool_server.v1, api_key="unused", max_retries=0) as client:
        first = client.chat.completions.create(
            messages=ASKED, tool_choice="required", parallel_tool_calls=False, **given
        )
        message = first.choices[0].message
        [call] = message.tool_calls or []
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        second = client.chat.completions.create(messages=[*ASKED, message, result], **given)
        assert first.usage is not None and second.usage is not None
        assert second.usage.prompt_tokens > first.usage.prompt_tokens
        assert second.choices[0].finish_reason in ("length", "stop", "tool_calls")


def test_a_template_without_tools_refuses_their_answers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="unknown role tool"):
        client.chat.completions.create(
            **{**GREEDY, "messages": [*ASKED, {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]}
        )
