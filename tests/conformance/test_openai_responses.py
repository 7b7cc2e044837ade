"""Responses through OpenAI's own client, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.conformance.conftest import (
    ANSWER,
    DAY_SCHEMA,
    DAYS,
    MODEL,
    PORTRAIT,
    PORTRAIT_QUESTION,
    QUESTION,
    Endpoint,
)

GREEDY: dict[str, Any] = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 40}
FORECAST: Any = {"type": "function", "name": "forecast", "parameters": DAY_SCHEMA, "strict": True}


class Portrait(BaseModel):
    name: str
    kind: str
    home: str


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[OpenAI]:
    with OpenAI(base_url=endpoint.v1, api_key="unused", max_retries=0) as client:
        yield client


def test_answer(client: OpenAI) -> None:
    answer = client.responses.create(**GREEDY)
    assert (answer.output_text, answer.status) == (ANSWER, "completed")
    assert answer.usage is not None and answer.usage.output_tokens > 0
    again = [{"role": "user", "content": QUESTION}, *answer.output, {"role": "user", "content": QUESTION}]
    longer = client.responses.create(**{**GREEDY, "input": again})
    assert longer.usage is not None and longer.usage.input_tokens > answer.usage.input_tokens


def test_stream_is_the_answer(client: OpenAI) -> None:
    with client.responses.stream(**GREEDY) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == ANSWER


def test_asynchronous_stream_that_is_cut_off(endpoint: Endpoint) -> None:
    async def call() -> list[Any]:
        async with AsyncOpenAI(base_url=endpoint.v1, api_key="unused", max_retries=0) as client:
            events = await client.responses.create(**{**GREEDY, "max_output_tokens": 3}, stream=True)
            return [event async for event in events]

    events = asyncio.run(call())
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    assert ANSWER.startswith(events[-1].response.output_text)


def test_parse(client: OpenAI) -> None:
    answer = client.responses.parse(
        model=MODEL, input=PORTRAIT_QUESTION, text_format=Portrait, temperature=0, max_output_tokens=100
    )
    assert answer.output_parsed == Portrait(**PORTRAIT)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "forecast"}])
def test_forced_call(client: OpenAI, choice: Any) -> None:
    given: dict[str, Any] = {
        **GREEDY,
        "tools": [FORECAST],
        "tool_choice": choice,
        "parallel_tool_calls": False,
    }
    [call] = client.responses.create(**given).output
    assert call.type == "function_call" and call.name == "forecast"
    assert json.loads(call.arguments)["day"] in DAYS
    with client.responses.stream(**given) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments


def test_state_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**GREEDY, previous_response_id="resp_1")
    assert error.value.param == "previous_response_id"
