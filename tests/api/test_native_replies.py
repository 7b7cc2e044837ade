"""Shapes, headers and events of the native routes, and what a client sees of errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.config import HttpConfig
from serving.messages import SequenceOutput
from tests.api.conftest import Front, FrontFactory
from tests.api.fake_engine import FakeStream


def token(text: str, logprob: float = -0.25) -> dict[str, Any]:
    return {"id": ord(text), "text": text, "logprob": logprob, "special": False}


EOS_TOKEN = {"id": 256, "text": "</s>", "logprob": -0.25, "special": True}


def hi_with_eos(stream: FakeStream) -> None:
    stream.accept()
    stream.tokens("h")
    stream.tokens("i")
    stream.tokens("$", "eos_token", queue_s=0.25, inference_s=1.5, seed=stream.request.params.seed)


def events_of(front: Front, body: dict[str, Any], path: str = "/generate_stream") -> list[Any]:
    response = front.client.post(path, json=body)
    assert response.status_code == 200, response.get_data(as_text=True)
    text = response.get_data(as_text=True)
    assert text.endswith("\n\n")
    events = text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_object_or_array(new_front: FrontFactory) -> None:
    front = new_front(hi_with_eos)
    assert front.client.post("/generate", json={"inputs": "a"}).json == {"generated_text": "hi"}
    for path in ("/", "/invocations"):
        assert front.client.post(path, json={"inputs": "a"}).json == [{"generated_text": "ahi"}]
        body = {"inputs": "a", "parameters": {"return_full_text": False}}
        assert front.client.post(path, json=body).json == [{"generated_text": "hi"}]
    body = {"inputs": "a", "parameters": {"return_full_text": True}}
    assert front.client.post("/generate", json=body).json == {"generated_text": "ahi"}
    assert len(front.engine.closed_streams) == 6
    assert front.engine.aborted == []


def test_full_text_is_the_untruncated_input(new_front: FrontFactory) -> None:
    front = new_front(hi_with_eos)
    body = {"inputs": "abcdef", "parameters": {"truncate": 2, "return_full_text": True}}
    assert front.client.post("/generate", json=body).json == {"generated_text": "abcdefhi"}


def test_details(new_front: FrontFactory) -> None:
    front = new_front(hi_with_eos)
    body = {"inputs": "a", "parameters": {"details": True}}
    answer = front.client.post("/generate", json=body).json
    assert answer == {
        "generated_text": "hi",
        "details": {
            "finish_reason": "eos_token",
            "generated_tokens": 3,
            "seed": None,
            "prefill": [],
            "tokens": [token("h"), token("i"), EOS_TOKEN],
        },
    }
    body = {"inputs": "a", "parameters": {"details": True, "do_sample": True, "seed": 7}}
    assert front.client.post("/generate", json=body).json["details"]["seed"] == 7


def test_a_chosen_seed_is_reported(new_front: FrontFactory) -> None:
    front = new_front(hi_with_eos)
    body = {"inputs": "a", "parameters": {"details": True, "do_sample": True}}
    answer = front.client.post("/generate", json=body).json
    assert answer["details"]["seed"] == front.engine.requests[0].params.seed


def test_top_tokens(new_front: FrontFactory) -> None:
    front = new_front(hi_with_eos)
    body = {"inputs": "a", "parameters": {"details": True, "top_n_tokens": 2}}
    details = front.client.post("/generate", json=body).json["details"]
    assert details["top_tokens"][0] == [token("h", -0.5), token("h", -1.0)]
    assert len(details["top_tokens"]) == 3
    body["parameters"] = {"details": True, "top_n_tokens": 0}
    assert "top_tokens" not in front.client.post("/generate", json=body).json["details"]


def test_prefill_implies_details(new_front: FrontFactory) -> None:
    def script(stream: FakeStream) -> None:
        assert stream.request.params.prompt_logprobs
        stream.accept()
        stream.tokens("x", "length", prompt_logprobs=[None, -0.5])

    answer = new_front(script).client.post(
        "/generate", json={"inputs": "ab", "parameters": {"decoder_input_details": True}}
    )
    assert answer.json["details"]["prefill"] == [
        {"id": 97, "text": "a", "logprob": None},
        {"id": 98, "text": "b", "logprob": -0.5},
    ]


def test_numbers_that_json_lacks_are_null(new_front: FrontFactory) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        output = SequenceOutput(
            request_id=stream.request.request_id,
            token_ids=[97],
            logprobs=[float("-inf")],
            finish_reason="length",
        )
        stream.put(output)

    answer = new_front(script).client.post("/generate", json={"inputs": "a", "parameters": {"details": True}})
    assert answer.json["details"]["tokens"][0]["logprob"] is None


def best_of_script(stream: FakeStream) -> None:
    stream.accept()
    stream.tokens("a", seed=11)
    stream.tokens("b", seed=12, index=1)
    stream.put(
        SequenceOutput(
            request_id=stream.request.request_id,
            index=1,
            token_ids=[99],
            logprobs=[-0.01],
            finish_reason="length",
        )
    )
    stream.tokens("d", "length")


def test_best_of_returns_the_likeliest_and_the_losers(new_front: FrontFactory) -> None:
    front = new_front(best_of_script)
    body = {"inputs": "x", "parameters": {"best_of": 2, "do_sample": True, "details": True}}
    answer = front.client.post("/generate", json=body).json
    details = answer["details"]
    assert answer["generated_text"] == "bc"
    assert details["seed"] == 12
    assert details["tokens"] == [token("b"), token("c", -0.01)]
    assert details["best_of_sequences"] == [
        {
            "generated_text": "ad",
            "finish_reason": "length",
            "generated_tokens": 2,
            "seed": 11,
            "prefill": [],
            "tokens": [token("a"), token("d")],
        }
    ]


def test_stop_string_of_one_sequence_aborts_only_that(new_front: FrontFactory) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("a!")
        stream.tokens("late")
        stream.tokens("bc", "length", index=1)

    front = new_front(script)
    parameters = {"best_of": 2, "do_sample": True, "stop": ["!"], "details": True}
    answer = front.client.post("/generate", json={"inputs": "x", "parameters": parameters}).json
    texts = {answer["generated_text"], answer["details"]["best_of_sequences"][0]["generated_text"]}
    assert texts == {"a!", "bc"}
    assert ("fake-1", 0) in front.engine.aborted


def test_stop_string_ends_the_text_and_frees_the_engine(new_front: FrontFactory) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        for letter in "one two three":
            stream.tokens(letter)

    front = new_front(script)
    body = {"inputs": "x", "parameters": {"stop": ["two"], "details": True}}
    answer = front.client.post("/generate", json=body).json
    assert answer["generated_text"] == "one two"
    assert (answer["details"]["finish_reason"], answer["details"]["generated_tokens"]) == ("stop_sequence", 7)
    assert front.engine.aborted == [("fake-1", None)]


def test_headers(new_front: FrontFactory) -> None:
    response = new_front(hi_with_eos).client.post("/generate", json={"inputs": "añb"})
    headers = response.headers
    assert headers["content-type"] == "application/json"
    assert headers["x-compute-type"] == "1-cpu"
    assert headers["x-compute-characters"] == "3"
    assert headers["x-prompt-tokens"] == "4"
    assert headers["x-generated-tokens"] == "3"
    assert (headers["x-queue-time"], headers["x-inference-time"]) == ("250", "1500")
    assert headers["x-time-per-token"] == "500"
    assert 0 < float(headers["x-compute-time"]) < 10
    assert headers["x-total-time"].isdecimal() and headers["x-validation-time"].isdecimal()


def test_events(new_front: FrontFactory) -> None:
    front = new_front(hi_with_eos)
    body = {"inputs": "a", "parameters": {"details": True, "do_sample": True, "seed": 3}}
    assert events_of(front, body) == [
        {"index": 1, "token": token("h"), "generated_text": None, "details": None},
        {"index": 2, "token": token("i"), "generated_text": None, "details": None},
        {
            "index": 3,
            "token": EOS_TOKEN,
            "generated_text": "hi",
            "details": {"finish_reason": "eos_token", "generated_tokens": 3, "seed": 3, "input_length": 1},
        },
    ]


def test_event_bytes_are_tgis(new_front: FrontFactory) -> None:
    response = new_front(hi_with_eos).client.post("/generate_stream", json={"inputs": "a"})
    assert response.data.split(b"\n\n")[0] == (
        b'data: {"index":1,"token":{"id":104,"text":"h","logprob":-0.25,"special":false},'
        b'"generated_text":null,"details":null}'
    )
    headers = response.headers
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert (headers["x-compute-type"], headers["x-compute-characters"]) == ("1-cpu", "1")
    assert "x-compute-time" not in headers


def test_streams_of_the_other_routes(new_front: FrontFactory) -> None:
    front = new_front(hi_with_eos)
    for path in ("/", "/invocations"):
        last = events_of(front, {"inputs": "a", "stream": True}, path)[-1]
        assert (last["generated_text"], last["details"]) == ("ahi", None)
    last = events_of(front, {"inputs": "a", "parameters": {"return_full_text": True}})[-1]
    assert last["generated_text"] == "ahi"


def test_several_tokens_at_once_are_several_events(new_front: FrontFactory) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("abc")
        stream.tokens("de", "length")

    events = events_of(new_front(script), {"inputs": "x", "parameters": {"top_n_tokens": 1}})
    assert [event["index"] for event in events] == [1, 2, 3, 4, 5]
    assert [event["token"]["text"] for event in events] == list("abcde")
    assert events[0]["top_tokens"] == [token("a", -0.5)]
    assert [event["generated_text"] for event in events] == [None] * 4 + ["abcde"]


def test_stop_inside_a_stream(new_front: FrontFactory) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("ab!cd")

    front = new_front(script)
    events = events_of(front, {"inputs": "x", "parameters": {"stop": ["b!"], "details": True}})
    assert [event["token"]["text"] for event in events] == list("ab!")
    assert events[-1]["generated_text"] == "ab!"
    assert events[-1]["details"]["finish_reason"] == "stop_sequence"
    assert front.engine.aborted == [("fake-1", None)]


def test_characters_of_several_tokens_come_with_the_last(new_front: FrontFactory) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        for byte in "é".encode():
            stream.tokens(chr(byte))
        stream.tokens("!", "length")

    events = events_of(new_front(script), {"inputs": "x"})
    assert [event["token"]["text"] for event in events] == ["", "é", "!"]


def test_keep_alive_comments(new_front: FrontFactory) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()

    front = new_front(script, http=HttpConfig(heartbeat_s=0.3))
    response = front.client.post("/generate_stream", json={"inputs": "a"}, buffered=False)
    chunks = iter(response.response)
    assert next(chunks) == b""
    assert next(chunks) == b":\n\n"
    front.engine.streams[0].tokens("a", "length")
    assert next(chunks).startswith(b'data: {"index":1')
    response.close()


def test_one_log_line_per_request_without_text(
    new_front: FrontFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    front = new_front(hi_with_eos)
    headers = {"X-Amzn-SageMaker-Inference-Id": "id-7"}
    body = {"inputs": "canary", "parameters": {"do_sample": True, "seed": 5, "foo": 1}}
    front.client.post("/generate", json=body, headers=headers)
    events_of(front, {"inputs": "canary"})
    front.error({"inputs": "canary", "parameters": {"top_k": 0}})
    lines = [vars(record) for record in caplog.records if record.message == "request"]
    assert [line["status"] for line in lines] == [200, 200, 422]
    whole, _, refused = lines
    assert whole["engine_request_id"] == "fake-1"
    assert (whole["input_tokens"], whole["generated_tokens"]) == (6, 3)
    assert (whole["seed"], whole["finish_reason"], whole["inference_id"]) == (5, "eos_token", "id-7")
    assert whole["ignored_parameters"] == "parameters.foo"
    assert (refused["error_type"], refused["route"]) == ("validation", "/generate")
    assert "canary" not in caplog.text
