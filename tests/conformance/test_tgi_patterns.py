"""What TGI's own integration tests ask of a server over the wire, with the demo model in place of theirs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from tests.conformance.conftest import (
    DAYS,
    FORECAST,
    PORTRAIT,
    PORTRAIT_QUESTION,
    PORTRAIT_SCHEMA,
    PROMPT,
    QUESTION,
    REMINDER,
    Endpoint,
    Json,
)

FOUR_PROMPTS = [PROMPT, QUESTION, "3 + 4 =", "The old"]
ALL_PARAMETERS: Json = {
    "max_new_tokens": 10,
    "repetition_penalty": 1.2,
    "return_full_text": True,
    "stop": ["test"],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 10,
    "truncate": 5,
    "typical_p": 0.9,
    "watermark": True,
    "decoder_input_details": True,
    "seed": 0,
}
WEEK: Json = {
    "type": "object",
    "properties": {
        "days": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {
                    "day": {"enum": list(DAYS)},
                    "hours": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["day", "hours"],
                "additionalProperties": False,
            },
        },
        "warm": {"type": "boolean"},
    },
    "required": ["days", "warm"],
    "additionalProperties": False,
}


def _chat(question: str = QUESTION, **fields: Any) -> Json:
    return {"model": "tgi", "messages": [{"role": "user", "content": question}], "temperature": 0, **fields}


def test_simple(endpoint: Endpoint) -> None:
    [answer] = endpoint.ask("/", {"inputs": PROMPT, "parameters": {"max_new_tokens": 10, "details": True}})
    assert answer["details"]["generated_tokens"] == 10
    assert answer["generated_text"].startswith(PROMPT)


def test_all_params(endpoint: Endpoint) -> None:
    [answer] = endpoint.ask("/", {"inputs": PROMPT, "parameters": ALL_PARAMETERS})
    details = answer["details"]
    assert (details["seed"], details["finish_reason"], len(details["prefill"])) == (0, "length", 5)
    assert details["prefill"][0]["logprob"] is None
    assert answer["generated_text"] == PROMPT + "".join(token["text"] for token in details["tokens"])
    assert endpoint.ask("/", {"inputs": PROMPT, "parameters": ALL_PARAMETERS}) == [answer]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": PROMPT, "parameters": {"max_new_tokens": 16, "details": True}}),
        ("/generate", {"inputs": PROMPT, "parameters": {**ALL_PARAMETERS, "max_new_tokens": 16}}),
        ("/generate", {"inputs": PROMPT, "parameters": {"grammar": {"type": "json", "value": WEEK}}}),
        ("/v1/chat/completions", _chat(max_tokens=40)),
        ("/v1/chat/completions", _chat(tools=[FORECAST], tool_choice="required", max_tokens=60)),
    ],
    ids=["simple", "all_params", "grammar", "chat", "tools"],
)
def test_load(endpoint: Endpoint, path: str, body: Json) -> None:
    """Four equal requests at once are answered equally."""
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: endpoint.ask(path, body), range(4)))
    made = [_what_was_made(answer) for answer in answers]
    assert made[0] and made == made[:1] * 4


def _what_was_made(answer: Json) -> list[Any]:
    """Text, calls and tokens; ids of answers, counts of cached tokens and last digits of log-probabilities may differ."""
    if "choices" not in answer:
        tokens = answer.get("details", {}).get("tokens", [])
        return [answer["generated_text"], [token["id"] for token in tokens]]
    [choice] = answer["choices"]
    calls = [call["function"] for call in choice["message"].get("tool_calls", [])]
    return [choice["message"]["content"], calls, choice["finish_reason"]]


@pytest.mark.parametrize("prompt", [PROMPT, FOUR_PROMPTS], ids=["one", "four"])
def test_completion_prompts(endpoint: Endpoint, prompt: Any) -> None:
    body = {"model": "tgi", "prompt": prompt, "max_tokens": 10, "temperature": 0, "seed": 0}
    whole = endpoint.ask("/v1/completions", body)
    count = 1 if isinstance(prompt, str) else len(prompt)
    assert [choice["index"] for choice in whole["choices"]] == list(range(count))
    *chunks, done = endpoint.events("/v1/completions", {**body, "stream": True})
    assert done == "[DONE]" and not any(chunk.get("usage") for chunk in chunks)
    texts = [""] * count
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]


@pytest.mark.parametrize("asked", [True, False])
def test_chat_usage(endpoint: Endpoint, asked: bool) -> None:
    body = _chat(max_tokens=10, stream=True, stream_options={"include_usage": asked})
    *chunks, _ = endpoint.events("/v1/chat/completions", body)
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert len(usages) == int(asked)
    assert not asked or usages[0]["total_tokens"] == usages[0]["prompt_tokens"] + 10


def test_continue_final_message(endpoint: Endpoint) -> None:
    beginning = "Zoë is a cheerful"
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": beginning}]
    body = {**_chat(max_tokens=40), "messages": messages, "continue_final_message": True}
    answer = endpoint.ask("/v1/chat/completions", body)["choices"][0]
    assert answer["message"]["content"] == " girl and the painter of Willowbrook."


def test_names_of_response_formats(endpoint: Endpoint) -> None:
    forms = [
        {"type": "json_object", "value": PORTRAIT_SCHEMA},
        {"type": "json", "value": PORTRAIT_SCHEMA},
        {"type": "json_schema", "value": {"name": "portrait", "schema": PORTRAIT_SCHEMA}},
        {"type": "json_schema", "json_schema": {"name": "portrait", "schema": PORTRAIT_SCHEMA}},
    ]
    texts = []
    for form in forms:
        body = _chat(PORTRAIT_QUESTION, max_tokens=80, response_format=form)
        texts.append(endpoint.ask("/v1/chat/completions", body)["choices"][0]["message"]["content"])
    assert json.loads(texts[0]) == PORTRAIT and texts == texts[:1] * 4


def test_response_format_and_tools_exclude_each_other(endpoint: Endpoint) -> None:
    form = {"type": "json_object", "value": PORTRAIT_SCHEMA}
    status, _, answer = endpoint.send("/v1/chat/completions", _chat(response_format=form, tools=[FORECAST]))
    assert status == 400 and "response format and tools" in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_json_schema_constrain(endpoint: Endpoint, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "week", "schema": WEEK, "strict": True}}
    body = _chat(max_tokens=200, response_format=form)
    if stream:
        *chunks, _ = endpoint.events("/v1/chat/completions", {**body, "stream": True})
        text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    else:
        text = endpoint.ask("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    jsonschema.validate(json.loads(text), WEEK)


NAMED = {"type": "function", "function": {"name": "remind"}}


@pytest.mark.parametrize("choice", ["auto", "required", "none", NAMED], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_tools(endpoint: Endpoint, choice: Any, stream: bool) -> None:
    body = _chat(max_tokens=80, tools=[FORECAST, REMINDER], tool_choice=choice)
    calls: list[list[str]] = []
    if stream:
        *chunks, _ = endpoint.events("/v1/chat/completions", {**body, "stream": True})
        for chunk in chunks:
            for piece in chunk["choices"][0]["delta"].get("tool_calls", []):
                if piece["index"] == len(calls):
                    calls.append([piece["function"]["name"], ""])
                calls[-1][1] += piece["function"].get("arguments") or ""
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        answer = endpoint.ask("/v1/chat/completions", body)["choices"][0]
        made = answer["message"].get("tool_calls", [])
        calls = [[call["function"]["name"], call["function"]["arguments"]] for call in made]
        reason = answer["finish_reason"]
    assert all(json.loads(arguments)["day"] in DAYS for _, arguments in calls)
    assert bool(calls) == (reason == "tool_calls")
    expected = {"required": {"forecast", "remind"}, "none": set(), "auto": {"forecast", "remind"}}
    names = {name for name, _ in calls}
    assert names <= (expected[choice] if isinstance(choice, str) else {"remind"})
    assert calls or choice in ("auto", "none")
