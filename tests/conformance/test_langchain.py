"""`langchain-openai` with nothing but a base URL: chats, streams, tools, structured output and completions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, SecretStr

from tests.conformance.conftest import (
    ANSWER,
    DAYS,
    MODEL,
    PORTRAIT,
    PORTRAIT_QUESTION,
    PROMPT,
    QUESTION,
    Endpoint,
)


class Portrait(BaseModel):
    """One of the people of the valley."""

    name: str
    kind: str
    home: str


class Forecast(BaseModel):
    """The weather of a day."""

    day: Literal["today", "tomorrow"]


@pytest.fixture
def clients(endpoint: Endpoint) -> Iterator[dict[str, Any]]:
    """Connections are closed with the test; langchain itself keeps them until the interpreter ends."""
    with openai.DefaultHttpxClient() as client:
        yield {"base_url": endpoint.v1, "api_key": SecretStr("unused"), "model": MODEL, "http_client": client}


@pytest.fixture
def chat(clients: dict[str, Any]) -> ChatOpenAI:
    return ChatOpenAI(**clients, temperature=0, max_completion_tokens=80, max_retries=0)


def test_invoke(chat: ChatOpenAI) -> None:
    message = chat.invoke(QUESTION)
    assert message.content == ANSWER
    assert message.usage_metadata is not None and message.usage_metadata["output_tokens"] == 12
    assert message.response_metadata["finish_reason"] == "stop"
    assert chat.invoke([HumanMessage(QUESTION)], stop=[" painter"]).content == ANSWER.split(" painter")[0]


def test_stream(chat: ChatOpenAI) -> None:
    chunks = list(chat.stream(QUESTION, stream_usage=True))
    assert "".join(str(chunk.content) for chunk in chunks) == ANSWER
    usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert [usage["output_tokens"] for usage in usages] == [12]


def test_asynchronously(clients: dict[str, Any]) -> None:
    async def ask() -> str:
        async with openai.DefaultAsyncHttpxClient() as client:
            chat = ChatOpenAI(**clients, http_async_client=client, temperature=0)
            return str((await chat.ainvoke(QUESTION)).content)

    assert asyncio.run(ask()) == ANSWER


def test_bind_tools(chat: ChatOpenAI) -> None:
    for choice in ("required", "Forecast"):
        message = chat.bind_tools([Forecast], tool_choice=choice).invoke(QUESTION)
        assert message.tool_calls
        for call in message.tool_calls:
            assert call["name"] == "Forecast" and call["args"]["day"] in DAYS
    streamed = None
    for chunk in chat.bind_tools([Forecast], tool_choice="required", parallel_tool_calls=False).stream(
        QUESTION
    ):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None and [call["name"] for call in streamed.tool_calls] == ["Forecast"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_with_structured_output(chat: ChatOpenAI, method: Any) -> None:
    portrait = chat.with_structured_output(Portrait, method=method).invoke(PORTRAIT_QUESTION)
    assert isinstance(portrait, Portrait)
    assert method == "function_calling" or portrait == Portrait(**PORTRAIT)


def test_completions(clients: dict[str, Any]) -> None:
    model = OpenAI(**clients, temperature=0, max_tokens=10, max_retries=0)
    story = ", there was a small red fox named Milo who"
    assert model.invoke(PROMPT) == story
    assert "".join(model.stream(PROMPT)) == story
    generations = model.generate([PROMPT, QUESTION]).generations
    assert [len(choices) for choices in generations] == [1, 1] and generations[0][0].text == story
