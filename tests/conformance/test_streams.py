"""A stream is the answer in pieces: for requests over all routes, the joined pieces, token ids, reasons for the end and
usage equal those of the same request without streaming."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from tests.conformance.conftest import (
    DAY_SCHEMA,
    FORECAST,
    PORTRAIT_QUESTION,
    PORTRAIT_SCHEMA,
    PROMPT,
    QUESTION,
    REMINDER,
    Endpoint,
    Json,
)

# /invocations takes the same way as the routes it leads to; every third request shows that.
EVERY = 3

NATIVE: list[Json] = [
    {},
    {"max_new_tokens": 300},
    {"max_new_tokens": 1},
    {"return_full_text": True},
    {"stop": [" fox"]},
    {"stop": ["ed f", "x na"]},
    {"do_sample": True, "seed": 1},
    {"temperature": 1.6, "seed": 2, "max_new_tokens": 60},
    {"temperature": 0.8, "top_k": 5, "seed": 2**64 - 1},
    {"top_p": 0.7, "typical_p": 0.9, "seed": 3},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "max_new_tokens": 60},
    {"watermark": True, "do_sample": True, "seed": 4},
    {"truncate": 2},
    {"top_n_tokens": 3},
    {"grammar": {"type": "regex", "value": "[0-9]{4}-(a|b)+"}},
    {"grammar": {"type": "json", "value": DAY_SCHEMA}, "temperature": 1.2, "seed": 5},
]
NATIVE_INPUTS = [PROMPT, "Mei says hello in Hindi: “", "3 + 4 ="]

CHAT: list[Json] = [
    {"temperature": 0},
    {"temperature": 0, "max_tokens": 3},
    {"temperature": 0, "stop": [" painter"]},
    {"temperature": 0, "stop": "ful g"},
    {"temperature": 1.4, "seed": 6, "n": 3, "max_tokens": 16},
    {"temperature": 1.0, "seed": 7, "top_p": 0.8, "top_k": 40, "min_p": 0.02},
    {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 1.5},
    {"temperature": 0, "logprobs": True, "top_logprobs": 2},
    {"temperature": 0, "ignore_eos": True, "max_tokens": 30},
    {"temperature": 0, "min_tokens": 25, "max_tokens": 40},
    {"temperature": 0, "tools": [FORECAST, REMINDER], "tool_choice": "required", "max_tokens": 80},
    {"seed": 8, "tools": [FORECAST], "tool_choice": "required", "n": 2, "parallel_tool_calls": False},
    {"temperature": 0, "tools": [FORECAST, REMINDER], "tool_choice": "auto"},
    {"temperature": 0, "tools": [FORECAST], "tool_choice": {"type": "function", "function": {"name": "forecast"}}},
    {"temperature": 0, "messages": [{"role": "user", "content": PORTRAIT_QUESTION}]},
    {"temperature": 0, "messages": [{"role": "user", "content": "How do you say hello in Hindi?"}]},
    {"temperature": 0, "messages": [
        {"role": "system", "content": "You love emoji."}, {"role": "user", "content": "Who is Finn?"}]},
    {"seed": 9, "max_tokens": 80, "response_format": {"type": "json", "value": PORTRAIT_SCHEMA},
     "messages": [{"role": "user", "content": PORTRAIT_QUESTION}]},
    {"seed": 9, "max_tokens": 40, "guided_choice": ["yes", "no"]},
]  # fmt: skip

COMPLETIONS: list[Json] = [
    {"temperature": 0},
    {"temperature": 0, "prompt": [PROMPT, QUESTION, "The old", "3 + 4 ="], "max_tokens": 24},
    {"temperature": 0, "prompt": [0, 492, 493, 266, 444]},
    {"temperature": 0, "stop": "ll red", "max_tokens": 24},
    {"temperature": 0, "echo": True},
    {"temperature": 0, "echo": True, "logprobs": 2},
    {"temperature": 0, "logprobs": 3, "max_tokens": 24},
    {"seed": 10, "temperature": 1.5, "n": 4},
    {"seed": 11, "logit_bias": {"525": -100, "18": 3}},
    {"temperature": 0, "guided_regex": "[a-z]{3}[0-9]"},
]


def _cases(requests: list[Json], path: str, *others: str) -> list[Any]:
    """Each request on `path`, and some on each other path."""
    asked = [(fields, path) for fields in requests]
    asked += [(fields, other) for shift, other in enumerate(others) for fields in requests[shift::EVERY]]
    return [
        pytest.param(fields, route, id=f"{route}-{','.join(fields) or 'none'}") for fields, route in asked
    ]


def _tokens(events: list[Json]) -> list[Json]:
    return [event["token"] for event in events]


@pytest.mark.parametrize(("parameters", "path"), _cases(NATIVE, "/generate", "/", "/invocations"))
def test_native(endpoint: Endpoint, parameters: Json, path: str) -> None:
    for inputs in NATIVE_INPUTS if path == "/generate" else NATIVE_INPUTS[:1]:
        body = {"inputs": inputs, "parameters": {"max_new_tokens": 20, "details": True, **parameters}}
        answer = endpoint.ask(path, body)
        whole = answer if path == "/generate" else answer[0]
        stream_path, more = ("/generate_stream", {}) if path == "/generate" else (path, {"stream": True})
        events = endpoint.events(stream_path, {**body, **more})
        assert [event["index"] for event in events] == list(range(1, len(events) + 1))
        assert _tokens(events) == whole["details"]["tokens"]
        assert events[-1]["generated_text"] == whole["generated_text"]
        if "top_n_tokens" in parameters:
            assert [event["top_tokens"] for event in events] == whole["details"]["top_tokens"]
        for name in ("finish_reason", "generated_tokens", "seed"):
            assert events[-1]["details"][name] == whole["details"][name]


def _joined_choices(chunks: list[Json]) -> dict[int, Json]:
    """Choices of a stream of chat chunks, as they would be without streaming."""
    choices: dict[int, Json] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            made = choices.setdefault(
                choice["index"], {"text": "", "calls": {}, "logprobs": [], "reason": None}
            )
            delta = choice["delta"]
            made["text"] += delta.get("content") or ""
            for piece in delta.get("tool_calls", []):
                call = made["calls"].setdefault(piece["index"], {"name": "", "arguments": "", "ids": 0})
                call["ids"] += "id" in piece
                for name in ("name", "arguments"):
                    call[name] += piece["function"].get(name) or ""
            made["logprobs"] += (choice["logprobs"] or {}).get("content", [])
            assert made["reason"] is None, "nothing follows the reason for the end"
            made["reason"] = choice["finish_reason"]
    return choices


@pytest.mark.parametrize(("fields", "path"), _cases(CHAT, "/v1/chat/completions", "/invocations"))
def test_chat(endpoint: Endpoint, fields: Json, path: str) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 40, **fields}
    whole = endpoint.ask(path, body)
    *chunks, done = endpoint.events(path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert done == "[DONE]"
    choices = _joined_choices(chunks)
    assert sorted(choices) == [choice["index"] for choice in whole["choices"]]
    for choice in whole["choices"]:
        streamed, message = choices[choice["index"]], choice["message"]
        calls = [
            (call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls", [])
        ]
        assert streamed["text"] == (message["content"] or "")
        assert [(call["name"], call["arguments"]) for call in streamed["calls"].values()] == calls
        assert all(call["ids"] == 1 for call in streamed["calls"].values())
        assert streamed["logprobs"] == (choice["logprobs"] or {"content": []})["content"]
        assert streamed["reason"] == choice["finish_reason"]
    _assert_same_usage(chunks, whole)


@pytest.mark.parametrize(("fields", "path"), _cases(COMPLETIONS, "/v1/completions", "/invocations"))
def test_completions(endpoint: Endpoint, fields: Json, path: str) -> None:
    body = {"prompt": PROMPT, "max_tokens": 12, **fields}
    whole = endpoint.ask(path, body)
    *chunks, done = endpoint.events(path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert done == "[DONE]"
    texts, reasons = defaultdict(str), {}
    logprobs: dict[int, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                logprobs[choice["index"]][name] += values
            reasons[choice["index"]] = choice["finish_reason"]
    for choice in whole["choices"]:
        index = choice["index"]
        assert (texts[index], reasons[index]) == (choice["text"], choice["finish_reason"])
        assert logprobs[index] == (choice["logprobs"] or {})
    assert len(texts) == len(whole["choices"])
    _assert_same_usage(chunks, whole)


def _assert_same_usage(chunks: list[Json], whole: Json) -> None:
    """The usage comes once, in a last chunk without choices. What the prefix cache held differs between two calls."""
    usages = [chunk["usage"] for chunk in chunks if chunk["usage"] is not None]
    assert len(usages) == 1 and chunks[-1]["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usages[0][name] == whole["usage"][name]
