"""Calls of an endpoint, through boto3 and a real connection."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from sagemaker_sdk_ext import (
    BrokenStream,
    ConfigurationError,
    ContainerFailed,
    EndpointError,
    GenerationError,
    NoCapacity,
    Overloaded,
    RequestRefused,
    RetryPolicy,
    TextGenPredictor,
    TruncatedStream,
)
from sagemaker_sdk_ext.session import parse_session_id
from tests.unit.sagemaker_sdk_ext.runtime_server import (
    Answer,
    Runtime,
    model_error,
    refusal,
    serve,
    stream,
    stream_exception,
)
from tests.unit.sagemaker_sdk_ext.streams import HARD_TEXTS, chat_stream, native_stream, pieces_of

FAST = RetryPolicy(first_delay_s=0.001, max_delay_s=0.002)
OVERLOADED = {"error": "Model is overloaded", "error_type": "overloaded", "request_id": "req-9"}
ANSWER = Answer(b'[{"generated_text": "hello"}]', headers={"Content-Type": "application/json"})


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with serve() as found:
        yield found


@pytest.fixture
def predictor(runtime: Runtime) -> TextGenPredictor:
    return TextGenPredictor("ep", client=runtime.client(), retry=FAST)


def test_generate_sends_a_native_body(runtime: Runtime, predictor: TextGenPredictor) -> None:
    runtime.answers = [
        Answer(
            b'[{"generated_text":"hi","details":{"finish_reason":"length","generated_tokens":2}}]',
            headers={"X-Amzn-SageMaker-Custom-Attributes": "deadline"},
        )
    ]
    answer = predictor.generate("Grüße", max_new_tokens=5, details=True, inference_id="call-1")
    assert str(answer) == "hi" and answer.finish_reason == "length" and answer.num_generated_tokens == 2
    assert answer.deadline_reached
    (asked,) = runtime.asked
    assert asked.path == "/endpoints/ep/invocations"
    assert asked.json == {
        "inputs": "Grüße",
        "parameters": {"return_full_text": False, "max_new_tokens": 5, "details": True},
    }
    assert asked.headers["content-type"] == asked.headers["accept"] == "application/json"
    assert asked.headers["x-amzn-sagemaker-inference-id"] == "call-1"


def test_chat_sends_a_chat_body_and_reads_the_message(runtime: Runtime, predictor: TextGenPredictor) -> None:
    message = {"content": None, "reasoning_content": "hm", "tool_calls": [{"id": "1"}]}
    body = {
        "choices": [{"message": message, "finish_reason": "tool_calls"}],
        "usage": {"completion_tokens": 4},
    }
    runtime.answers = [Answer(json.dumps(body).encode())]
    answer = predictor.chat([{"role": "user", "content": "hi"}], max_tokens=9)
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("", "hm", "tool_calls")
    assert answer.tool_calls == ({"id": "1"},) and answer.num_generated_tokens == 4
    assert runtime.asked[0].json == {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}


@pytest.mark.parametrize("text", HARD_TEXTS[:5])
def test_streams_give_the_text_for_odd_parts(
    runtime: Runtime, predictor: TextGenPredictor, text: str
) -> None:
    rng = random.Random(3)
    data = native_stream(pieces_of(text, rng), heartbeat_every=4)
    parts, start = [], 0
    while start < len(data):
        size = rng.randrange(1, 50)
        parts.append(data[start : start + size])
        start += size
    runtime.answers = [stream(parts)]
    events = list(predictor.stream("say", max_new_tokens=50))
    assert "".join(event.text for event in events) == text == events[-1].generated_text
    (asked,) = runtime.asked
    assert asked.path == "/endpoints/ep/invocations-response-stream"
    assert asked.headers["x-amzn-sagemaker-accept"] == "text/event-stream"
    assert asked.json["stream"] is True


def test_stream_text_of_a_chat(runtime: Runtime, predictor: TextGenPredictor) -> None:
    runtime.answers = [stream([chat_stream(["a", "", "b"])])]
    assert list(predictor.stream_text([{"role": "user", "content": "hi"}])) == ["a", "b"]


def test_a_stream_that_the_platform_cuts_raises(runtime: Runtime, predictor: TextGenPredictor) -> None:
    """boto3 itself ends such a stream without an error, wherever in a frame it was cut."""
    parts = [native_stream(["one ", "two"])[:-20]]
    whole = stream([native_stream(["one ", "two"])])
    runtime.answers = [stream(parts), Answer(whole.body[:-9], headers=whole.headers), stream([])]
    with pytest.raises(TruncatedStream) as caught:
        list(predictor.stream("x"))
    assert caught.value.text == "one two"
    for _ in range(2):
        with pytest.raises(TruncatedStream):
            list(predictor.stream("x"))


def test_a_broken_stream_says_so_and_keeps_the_text(runtime: Runtime, predictor: TextGenPredictor) -> None:
    begun = native_stream(["one ", "two"]).partition(b'data: {"index":2')[0]
    runtime.answers = [stream([begun], end=stream_exception("ModelStreamError", "StreamBroken"))]
    with pytest.raises(BrokenStream) as caught:
        list(predictor.stream("x"))
    assert caught.value.code == "ModelStreamError" and caught.value.text == "one "


def test_an_error_within_the_stream(runtime: Runtime, predictor: TextGenPredictor) -> None:
    runtime.answers = [stream([b'data: {"error":"gone","error_type":"generation","request_id":"r"}\n\n'])]
    with pytest.raises(GenerationError, match="gone"):
        list(predictor.stream("x"))


def test_overload_is_tried_again_and_other_refusals_are_not(
    runtime: Runtime, predictor: TextGenPredictor
) -> None:
    runtime.answers = [model_error(429, OVERLOADED), model_error(503, OVERLOADED), ANSWER]
    assert predictor.generate("x").text == "hello"
    assert len(runtime.asked) == 3
    body = {"error": "Input validation error: `top_p`", "error_type": "validation", "request_id": "req-1"}
    runtime.answers = [model_error(422, body)]
    with pytest.raises(RequestRefused) as caught:
        predictor.generate("x", top_p=7)
    error = caught.value
    assert (error.status, error.error, error.error_type) == (422, body["error"], "validation")
    assert error.container_request_id == "req-1" and error.aws_request_id == "aws-1"
    assert error.log_stream_arn and "422" in str(error) and "top_p" in str(error)
    assert len(runtime.asked) == 4


def test_retries_are_bounded_by_number_and_time(runtime: Runtime) -> None:
    runtime.answers = [model_error(429, OVERLOADED)] * 9
    twice = TextGenPredictor(
        "ep", client=runtime.client(), retry=RetryPolicy(max_attempts=2, first_delay_s=0.001)
    )
    with pytest.raises(Overloaded) as caught:
        twice.generate("x")
    assert len(runtime.asked) == 2 and caught.value.retry_after_s is None
    runtime.answers = [model_error(429, OVERLOADED | {"retry_after_s": 30})] * 9
    short = TextGenPredictor("ep", client=runtime.client(), retry=RetryPolicy(max_elapsed_s=5))
    with pytest.raises(Overloaded) as caught:
        short.generate("x")
    assert len(runtime.asked) == 3 and caught.value.retry_after_s == 30


def test_streams_are_tried_again_before_they_begin(runtime: Runtime, predictor: TextGenPredictor) -> None:
    openai_body = {"error": {"message": "busy", "code": "rate_limit_exceeded", "type": "rate_limit_error"}}
    runtime.answers = [model_error(429, openai_body), stream([chat_stream(["ok"])])]
    assert list(predictor.stream_text([{"role": "user", "content": "x"}])) == ["ok"]


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (model_error(500, "<html>"), ContainerFailed, "500"),
        (model_error(0, "Your invocation timed out"), ContainerFailed, "did not answer"),
        (refusal("ValidationError", "Endpoint ep of account 1 not found."), RequestRefused, "not found"),
        (
            refusal("ValidationError", "Inference Component Name header is required"),
            RequestRefused,
            "component_name=",
        ),
        (refusal("ValidationError", "Inference Component x not found."), RequestRefused, "not found.$"),
        (refusal("ValidationError", "There is no capacity for the component"), NoCapacity, "capacity"),
        (refusal("InternalFailure", "oops", 500), EndpointError, "oops"),
    ],
)
def test_errors_have_their_class(
    runtime: Runtime, predictor: TextGenPredictor, answer: Answer, expected: type, words: str
) -> None:
    runtime.answers = [answer]
    with pytest.raises(EndpointError, match=words) as caught:
        predictor.generate("x")
    assert type(caught.value) is expected
    assert len(runtime.asked) == 1, "the client itself must not send a generation again"


def test_no_endpoint_there(runtime: Runtime) -> None:
    client = TextGenPredictor("ep", endpoint_url="http://127.0.0.1:9", region="eu-west-1", client=None)
    client._client = type(runtime)(url="http://127.0.0.1:9").client()
    with pytest.raises(EndpointError, match="could not be called"):
        client.generate("x")


def test_wrong_arguments_are_refused_here(predictor: TextGenPredictor) -> None:
    with pytest.raises(ConfigurationError, match="prompt = ''"):
        predictor.generate("")
    with pytest.raises(ConfigurationError, match="role"):
        predictor.chat({"role": "user"})  # type: ignore[arg-type]


def test_adapters_and_components_are_addressed(runtime: Runtime) -> None:
    base = TextGenPredictor("ep", component_name="base", client=runtime.client(), retry=FAST)
    runtime.answers = [ANSWER, ANSWER, ANSWER]
    base.generate("x")
    base.with_adapter("adapter-1").generate("x")
    base.with_adapter("s3://bucket/adapter.tar.gz").generate("x")
    names = [asked.headers["x-amzn-sagemaker-inference-component"] for asked in runtime.asked]
    assert names == ["base", "adapter-1", "base"]
    assert runtime.asked[2].headers["x-amzn-sagemaker-target-model"] == "s3://bucket/adapter.tar.gz"


@pytest.mark.parametrize("header", ["X-Amzn-SageMaker-New-Session-Id", "X-Amzn-SageMaker-Session-Id"])
def test_sessions(runtime: Runtime, predictor: TextGenPredictor, header: str) -> None:
    opened = Answer(b"ok", headers={header: "abc-1; Expires=2030-01-31T12:00:00Z"})
    closed = Answer(b"ok", headers={"X-Amzn-SageMaker-Closed-Session-Id": "abc-1"})
    runtime.answers = [opened, ANSWER, stream([native_stream(["a"])]), closed]
    with predictor.session() as session:
        assert session.session_id == "abc-1"
        assert session.expires == datetime(2030, 1, 31, 12, tzinfo=UTC)
        assert session.generate("x").text == "hello"
        assert list(session.stream_text("y")) == ["a"]
    ids = [asked.headers["x-amzn-sagemaker-session-id"] for asked in runtime.asked]
    assert ids == ["NEW_SESSION", "abc-1", "abc-1", "abc-1"]
    assert runtime.asked[0].json == {"requestType": "NEW_SESSION"}
    assert runtime.asked[3].json == {"requestType": "CLOSE"}
    session.close()
    assert len(runtime.asked) == 4
    runtime.answers = [ANSWER]
    predictor.generate("x")
    assert "x-amzn-sagemaker-session-id" not in runtime.asked[-1].headers


def test_a_session_that_ended_by_itself_is_closed_without_an_error(
    runtime: Runtime, predictor: TextGenPredictor
) -> None:
    opened = Answer(b"ok", headers={"X-Amzn-SageMaker-New-Session-Id": "abc-1"})
    gone = {"error": "session not found", "error_type": "validation", "request_id": "r"}
    runtime.answers = [opened, model_error(400, gone)]
    with predictor.session() as session:
        pass
    assert session.closed


def test_a_failed_close_neither_hides_what_happened_nor_counts(
    runtime: Runtime, predictor: TextGenPredictor
) -> None:
    opened = Answer(b"ok", headers={"X-Amzn-SageMaker-New-Session-Id": "abc-1"})
    broken = model_error(500, {"error": "the engine failed"})
    runtime.answers = [opened, broken, broken, Answer(b"ok")]
    with pytest.raises(KeyError, match="mine"), predictor.session() as session:
        raise KeyError("mine")
    with pytest.raises(ContainerFailed):
        session.close()
    session.close()
    assert session.closed and len(runtime.asked) == 4


def test_closing_a_stream_that_was_not_read_ends_its_connection(
    runtime: Runtime, predictor: TextGenPredictor
) -> None:
    answers: list[dict[str, Any]] = []
    send = predictor.client.invoke_endpoint_with_response_stream

    def keep(**request: Any) -> dict[str, Any]:
        answers.append(send(**request))
        return answers[-1]

    predictor.client.invoke_endpoint_with_response_stream = keep
    for read in (predictor.stream, predictor.stream_text):
        runtime.answers = [stream([native_stream(["a"])])]
        events = read("x")
        events.close()
        events.close()
        assert answers[-1]["Body"]._raw_stream.closed and list(events) == []


def test_session_ids_are_parsed_leniently() -> None:
    assert parse_session_id("plain") == ("plain", None)
    assert parse_session_id("a; Expires=tomorrow") == ("a", None)
    assert parse_session_id("a;expires=2030-01-01T00:00:00") == ("a", datetime(2030, 1, 1, tzinfo=UTC))


def test_a_server_without_sessions_is_named(runtime: Runtime, predictor: TextGenPredictor) -> None:
    runtime.answers = [ANSWER]
    with pytest.raises(GenerationError, match="names no session"):
        predictor.session()


def test_predict_passes_any_body(runtime: Runtime, predictor: TextGenPredictor) -> None:
    runtime.answers = [ANSWER]
    assert predictor.predict({"inputs": "x"}, {"SessionId": "s"}) == [{"generated_text": "hello"}]
    assert runtime.asked[0].headers["x-amzn-sagemaker-session-id"] == "s"


def test_clients_wait_long_and_never_repeat(predictor: TextGenPredictor) -> None:
    config = predictor.client.meta.config
    assert config.read_timeout >= 70 and config.tcp_keepalive
    assert config.retries["total_max_attempts"] == 1


def test_a_session_s_client_is_replaced_by_one_that_does_not_repeat(runtime: Runtime) -> None:
    import boto3

    session = boto3.session.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name="eu-west-1"
    )

    class SdkSession:
        boto_session = session
        sagemaker_runtime_client = session.client("sagemaker-runtime", endpoint_url=runtime.url)

    runtime.answers = [model_error(400, {"error": "no"})]
    predictor = TextGenPredictor.attach("ep", sagemaker_session=SdkSession())
    with pytest.raises(RequestRefused):
        predictor.generate("x")
    assert predictor.client is not SdkSession.sagemaker_runtime_client
    SdkSession.sagemaker_runtime_client = runtime.client()
    assert TextGenPredictor("ep", SdkSession()).client is SdkSession.sagemaker_runtime_client
