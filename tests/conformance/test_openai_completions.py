"""Completions and models through OpenAI's own client."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.conformance.conftest import MODEL, PROMPT, Endpoint

STORY = ", there was a small red fox named Milo who"
IDS = [0, 492, 493, 266, 444]
"""`PROMPT` in tokens, with the beginning of the text."""
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 10}
PROMPTS = [PROMPT, "Who is Zoë?", "3 + 4 =", "The old"]


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[OpenAI]:
    with OpenAI(base_url=endpoint.v1, api_key="unused", max_retries=0) as client:
        yield client


def _texts(chunks: Any, count: int) -> list[str]:
    texts = [""] * count
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    return texts


@pytest.mark.parametrize(
    "prompt", [PROMPT, [PROMPT], IDS, [IDS]], ids=["text", "texts", "ids", "lists of ids"]
)
def test_forms_of_prompts(client: OpenAI, prompt: Any) -> None:
    answer = client.completions.create(prompt=prompt, **GREEDY)
    [choice] = answer.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, STORY, "length")
    assert answer.object == "text_completion"
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        5,
        10,
    )


def test_default_length(client: OpenAI) -> None:
    usage = client.completions.create(model=MODEL, prompt=PROMPT, temperature=0).usage
    assert usage is not None and usage.completion_tokens == 16


def test_several_prompts(client: OpenAI, endpoint: Endpoint) -> None:
    answer = client.completions.create(prompt=PROMPTS, n=2, **GREEDY)
    assert [choice.index for choice in answer.choices] == list(range(8))
    alone = [client.completions.create(prompt=prompt, **GREEDY).choices[0].text for prompt in PROMPTS]
    assert [choice.text for choice in answer.choices] == [text for text in alone for _ in range(2)]
    assert _texts(client.completions.create(prompt=PROMPTS, n=2, stream=True, **GREEDY), 8) == [
        choice.text for choice in answer.choices
    ]

    async def streamed() -> list[str]:
        async with AsyncOpenAI(base_url=endpoint.v1, api_key="unused", max_retries=0) as other:
            stream = await other.completions.create(prompt=PROMPTS, stream=True, **GREEDY)
            return _texts([chunk async for chunk in stream], 4)

    assert asyncio.run(streamed()) == alone


@pytest.mark.parametrize("with_usage", [False, True])
def test_stream(client: OpenAI, with_usage: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if with_usage else {}
    chunks = list(client.completions.create(prompt=PROMPT, stream=True, **GREEDY, **options))
    assert _texts(chunks, 1) == [STORY]
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["length"]
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == ([10] if with_usage else [])


def test_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(prompt=PROMPT, logprobs=2, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == STORY
    assert logprobs.token_logprobs is not None and all(
        value <= 0 for value in logprobs.token_logprobs if value
    )
    assert all(
        len(top) >= 2 and token in top
        for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True)
    )
    offsets = logprobs.text_offset or []
    assert [
        STORY[offset:].startswith(token) for offset, token in zip(offsets, logprobs.tokens, strict=True)
    ] == [True] * 10


def test_echo(client: OpenAI) -> None:
    answer = client.completions.create(prompt=PROMPT, echo=True, **GREEDY)
    assert answer.choices[0].text == PROMPT + STORY
    chunks = client.completions.create(prompt=PROMPT, echo=True, stream=True, **GREEDY)
    assert _texts(chunks, 1) == [PROMPT + STORY]


def test_scoring_a_text(client: OpenAI) -> None:
    """`echo` with `logprobs` and no new token: what evaluation harnesses ask."""
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT + STORY, echo=True, logprobs=1, max_tokens=0, temperature=0
    )
    [choice] = answer.choices
    logprobs = choice.logprobs
    assert choice.text == PROMPT + STORY and logprobs is not None
    assert logprobs.tokens is not None and logprobs.token_logprobs is not None
    assert "".join(logprobs.tokens).endswith(PROMPT + STORY) and logprobs.token_logprobs[0] is None
    generated = client.completions.create(prompt=PROMPT, logprobs=1, **GREEDY).choices[0].logprobs
    assert generated is not None and generated.token_logprobs is not None
    scored = logprobs.token_logprobs[-10:]
    assert all(
        math.isclose(a, b, abs_tol=1e-3) for a, b in zip(scored, generated.token_logprobs, strict=True)
    )


@pytest.mark.parametrize("stop", [" fox", ["red", "small"], "ll re"], ids=str)
def test_stop(client: OpenAI, stop: Any) -> None:
    end = min(STORY.index(text) for text in ([stop] if isinstance(stop, str) else stop))
    answer = client.completions.create(prompt=PROMPT, stop=stop, **GREEDY)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (STORY[:end], "stop")
    assert _texts(client.completions.create(prompt=PROMPT, stop=stop, stream=True, **GREEDY), 1) == [
        STORY[:end]
    ]


def test_logit_bias(client: OpenAI) -> None:
    """Token 525 is ` small`; at -100 it is never chosen, and at +100 always."""
    without = client.completions.create(prompt=PROMPT, logit_bias={"525": -100}, **GREEDY).choices[0].text
    assert without != STORY and " small" not in without
    only = client.completions.create(prompt=PROMPT, logit_bias={"525": 100}, **GREEDY).choices[0].text
    assert only == " small" * 10


def test_refusals(client: OpenAI) -> None:
    for wrong, param in (
        ({"suffix": "end"}, "suffix"),
        ({"prompt": [[2**31]]}, "prompt"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"prompt": [PROMPT] * 1000}, "prompt"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"prompt": PROMPT, **GREEDY, **wrong})
        assert (caught.value.param or "").startswith(param)


def test_models(client: OpenAI, endpoint: Endpoint) -> None:
    listed = client.models.list()
    assert listed.object == "list" and MODEL in [model.id for model in listed.data]
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object) == (MODEL, "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("someone/else")

    async def names() -> list[str]:
        async with AsyncOpenAI(base_url=endpoint.v1, api_key="unused") as other:
            return [model.id async for model in other.models.list()]

    assert asyncio.run(names()) == [model.id for model in listed.data]
