"""Today's `openai` client on `/v1/completions`: several prompts, echo, log-probabilities; and what both OpenAI routes do
while nothing can be shown, when one choice ends early and when the client leaves.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from serving.config import HttpConfig
from serving.messages import SequenceOutput, TopToken
from tests.api.fake_engine import FakeStream
from tests.api.openai_client import BODIES, BOTH, OpenAIFront, letters, says


def test_completion() -> None:
    front = OpenAIFront(says("hello", finish="length"))
    answer = front.client.completions.create(model="demo", prompt="ab")
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", answer.id)
    assert (answer.object, answer.model) == ("text_completion", "demo")
    [choice] = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "hello", "length", None)
    assert answer.usage is not None and answer.usage.total_tokens == 7
    [request] = front.engine.requests
    assert (request.prompt_token_ids, request.params.max_new_tokens) == (list(b"ab"), 16)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [["ab", "c"], [[97, 98], [99]]])
def test_several_prompts(prompt: Any, stream: bool) -> None:
    front = OpenAIFront(letters)
    if stream:
        texts = ["", "", "", ""]
        for chunk in front.client.completions.create(
            model="demo", prompt=prompt, n=2, echo=True, stream=True
        ):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        answer = front.client.completions.create(model="demo", prompt=prompt, n=2, echo=True)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        texts = [choice.text for choice in answer.choices]
        assert answer.usage is not None and answer.usage.prompt_tokens == 3
    assert texts == ["abAB0", "abAB1", "cC0", "cC1"]


def test_token_ids_are_one_prompt() -> None:
    front = OpenAIFront(letters)
    assert (
        front.client.completions.create(model="demo", prompt=[97, 98], echo=True).choices[0].text == "abAB0"
    )
    assert len(front.engine.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(stream: bool) -> None:
    top = [[], [TopToken(120, -0.5), TopToken(98, -1.0)], [TopToken(121, -0.5)]]
    script = says("de", finish="length", prompt_logprobs=[None, -1.0, -2.0], prompt_top_tokens=top)
    front = OpenAIFront(script)
    arguments: dict[str, Any] = {"model": "demo", "prompt": "abc", "echo": True, "logprobs": 2}
    columns: dict[str, list[Any]] = {}
    if stream:
        text = ""
        for chunk in front.client.completions.create(**arguments, stream=True):
            text += chunk.choices[0].text
            assert chunk.choices[0].logprobs is not None
            for name, values in chunk.choices[0].logprobs.model_dump().items():
                columns.setdefault(name, []).extend(values)
    else:
        choice = front.client.completions.create(**arguments).choices[0]
        assert choice.logprobs is not None
        text, columns = choice.text, choice.logprobs.model_dump()
    assert text == "abcde"
    assert columns["tokens"] == list("abcde")
    assert columns["token_logprobs"] == [None, -1.0, -2.0, -0.25, -0.25]
    assert columns["text_offset"] == [0, 1, 2, 3, 4]
    assert columns["top_logprobs"][:3] == [None, {"x": -0.5, "b": -1.0}, {"y": -0.5, "c": -2.0}]
    params = front.engine.requests[0].params
    assert params.prompt_logprobs and params.raw_logprobs and params.top_n_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_only_the_prompt(stream: bool) -> None:
    front = OpenAIFront(says("x", finish="length", prompt_logprobs=[None, -1.0]))
    arguments: dict[str, Any] = {
        "model": "demo",
        "prompt": "ab",
        "echo": True,
        "logprobs": 0,
        "max_tokens": 0,
    }
    if stream:
        chunks = list(
            front.client.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
        )
        assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "ab"
        assert chunks[-2].choices[0].finish_reason == "length"
        usage = chunks[-1].usage
    else:
        answer = front.client.completions.create(**arguments)
        [choice] = answer.choices
        assert (choice.text, choice.finish_reason) == ("ab", "length")
        assert choice.logprobs is not None
        assert (choice.logprobs.tokens, choice.logprobs.token_logprobs) == (["a", "b"], [None, -1.0])
        usage = answer.usage
    assert usage is not None and (usage.completion_tokens, usage.total_tokens) == (0, 2)


def test_parts_of_characters_are_named_by_their_bytes() -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.put(
            SequenceOutput(
                request_id=stream.request.request_id,
                token_ids=list("ö".encode()),
                logprobs=[-1.0, -2.0],
                top_tokens=[[TopToken(0xC4, -0.5), TopToken(97, -0.75)], [TopToken(0xB6, -2.0)]],
                finish_reason="length",
            )
        )

    choice = OpenAIFront(script).client.completions.create(model="demo", prompt="a", logprobs=2).choices[0]
    assert choice.text == "ö" and choice.logprobs is not None and choice.logprobs.tokens == ["", "ö"]
    assert choice.logprobs.top_logprobs == [
        {"bytes:\\xc4": -0.5, "a": -0.75, "bytes:\\xc3": -1.0},
        {"bytes:\\xb6": -2.0},
    ]


@pytest.mark.parametrize("path", BOTH)
def test_silence_is_filled_while_text_is_held_back(path: str) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("a!")

    front = OpenAIFront(script, http=HttpConfig(heartbeat_s=0.3))
    body = {**BODIES[path], "stream": True, "stop": "!!"}
    response = front.app.test_client().post(path, json=body, buffered=False)
    chunks = iter(response.response)
    assert next(chunks) == b""
    first = bytes(next(chunks))
    assert b'"a"' in first and b"!" not in first
    assert next(chunks) == b":\n\n"
    front.engine.streams[0].tokens("b", "length")
    assert b'"!b"' in b"".join(chunks)
    response.close()
    assert front.engine.aborted == []


@pytest.mark.parametrize("path", BOTH)
def test_a_choice_that_stops_early_is_aborted_alone(path: str) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("a!")
        stream.tokens("bc", "length", index=1)

    front = OpenAIFront(script)
    response = front.app.test_client().post(path, json={**BODIES[path], "n": 2, "stop": "!"})
    assert [choice["finish_reason"] for choice in response.json["choices"]] == ["stop", "length"]
    assert front.engine.aborted[0] == (front.engine.requests[0].request_id, 0)


@pytest.mark.parametrize("path", BOTH)
def test_a_client_that_leaves_frees_the_engine(path: str) -> None:
    front = OpenAIFront(lambda stream: stream.accept())
    response = front.app.test_client().post(path, json={**BODIES[path], "stream": True}, buffered=False)
    assert next(iter(response.response)) == b""
    response.close()
    assert front.engine.streams[0].closed
    assert front.engine.aborted == [(front.engine.requests[0].request_id, None)]
