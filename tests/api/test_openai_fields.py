"""What the OpenAI routes accept, refuse and make of every request field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.api.schema.openai_chat import ChatCompletionRequest
from serving.api.schema.openai_completions import CompletionRequest
from serving.api.schema.parity import REFUSED, WITHOUT_EFFECT
from serving.sampling_params import SamplingParams
from tests.api.openai_client import (
    BODIES,
    BOTH,
    CHAT,
    COMPLETIONS,
    MESSAGES,
    OpenAIFront,
    ToolText,
    params,
    refusal,
)

ROUTES = {"chat": CHAT, "completions": COMPLETIONS}
U64 = 2**64
CALL = {"function": {"name": "f", "arguments": "{}"}}


@pytest.fixture
def front() -> OpenAIFront:
    return OpenAIFront()


# field, values that are out of range, the limit that the message names
EDGES: list[tuple[str, list[Any], str]] = [
    ("temperature", [-0.1, 2.1, 1e300, 2**63, -1], "from 0 to 2"),
    ("top_p", [-0.1, 1.1, 2**31], "from 0 to 1"),
    ("top_k", [-2, 2**31, 2**63, 10**19], "from -1 to 2147483647"),
    ("min_p", [-0.1, 1.1], "from 0 to 1"),
    ("presence_penalty", [-2.1, 2.1, 2**63], "from -2 to 2"),
    ("frequency_penalty", [-2.1, 2.1, 2**63], "from -2 to 2"),
    ("repetition_penalty", [0, -1.0, 1e300], "above 0 to 3.40282e+38"),
    ("n", [0, -1, 17, 2**31, 2**63], "from 1 to 16"),
    ("seed", [U64, -(2**63) - 1], "from -9223372036854775808 to 18446744073709551615"),
    ("min_tokens", [-1, 2**32], "from 0 to 4294967295"),
    ("max_tokens", [-1, 2**32, 2**63], "from 0 to 4294967295"),
    ("stop", [["a"] * 5, ["a"] * 10_000], "at most 4 strings"),
    ("stop", ["", [""], "a" * 1025], "1 to 1024 characters"),
    ("stop_token_ids", [[-1], [257], [2**31], [2**63]], "from 0 to 256"),
    ("stop_token_ids", [[1] * 65], "at most 64"),
    ("logit_bias", [{"257": 1}, {"99999999999": 1}], "from 0 to 256"),
    ("logit_bias", [{"-1": 1}, {"a": 1}, {"01": 1}, {"1.0": 1}, {" 1": 1}, {"１": 1}], "decimal token ids"),
    ("logit_bias", [{"1": 101}, {"1": -100.5}, {"1": 2**63}], "from -100 to 100"),
    ("logit_bias", [{str(i): 0 for i in range(1025)}], "at most 1024 entries"),
    ("metadata", [{str(i): "" for i in range(17)}], "at most 16"),
]


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize(("field", "values", "limit"), EDGES)
def test_numeric_edges(front: OpenAIFront, path: str, field: str, values: list[Any], limit: str) -> None:
    for value in values:
        error = refusal(front, path, {field: value})
        assert error["param"].startswith(field)
        assert f"`{field}" in error["message"] and limit in error["message"]
        assert (error["type"], error["code"]) == ("invalid_request_error", None)
        if isinstance(value, int | float):
            assert f"is {value!r}," in error["message"] or f"is {float(value)!r}," in error["message"]


@pytest.mark.parametrize(
    ("path", "field", "values", "limit"),
    [
        (CHAT, "top_logprobs", [-1, 21, 2**63], "from 0 to 20"),
        (CHAT, "max_completion_tokens", [-1, 2**63], "from 0 to 4294967295"),
        (CHAT, "max_completion_tokens", [0], "at least 1"),
        (CHAT, "max_tokens", [0], "at least 1"),
        (COMPLETIONS, "max_tokens", [0], "at least 1"),
        (COMPLETIONS, "logprobs", [-1, 6, 2**63], "from 0 to 5"),
        (COMPLETIONS, "best_of", [0, 2, -1], "the value of `n`, 1"),
        (COMPLETIONS, "prompt", [[]], "at least one"),
        (COMPLETIONS, "prompt", [["a"] * 33, ["a"] * 10_000], "at most 32 prompts"),
        (COMPLETIONS, "prompt", [[257], [-1], [1, 2**31], [[1], [2, 257]]], "from 0 to 256"),
        (COMPLETIONS, "prompt", [["a", 1], [["a"]], [[1], "a"], [{}], [1, "a"], [True], [1.5]], "must be"),
        (COMPLETIONS, "prompt", ["", ["a", ""]], "at least one character"),
        (COMPLETIONS, "prompt", [[[]], [[1], []]], "no tokens"),
        (COMPLETIONS, "prompt", ["a" * 201, [1] * 201, "a" * 100_000], "maximum context length is 256"),
        (CHAT, "messages", [[], [MESSAGES[0]] * 4097], "1 to 4096 messages"),
    ],
)
def test_edges_of_one_route(front: OpenAIFront, path: str, field: str, values: list[Any], limit: str) -> None:
    for value in values:
        error = refusal(
            front, path, {field: value, "logprobs": True} if field == "top_logprobs" else {field: value}
        )
        assert error["param"].startswith(field) and limit in error["message"], error


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize(
    "field", ["temperature", "top_k", "n", "seed", "max_tokens", "stream", "ignore_eos", "logit_bias", "stop"]
)
def test_wrong_types(front: OpenAIFront, path: str, field: str) -> None:
    wrong: list[Any] = [{"a": {}}, [[]], "x" if field != "stop" else 5]
    wrong += [] if field in ("stream", "ignore_eos") else [True]
    for value in wrong:
        assert field in refusal(front, path, {field: value})["message"]


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_are_none(front: OpenAIFront, path: str, number: str) -> None:
    body = json.dumps(BODIES[path])[:-1] + f', "temperature": {number}}}'
    response = front.app.test_client().post(path, data=body, content_type="application/json")
    assert (response.status_code, response.json["error"]["code"]) == (400, "malformed_json")


@pytest.mark.parametrize(("api", "name"), [(api, name) for api in ROUTES for name in REFUSED[api]])
def test_known_but_not_honoured(front: OpenAIFront, api: str, name: str) -> None:
    error = refusal(front, ROUTES[api], {name: 1})
    assert error["param"] == name
    assert error["message"] == f"`{name}` is not supported: {REFUSED[api][name]}"


def test_tables_and_schemas_do_not_overlap() -> None:
    for api, schema in (("chat", ChatCompletionRequest), ("completions", CompletionRequest)):
        declared = set(schema.__struct_encode_fields__)
        assert not declared & set(REFUSED[api])
        assert set(WITHOUT_EFFECT[api]) <= declared


NO_EFFECT: dict[str, Any] = {
    "user": "someone",
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "store": False,
    "modalities": ["text"],
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit"},
    "best_of": 1,
}


@pytest.mark.parametrize(("api", "name"), [(api, name) for api in ROUTES for name in WITHOUT_EFFECT[api]])
def test_without_effect(front: OpenAIFront, api: str, name: str) -> None:
    changed = params(front, ROUTES[api], {"seed": 1, name: NO_EFFECT[name]})
    assert changed == params(front, ROUTES[api], {"seed": 1})


@pytest.mark.parametrize("path", BOTH)
def test_unknown_fields(front: OpenAIFront, path: str) -> None:
    assert refusal(front, path, {"foo": 1})["message"] == "`foo` is not a parameter of this route"
    assert len(refusal(front, path, {"ü" * 100_000: 1})["param"]) <= 80
    assert refusal(front, path, {"stream": True, "stream_options": {"foo": 1}})["param"] == "stream_options"


@pytest.mark.parametrize(("api", "path"), ROUTES.items())
def test_null_counts_as_absent(front: OpenAIFront, api: str, path: str) -> None:
    schema = ChatCompletionRequest if api == "chat" else CompletionRequest
    names = [*schema.__struct_encode_fields__, *REFUSED[api], "foo", "adapter_id"]
    nulls = {name: None for name in names if name not in ("messages", "prompt")}
    assert params(front, path, {**nulls, "seed": 1}) == params(front, path, {"seed": 1})


def test_defaults(front: OpenAIFront) -> None:
    for path, new_tokens in ((CHAT, 256 - 20), (COMPLETIONS, 16)):
        found = params(front, path, {})
        assert found == SamplingParams(max_new_tokens=new_tokens, seed=found.seed, raw_logprobs=True)
        assert found.seed != params(front, path, {}).seed
    assert params(front, COMPLETIONS, {"prompt": "a" * 200}).max_new_tokens == 16


def test_every_sampling_field_arrives(front: OpenAIFront) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": -1,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.2,
        "logit_bias": {"5": -100, "7": 1.5},
        "seed": 9,
        "n": 2,
        "stop": "x",
        "stop_token_ids": [3, 4],
        "ignore_eos": True,
        "min_tokens": 2,
        "max_tokens": 11,
    }
    for path in BOTH:
        front.engine.script = lambda stream: [
            stream.accept(),
            *(stream.tokens("a", "length", index=i) for i in (0, 1)),
        ]  # type: ignore[assignment,return-value]
        assert params(front, path, fields) == SamplingParams(
            max_new_tokens=11,
            temperature=0.5,
            top_k=7,
            top_p=0.9,
            min_p=0.1,
            repetition_penalty=1.2,
            frequency_penalty=1.5,
            presence_penalty=-1,
            seed=9,
            n=2,
            stop=("x",),
            stop_token_ids=(3, 4),
            ignore_eos=True,
            min_new_tokens=2,
            logit_bias=((5, -100), (7, 1.5)),
            raw_logprobs=True,
        )


def test_values_that_mean_off_or_the_likeliest(front: OpenAIFront) -> None:
    assert params(front, CHAT, {"temperature": 0}).greedy
    assert params(front, CHAT, {"top_k": -1}).top_k == params(front, CHAT, {"top_k": 0}).top_k == 0
    assert 0 < params(front, CHAT, {"top_p": 0}).top_p < 1e-3
    assert params(front, CHAT, {"seed": -1}).seed == U64 - 1
    assert params(front, CHAT, {"stop": []}).stop == ()
    assert params(front, CHAT, {"max_completion_tokens": 5, "max_tokens": 5}).max_new_tokens == 5
    assert params(front, CHAT, {"max_completion_tokens": 5}).max_new_tokens == 5


def test_fields_that_contradict_each_other(front: OpenAIFront) -> None:
    for path in BOTH:
        assert refusal(front, path, {"stream_options": {"include_usage": True}})["param"] == "stream_options"
        assert refusal(front, path, {"min_tokens": 9, "max_tokens": 8})["param"] == "min_tokens"
        assert refusal(front, path, {"store": True})["param"] == "store"
        too_many = refusal(front, path, {"max_tokens": 255})
        assert (too_many["param"], too_many["code"]) == ("max_tokens", "context_length_exceeded")
    assert refusal(front, CHAT, {"max_tokens": 5, "max_completion_tokens": 6})["param"] == "max_tokens"
    assert refusal(front, CHAT, {"top_logprobs": 2})["param"] == "top_logprobs"
    assert refusal(front, CHAT, {"modalities": ["text", "audio"]})["param"] == "modalities"
    both = {"add_generation_prompt": True, "continue_final_message": True}
    assert refusal(front, CHAT, both)["param"] == "add_generation_prompt"
    only_prompt = {"max_tokens": 0, "echo": True, "min_tokens": 1}
    assert refusal(front, COMPLETIONS, only_prompt)["param"] == "min_tokens"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "wizard", "content": "a"}, "messages[0].role"),
        ({"role": "function", "content": "a"}, "messages[0].role"),
        ({"content": "a"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": "a", "foo": 1}, "messages[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "poem", "text": "a"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "messages[0].role"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "messages[0].tool_calls[0].function.arguments"),
        ("hi", "messages[0]"),
    ],
)  # fmt: skip
def test_messages(front: OpenAIFront, message: Any, field: str) -> None:
    assert refusal(front, CHAT, {"messages": [message]})["param"] == field


def test_images_are_refused_by_name(front: OpenAIFront) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    message = refusal(front, CHAT, {"messages": [{"role": "user", "content": [part]}]})["message"]
    assert "images are not supported, this server serves text models" in message


def test_text_parts_and_roles_reach_the_template(front: OpenAIFront) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": {}}]},
        {"role": "assistant", "content": "b", "refusal": None, "annotations": [], "audio": None, "function_call": None},
    ]  # fmt: skip
    text = ToolText()
    front = OpenAIFront(text=text)
    params(front, CHAT, {"messages": messages, "documents": [{"t": 1}], "chat_template_kwargs": {"x": 1}})
    assert text.asked.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "b"},
    ]
    assert (text.asked.documents, text.asked.template_variables) == ([{"t": 1}], {"x": 1})
    params(front, CHAT, {"reasoning_effort": "low", "continue_final_message": True})
    assert text.asked.template_variables == {"reasoning_effort": "low"}
    assert text.asked.continue_final_message and not text.asked.add_generation_prompt


@pytest.mark.parametrize("path", BOTH)
def test_adapters_are_never_the_base_model(front: OpenAIFront, path: str) -> None:
    error = refusal(front, path, {"adapter_id": "mine"}, status=404)
    assert (error["param"], error["code"]) == ("adapter_id", "not_found")
    for unnamed in ("", 0, [], False):
        assert refusal(front, path, {"adapter_id": unnamed}, status=404)["param"] == "adapter_id"
    header = {"X-Amzn-SageMaker-Adapter-Identifier": "mine"}
    response = front.app.test_client().post(path, json=BODIES[path], headers=header)
    assert response.status_code == 404 and "'mine'" in response.json["error"]["message"]
