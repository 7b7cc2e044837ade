"""The native API, row by row of TGI's description, against a real server with the demo model: statuses, types, shapes,
headers and events. Where an answer differs from TGI's on purpose, the row says so in its name or next to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from local_mode.server_process import ServerProcess
from tests.e2e.conftest import serving
from tests.e2e.native_calls import PROMPT, ask, generate

GENERATING = ("/generate", "/generate_stream", "/", "/invocations")
TIMINGS = (
    "x-compute-time",
    "x-total-time",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
)


@pytest.fixture(scope="module")
def server(demo_model_dir: Any, server_environment: dict[str, str]) -> Iterator[ServerProcess]:
    settings = {"MODEL_ID": str(demo_model_dir), "MAX_BEST_OF": "3", "MAX_INPUT_TOKENS": "300"}
    with serving(server_environment, MAX_TOTAL_TOKENS="400", **settings) as server:
        yield server


# ---------------------------------------------------------------- routes


@pytest.mark.parametrize("path", ["/", "/health", "/ping"])
def test_health_is_an_empty_200(server: ServerProcess, path: str) -> None:
    answer = ask(server, "GET", path)
    assert (answer.status, answer.body) == (200, b"")


def test_generate_is_an_object_and_the_others_an_array_of_one(server: ServerProcess) -> None:
    assert set(generate(server).json) == {"generated_text"}
    for path in ("/", "/invocations"):
        [reply] = generate(server, path).json
        assert set(reply) == {"generated_text"}


def test_info_has_tgis_keys(server: ServerProcess) -> None:
    info = ask(server, "GET", "/info").json
    assert {
        "model_id", "model_sha", "model_pipeline_tag", "max_concurrent_requests", "max_best_of", "max_stop_sequences",
        "max_input_tokens", "max_total_tokens", "validation_workers", "max_client_batch_size", "router", "version",
        "sha", "docker_label",
    } <= set(info)  # fmt: skip
    assert (info["router"], info["max_best_of"]) == ("text-generation-router", 3)
    assert (info["max_input_tokens"], info["max_total_tokens"]) == (300, 400)


def test_metrics_models_docs_and_document_answer(server: ServerProcess) -> None:
    assert ask(server, "GET", "/metrics").headers["content-type"].startswith("text/plain")
    assert ask(server, "GET", "/v1/models").json["object"] == "list"
    assert ask(server, "GET", "/docs").headers["content-type"].startswith("text/html")
    assert ask(server, "GET", "/api-doc/openapi.json").json["openapi"].startswith("3.1")


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("POST", "/vertex")])
def test_unknown_paths_are_404_with_a_body_of_our_own(server: ServerProcess, method: str, path: str) -> None:
    answer = ask(server, method, path)
    assert (answer.status, answer.json["error_type"]) == (404, "not_found")


@pytest.mark.parametrize(
    "path", ["/generate", "/generate_stream", "/invocations", "/tokenize", "/chat_tokenize"]
)
def test_wrong_methods_are_405(server: ServerProcess, path: str) -> None:
    answer = ask(server, "GET", path)
    assert (answer.status, answer.json["error_type"]) == (405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


# ---------------------------------------------------------------- what all routes share


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize(
    ("body", "content_type", "status", "error_type"),
    [
        (b'{"inputs":"a"}', "text/plain", 415, "unsupported_media_type"),
        (b'{"inputs":"a"', "application/json", 400, "malformed_json"),
        (b'{"inputs":NaN}', "application/json", 400, "malformed_json"),
        (b'{"inputs":"a","inputs":"b"}', "application/json", 400, "malformed_json"),
        (b"{}", "application/json", 422, "validation"),
        (b'{"inputs":3}', "application/json", 422, "validation"),
        (b'{"inputs":"a","parameters":null}', "application/json", 422, "validation"),
        (b'{"inputs":"a","parameters":{"stop":null}}', "application/json", 422, "validation"),
        (b'{"inputs":"a","parameters":{"do_sample":null}}', "application/json", 422, "validation"),
        (b'{"inputs":"a","parameters":{"watermark":null}}', "application/json", 422, "validation"),
        (b'{"inputs":"a","parameters":{"details":null}}', "application/json", 422, "validation"),
        (b'{"inputs":"a","parameters":{"seed":-1}}', "application/json", 422, "validation"),
    ],
)
def test_schema_errors_keep_tgis_status_and_are_json(
    server: ServerProcess, path: str, body: bytes, content_type: str, status: int, error_type: str
) -> None:
    answer = ask(server, "POST", path, body, content_type=content_type)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert set(answer.json) == {"error", "error_type", "request_id"}
    assert answer.json["error_type"] == error_type
    assert answer.json["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_stream_null_is_422(server: ServerProcess, path: str) -> None:
    assert ask(server, "POST", path, {"inputs": "a", "stream": None}).status == 422


@pytest.mark.parametrize("content_type", ["", "application/vnd.api+json", "application/json; charset=utf-8"])
def test_json_types_are_read(server: ServerProcess, content_type: str) -> None:
    body = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 1}}).encode()
    assert ask(server, "POST", "/generate", body, content_type=content_type).status == 200


@pytest.mark.parametrize("path", GENERATING)
def test_unknown_fields_are_named(server: ServerProcess, path: str) -> None:
    answer = generate(server, path, unheard_of=1)
    assert (answer.status, answer.headers["x-ignored-parameters"]) == (200, "parameters.unheard_of")


# ---------------------------------------------------------------- parameters

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"best_of": 2}, "best_of"),
    ({"best_of": 4, "do_sample": True}, "best_of"),
    ({"temperature": 0}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 2.01}, "frequency_penalty"),
    ({"frequency_penalty": -2.01}, "frequency_penalty"),
    ({"top_k": 0}, "top_k"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"typical_p": 0}, "typical_p"),
    ({"typical_p": 1.01}, "typical_p"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": 400}, "max_new_tokens"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"truncate": 0}, "truncate"),
    ({"truncate": 301}, "truncate"),
    ({"top_n_tokens": 6}, "top_n_tokens"),
    ({"grammar": {"type": "json"}}, "grammar.value"),
    ({"grammar": {"type": "json_object"}}, "grammar.value"),
    ({"grammar": {"type": "text"}}, "grammar.type"),
    ({"grammar": {"type": "json_schema", "json_schema": {"schema": {}}}}, "grammar.value"),
    ({"grammar": {"type": "regex", "value": "("}}, "grammar"),
]


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize(("parameters", "field"), REFUSED)
def test_out_of_range_is_422_before_any_event(
    server: ServerProcess, path: str, parameters: dict[str, Any], field: str
) -> None:
    answer = generate(server, path, **parameters)
    assert (answer.status, answer.json["error_type"]) == (422, "validation")
    assert answer.json["error"].startswith("Input validation error: ")
    assert f"parameters.{field}" in answer.json["error"] or field == "grammar" in answer.json["error"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_p": 1.0},
        {"typical_p": 1.0},
        {"temperature": 1.0},
        {"do_sample": True},
        {"do_sample": False, "temperature": 0.7},
        {"top_k": 5, "top_p": 0.9, "typical_p": 0.9, "temperature": 0.5, "seed": 0},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.5},
        {"watermark": True},
        {"watermark": True, "do_sample": True, "seed": 3},
        {"truncate": 2},
        {"best_of": 0},
        {"best_of": 1},
        {"return_full_text": None, "seed": None, "grammar": None, "adapter_id": None, "truncate": None},
    ],
)
def test_what_tgi_accepts_and_what_it_should_have(server: ServerProcess, parameters: dict[str, Any]) -> None:
    assert generate(server, **parameters).status == 200


def test_several_answers_have_no_one_seed(server: ServerProcess) -> None:
    answer = generate(server, best_of=2, do_sample=True, seed=1)
    assert answer.status == 422 and "parameters.seed" in answer.json["error"]


def test_an_absent_object_samples_and_an_empty_one_is_greedy(server: ServerProcess) -> None:
    texts = {ask(server, "POST", "/generate", {"inputs": PROMPT}).body for _ in range(4)}
    assert len(texts) > 1
    texts = {ask(server, "POST", "/generate", {"inputs": PROMPT, "parameters": {}}).body for _ in range(2)}
    assert len(texts) == 1


def test_the_prompt_is_in_front_by_route_unless_asked(server: ServerProcess) -> None:
    continuation = generate(server).json["generated_text"]
    for path in ("/", "/invocations"):
        assert generate(server, path).json[0]["generated_text"] == PROMPT + continuation
        assert generate(server, path, return_full_text=False).json[0]["generated_text"] == continuation
    assert generate(server, return_full_text=True).json["generated_text"] == PROMPT + continuation


def test_an_unknown_adapter_is_404_not_the_base_model(server: ServerProcess) -> None:
    answer = generate(server, adapter_id="mine")
    assert (answer.status, answer.json["error_type"]) == (404, "not_found")
    assert "adapter" in answer.json["error"]


# ---------------------------------------------------------------- answers


def test_details(server: ServerProcess) -> None:
    details = generate(server, details=True, top_n_tokens=2).json["details"]
    assert set(details) == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens", "top_tokens"}
    assert (details["finish_reason"], details["generated_tokens"], details["prefill"]) == ("length", 6, [])
    assert details["seed"] is None
    assert all(set(token) == {"id", "text", "logprob", "special"} for token in details["tokens"])
    assert [len(top) for top in details["top_tokens"]] == [2] * 6
    assert "top_tokens" not in generate(server, details=True).json["details"]


def test_prefill_details_imply_details(server: ServerProcess) -> None:
    prefill = generate(server, decoder_input_details=True).json["details"]["prefill"]
    assert prefill[0]["logprob"] is None
    assert all(set(token) == {"id", "text", "logprob"} for token in prefill)
    assert all(token["logprob"] < 0 for token in prefill[1:])
    assert "".join(token["text"] for token in prefill).endswith(PROMPT)


def test_best_of_returns_the_losers_apart(server: ServerProcess) -> None:
    details = generate(server, best_of=3, do_sample=True, details=True).json["details"]
    assert len(details["best_of_sequences"]) == 2
    for loser in details["best_of_sequences"]:
        assert set(loser) == {
            "generated_text",
            "finish_reason",
            "generated_tokens",
            "seed",
            "prefill",
            "tokens",
        }


def test_a_seed_is_reported_and_repeats(server: ServerProcess) -> None:
    replies = [generate(server, do_sample=True, seed=11, details=True).json for _ in range(2)]
    assert replies[0] == replies[1]
    assert replies[0]["details"]["seed"] == 11
    assert isinstance(generate(server, do_sample=True, details=True).json["details"]["seed"], int)


def test_a_stop_string_stays_and_ends_the_text(server: ServerProcess) -> None:
    text = generate(server, max_new_tokens=12).json["generated_text"]
    stop = text[3:6]
    reply = generate(server, max_new_tokens=12, stop=[stop], details=True).json
    assert reply["generated_text"] == text[: text.index(stop) + len(stop)]
    assert reply["details"]["finish_reason"] == "stop_sequence"


def test_an_end_token_is_counted_and_shown_but_is_no_text(server: ServerProcess) -> None:
    reply = generate(server, max_new_tokens=300, details=True).json
    if reply["details"]["finish_reason"] == "eos_token":
        last = reply["details"]["tokens"][-1]
        assert last["special"] and last["text"] not in reply["generated_text"]
    assert reply["details"]["generated_tokens"] == len(reply["details"]["tokens"])


@pytest.mark.parametrize("path", ["/generate", "/", "/invocations"])
def test_headers_of_whole_answers(server: ServerProcess, path: str) -> None:
    headers = generate(server, path).headers
    assert headers["content-type"] == "application/json"
    assert headers["x-compute-type"] == "1-cpu"
    assert headers["x-compute-characters"] == str(len(PROMPT))
    assert headers["x-generated-tokens"] == "6"
    assert int(headers["x-prompt-tokens"]) > 0
    for name in TIMINGS[1:]:
        assert headers[name].isdigit(), name
    assert float(headers["x-compute-time"]) >= 0


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize(
    ("path", "in_body"), [("/generate_stream", False), ("/", True), ("/invocations", True)]
)
def test_streams(server: ServerProcess, path: str, in_body: bool) -> None:
    answer = generate(server, path, stream=in_body, details=True, return_full_text=False)
    assert answer.status == 200
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert answer.headers["x-compute-characters"] == str(len(PROMPT))
    assert not set(TIMINGS) & set(answer.headers)
    assert b"[DONE]" not in answer.body
    events = answer.events
    assert [event["index"] for event in events] == [1, 2, 3, 4, 5, 6]
    for event in events:
        assert set(event) == {"index", "token", "generated_text", "details"}
        assert set(event["token"]) == {"id", "text", "logprob", "special"}
    assert all(event["generated_text"] is None and event["details"] is None for event in events[:-1])
    whole = generate(server).json["generated_text"]
    assert events[-1]["generated_text"] == whole == "".join(event["token"]["text"] for event in events)
    last = events[-1]["details"]
    assert set(last) == {"finish_reason", "generated_tokens", "seed", "input_length"}
    assert (last["finish_reason"], last["generated_tokens"]) == ("length", 6)


def test_streams_without_details_and_with_top_tokens(server: ServerProcess) -> None:
    events = generate(server, "/generate_stream", top_n_tokens=3).events
    assert events[-1]["details"] is None
    assert [len(event["top_tokens"]) for event in events] == [3] * 6


@pytest.mark.parametrize(
    "parameters", [{"best_of": 2, "do_sample": True}, {"best_of": 0}, {"decoder_input_details": True}]
)
def test_what_cannot_be_streamed_is_a_status(server: ServerProcess, parameters: dict[str, Any]) -> None:
    answer = generate(server, "/generate_stream", **parameters)
    assert (answer.status, answer.json["error_type"]) == (422, "validation")


# ---------------------------------------------------------------- limits


def test_token_limits(server: ServerProcess) -> None:
    long = {"inputs": "word " * 2000}
    for path in GENERATING:
        answer = ask(server, "POST", path, long)
        assert answer.status == 422 and "`inputs`" in answer.json["error"]
    cut = ask(server, "POST", "/generate", {**long, "parameters": {"truncate": 10, "max_new_tokens": 2}})
    assert cut.headers["x-prompt-tokens"] == "10"
    assert ask(server, "POST", "/generate", {"inputs": ""}).status == 422


# ---------------------------------------------------------------- grammars


@pytest.mark.parametrize("kind", ["json", "json_object", "text", "json_schema"])
def test_json_grammars(server: ServerProcess, kind: str) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["age"],
        "additionalProperties": False,
    }
    grammar = {
        "json": {"type": "json", "value": schema},
        "json_object": {"type": "json_object", "value": schema},
        "text": {"type": "json", "value": json.dumps(schema)},
        "json_schema": {"type": "json_schema", "value": {"name": "age", "schema": schema}},
    }[kind]
    reply = generate(server, grammar=grammar, max_new_tokens=60, details=True).json
    assert reply["details"]["finish_reason"] == "eos_token"
    assert 1 <= json.loads(reply["generated_text"])["age"] <= 9


def test_regex_grammars(server: ServerProcess) -> None:
    grammar = {"type": "regex", "value": "(19|20)[0-9]{2}-[01][0-9]"}
    text = generate(server, grammar=grammar, max_new_tokens=30).json["generated_text"]
    assert text[:2] in ("19", "20") and text[4] == "-" and len(text) == 7


# ---------------------------------------------------------------- tokens


def test_tokenize(server: ServerProcess) -> None:
    text = "Once é 🙂"
    tokens = ask(server, "POST", "/tokenize", {"inputs": text, "parameters": {"truncate": 1}}).json
    assert all(set(token) == {"id", "text", "start", "stop"} for token in tokens)
    data = text.encode()
    for token in tokens:
        assert data[token["start"] : token["stop"]].decode("utf-8", "replace") == token["text"]
    assert max(token["stop"] for token in tokens) == len(data)


def test_chat_tokenize(server: ServerProcess) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    answer = ask(server, "POST", "/chat_tokenize", body)
    assert answer.status == 200
    assert set(answer.json) == {"tokenize_response", "templated_text"}
    assert "Hello" in answer.json["templated_text"]
    assert answer.json["tokenize_response"]
