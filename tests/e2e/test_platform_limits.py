"""SageMaker's limits against a real server: the time of a call, bodies of batch transform, and those of async inference."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator

import pytest

from local_mode.server_process import ServerProcess
from tests.e2e.conftest import metric, serving, story, wait_until
from tests.e2e.native_calls import ask

DEADLINE_S = 1.0
SLACK_S = 2.0
LARGE_BYTES = 25_000_000
LINES = {"content_type": "application/jsonlines"}


@pytest.fixture(scope="module")
def hurried(server_environment: dict[str, str]) -> Iterator[ServerProcess]:
    with serving(server_environment, UNARY_DEADLINE_S=str(DEADLINE_S)) as server:
        yield server


@pytest.fixture(scope="module")
def usual(server_environment: dict[str, str]) -> Iterator[ServerProcess]:
    with serving(server_environment) as server:
        yield server


def idle(server: ServerProcess) -> bool:
    return metric(server, "textgen_sequences_running") + metric(server, "textgen_sequences_waiting") == 0


def test_the_text_so_far_at_the_deadline(hurried: ServerProcess) -> None:
    body = story(1900)
    body["parameters"] = {**body["parameters"], "details": True}  # type: ignore[dict-item]
    started_s = time.monotonic()
    answer = ask(hurried, "POST", "/invocations", body)
    assert DEADLINE_S * 0.9 < time.monotonic() - started_s < DEADLINE_S + SLACK_S
    assert answer.status == 200
    assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "deadline=reached"
    (reply,) = answer.json
    details = reply["details"]
    assert details["finish_reason"] == "length"
    assert 0 < details["generated_tokens"] == len(details["tokens"]) < 1900
    wait_until(lambda: idle(hurried), limit_s=5.0, what="the engine goes on with a cut answer")

    # What was cut is the beginning of what the same request says in time, without a character that the cut went through.
    count = details["generated_tokens"]
    whole = ask(hurried, "POST", "/generate", story(count))
    assert reply["generated_text"] == f"Once upon a time{whole.json['generated_text']}".removesuffix("\ufffd")


def test_a_chat_at_the_deadline(hurried: ServerProcess) -> None:
    chat = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 1800, "n": 2}
    answer = ask(hurried, "POST", "/invocations", {**chat, "temperature": 1.0, "seed": 1})
    assert answer.status == 200 and "deadline" in answer.headers["x-amzn-sagemaker-custom-attributes"]
    assert [choice["finish_reason"] for choice in answer.json["choices"]] == ["length"] * 2
    assert answer.json["usage"]["completion_tokens"] > 0
    wait_until(lambda: idle(hurried), limit_s=5.0, what="the engine goes on with cut choices")


def test_a_stream_outlives_the_deadline(hurried: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", hurried.port, timeout=60)
    started_s = time.monotonic()
    body = json.dumps({**story(1900), "stream": True})
    connection.request("POST", "/invocations", body, {"content-type": "application/json"})
    response = connection.getresponse()
    while time.monotonic() - started_s < 1.5 * DEADLINE_S:
        event = response.readline().strip()
        assert not event or "token" in json.loads(event.removeprefix(b"data: "))
    connection.close()
    wait_until(lambda: idle(hurried), limit_s=5.0, what="the engine goes on without a reader")


def test_lines_at_the_deadline(hurried: ServerProcess) -> None:
    body = "".join(json.dumps(story(tokens, seed=tokens)) + "\n" for tokens in (2, 1900, 3, 1800)).encode()
    started_s = time.monotonic()
    answer = ask(hurried, "POST", "/invocations", body, **LINES)
    assert time.monotonic() - started_s < DEADLINE_S + SLACK_S
    assert answer.status == 200 and "deadline" in answer.headers["x-amzn-sagemaker-custom-attributes"]
    assert all(json.loads(line)[0]["generated_text"] for line in answer.body.splitlines())
    wait_until(lambda: idle(hurried), limit_s=5.0, what="the engine goes on with cut lines")


def test_lines_are_what_single_requests_are(usual: ServerProcess) -> None:
    bodies = [story(8, seed=seed) for seed in range(40)]
    alone = [ask(usual, "POST", "/invocations", body).body for body in bodies[:5]]
    steps = metric(usual, "textgen_engine_steps")
    lines = "".join(json.dumps(body) + "\n" for body in bodies).encode()
    answer = ask(usual, "POST", "/invocations", lines, **LINES)
    assert answer.headers["content-type"] == "application/jsonlines"
    answers = answer.body.split(b"\n")
    assert len(answers) == 41 and answers[:5] == alone
    # Side by side: one after the other would take 8 steps each.
    assert metric(usual, "textgen_engine_steps") - steps < 40 * 8 / 2


def test_execution_parameters(usual: ServerProcess) -> None:
    parameters = ask(usual, "GET", "/execution-parameters").json
    assert parameters["BatchStrategy"] == "MULTI_RECORD"
    assert parameters["MaxConcurrentTransforms"] * parameters["MaxPayloadInMB"] <= 100


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("field", ["note", "inputs", "messages", "prompt"])
def test_a_body_of_25_mb(usual: ServerProcess, field: str, chunked: bool) -> None:
    text = "Once upon a time " * (LARGE_BYTES // 17)
    bodies = {
        "note": {**story(4), "note": text},
        "inputs": {"inputs": text},
        "messages": {"messages": [{"role": "user", "content": text}]},
        "prompt": {"prompt": text},
    }
    data = json.dumps(bodies[field]).encode()
    pings_s: list[float] = []
    answered = threading.Event()

    def ping() -> None:
        while not answered.is_set():
            began_s = time.monotonic()
            assert ask(usual, "GET", "/ping").status == 200
            pings_s.append(time.monotonic() - began_s)
            answered.wait(0.05)

    pinging = threading.Thread(target=ping)
    pinging.start()
    started_s = time.monotonic()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", usual.port, timeout=60)
        sent = (data[start : start + 100_000] for start in range(0, len(data), 100_000)) if chunked else data
        connection.request(
            "POST", "/invocations", sent, {"content-type": "application/json"}, encode_chunked=chunked
        )
        response = connection.getresponse()
        status, answer = response.status, response.read()
        connection.close()
    finally:
        answered.set()
        pinging.join()
    assert time.monotonic() - started_s < 10.0
    assert pings_s and max(pings_s) < 2.0
    if field == "note":
        assert status == 200, answer
    else:
        assert status in (400, 422) and len(answer) < 1024
        assert b"token" in answer


def test_what_is_larger_than_the_limit_is_refused_before_it_is_read(usual: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", usual.port, timeout=60)
    connection.putrequest("POST", "/invocations")
    connection.putheader("content-length", str(33 * 1024 * 1024))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    connection.close()
