"""InvokeEndpoint with boto3: what the container sees, what the client gets, and every way to fail."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError

from local_mode.runtime import RuntimeClocks
from tests.integration.local_mode.runtime_rig import LOG_ARN, PATIENT, Received, running

CONSOLE = (
    "See https://us-east-1.console.aws.amazon.com/cloudwatch/home?region=us-east-1"
    "#logEventViewer:group=/aws/sagemaker/Endpoints/chat in account 123456789012 for more information."
)


def model_error(client: Any, **call: Any) -> Any:
    with pytest.raises(client.exceptions.ModelError) as caught:
        client.invoke_endpoint(**{"EndpointName": "chat", "Body": b"{}"} | call)
    answer = caught.value.response
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert answer["LogStreamArn"] == LOG_ARN
    assert len(answer["Error"]["Message"]) <= 2048
    return answer


def test_container_sees_the_known_headers_and_no_others() -> None:
    with running() as rig:
        rig.client().invoke_endpoint(
            EndpointName="chat",
            Body=b'{"inputs":"x"}',
            ContentType="application/json",
            Accept="application/json;q=1",
            CustomAttributes="route=chat",
            TargetModel="m.tar.gz",
            TargetVariant="AllTraffic",
            TargetContainerHostname="primary",
            InferenceId="id 7",
            InferenceComponentName="base",
            SessionId="abc-1",
            PrefixAwareId="p",
            EnableExplanations="`true`",
        )
        (request,) = rig.stand_in.requests
        assert request.target == "/invocations"
        assert request.body == b'{"inputs":"x"}'
        assert dict(request.headers) == {
            "Host": "model.aws.local:8080",
            "User-Agent": "AHC/2.0",
            "Content-Type": "application/json",
            "Accept": "application/json;q=1",
            "X-Amzn-SageMaker-Custom-Attributes": "route=chat",
            "X-Amzn-SageMaker-Target-Model": "m.tar.gz",
            "X-Amzn-SageMaker-Target-Variant": "AllTraffic",
            "X-Amzn-SageMaker-Target-Container-Hostname": "primary",
            "X-Amzn-SageMaker-Inference-Id": "id 7",
            "X-Amzn-SageMaker-Inference-Component": "base",
            "X-Amzn-SageMaker-Session-Id": "abc-1",
            "X-Amzn-SageMaker-Prefix-Aware-Id": "p",
            "X-Amzn-SageMaker-Enable-Explanations": "`true`",
            "Content-Length": "14",
        }
        assert rig.routing.asked == [
            {"variant": "AllTraffic", "component": "base", "hostname": "primary", "session_id": "abc-1"}
        ]


def test_absent_headers_stay_absent() -> None:
    with running() as rig:
        rig.client().invoke_endpoint(EndpointName="chat", Body=b"x")
        (request,) = rig.stand_in.requests
        assert [name for name, _ in request.headers] == ["Host", "User-Agent", "Content-Length"]


def test_adapter_of_the_target_is_named_to_the_container() -> None:
    with running() as rig:
        rig.routing.adapter = "my-adapter"
        rig.client().invoke_endpoint(EndpointName="chat", InferenceComponentName="my-adapter", Body=b"x")
        assert ("X-Amzn-SageMaker-Adapter-Identifier", "my-adapter") in rig.stand_in.requests[0].headers


def test_client_gets_content_type_attributes_and_variant_and_nothing_else() -> None:
    async def script(request: Received) -> None:
        headers = (("Content-Type", "text/x"), ("X-Amzn-SageMaker-Custom-Attributes", "a=1"), ("X-Own", "1"))
        await request.reply(201, b"\x00\xffanswer", headers=headers)

    with running(script) as rig:
        answer = rig.client().invoke_endpoint(EndpointName="chat", Body=b"x")
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert (answer["ContentType"], answer["CustomAttributes"]) == ("text/x", "a=1")
        assert answer["InvokedProductionVariant"] == "AllTraffic"
        assert answer["Body"].read() == b"\x00\xffanswer"
        assert answer["ResponseMetadata"]["RequestId"]
        assert "x-own" not in answer["ResponseMetadata"]["HTTPHeaders"]


def test_headers_that_are_not_ascii_are_passed_on_as_they_are() -> None:
    async def script(request: Received) -> None:
        await request.reply(200, b"{}", headers=(("X-Amzn-SageMaker-Custom-Attributes", "日本"),))

    with running(script) as rig:
        answer = rig.client().invoke_endpoint(EndpointName="chat", Body=b"x")
        assert answer["CustomAttributes"].encode("latin-1") == "日本".encode()


def test_chunked_answer_is_collected() -> None:
    async def script(request: Received) -> None:
        await request.start_chunked()
        for chunk in (b"data: 1\n\n", b"data: 2\n\n", b""):
            await request.chunk(chunk)

    with running(script) as rig:
        answer = rig.client().invoke_endpoint(EndpointName="chat", Body=b'{"stream":true}')
        assert answer["Body"].read() == b"data: 1\n\ndata: 2\n\n"
        assert answer["ContentType"] == "text/event-stream"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "client", "CLIENT_ERROR_FROM_MODEL"),
        (429, "client", "CLIENT_ERROR_FROM_MODEL"),
        (500, "server", "SERVER_ERROR_FROM_MODEL"),
        (503, "server", "SERVER_ERROR_FROM_MODEL"),
    ],
)
def test_error_of_the_container_is_a_model_error(status: int, kind: str, code: str) -> None:
    said = '{"error":"too “long”","error_type":"validation"}'

    async def script(request: Received) -> None:
        await request.reply(status, said.encode())

    with running(script) as rig:
        answer = model_error(rig.client())
        assert answer["Error"]["Message"] == (
            f'Received {kind} error ({status}) from primary with message "{said}". {CONSOLE}'
        )
        assert (answer["OriginalStatusCode"], answer["OriginalMessage"]) == (status, said)
        raw = httpx.post(f"{rig.url}/endpoints/chat/invocations", content=b"{}")
        assert raw.headers["x-amzn-errortype"] == "ModelError"
        assert raw.headers["x-amzn-requestid"]
        assert raw.json()["ErrorCode"] == code


@pytest.mark.parametrize("body", [b"x" * 5000, b"\xff\xfe\x00", b"a\x00b"])
def test_large_and_binary_errors_are_not_quoted(body: bytes) -> None:
    async def script(request: Received) -> None:
        await request.reply(500, body)

    with running(script) as rig:
        answer = model_error(rig.client())
        assert answer["Error"]["Message"] == (
            f"Received server error (500) from primary and could not load the entire response body. {CONSOLE}"
        )
        assert "OriginalMessage" not in answer


def test_no_answer_in_time() -> None:
    async def script(request: Received) -> None:
        await rig.stand_in.until_gone(request)

    with running(script, clocks=replace(PATIENT, unary_s=1.0)) as rig:
        answer = model_error(rig.client())
        assert (
            "Your invocation timed out while waiting for a response from container primary."
            in (answer["OriginalMessage"])
        )
        assert answer["OriginalStatusCode"] == 0
        assert "Received server error (0) from primary" in answer["Error"]["Message"]
        assert rig.stand_in.gone.wait(5)


def test_an_answer_that_is_not_complete_in_time_is_none() -> None:
    async def script(request: Received) -> None:
        await request.start_chunked()
        await request.chunk(b"first")
        await rig.stand_in.until_gone(request)

    with running(script, clocks=replace(PATIENT, unary_s=1.0)) as rig:
        assert "timed out" in model_error(rig.client())["OriginalMessage"]


async def close_at_once(request: Received) -> None:
    request.close()


async def close_in_body(request: Received) -> None:
    await request.start_chunked()
    await request.chunk(b"first")
    request.close()


async def speak_no_http(request: Received) -> None:
    request.writer.write(b"hello\r\n\r\n")
    request.close()


@pytest.mark.parametrize("script", [close_at_once, close_in_body, speak_no_http])
def test_connection_closed_without_an_answer(script: Any) -> None:
    with running(script) as rig:
        answer = model_error(rig.client())
        assert answer["OriginalStatusCode"] == 0
        assert "The connection was closed" in answer["OriginalMessage"]
        assert len(rig.stand_in.requests) == 1


def test_refused_connection() -> None:
    with running() as rig, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        rig.stand_in.base_url = f"http://127.0.0.1:{port}"
        assert "refused" in model_error(rig.client())["OriginalMessage"]


def test_connection_that_is_not_accepted_in_time() -> None:
    with (
        running(clocks=RuntimeClocks(accept_s=0.1)) as rig,
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        # One connection fills the queue of a listener without backlog; the next is not answered.
        rig.stand_in.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert "not accepted in time" in model_error(rig.client())["OriginalMessage"]


def test_kept_connection_that_the_container_closes_gives_no_error() -> None:
    async def script(request: Received) -> None:
        await request.reply(body=b"ok")
        request.close()

    with running(script) as rig:
        client = rig.client()
        for _ in range(30):
            assert client.invoke_endpoint(EndpointName="chat", Body=b"x")["Body"].read() == b"ok"


def test_request_that_finds_its_kept_connection_closing_is_sent_on_a_new_one() -> None:
    async def script(request: Received) -> None:
        if request.connection == 1 and len(rig.stand_in.requests) == 2:
            request.close()
        else:
            await request.reply(body=b"ok")

    with running(script) as rig:
        client = rig.client()
        for _ in range(2):
            assert client.invoke_endpoint(EndpointName="chat", Body=b"x")["Body"].read() == b"ok"
        assert [request.connection for request in rig.stand_in.requests] == [1, 1, 2]


def test_connections_are_kept() -> None:
    with running() as rig:
        client = rig.client()
        for _ in range(5):
            client.invoke_endpoint(EndpointName="chat", Body=b"x")
        assert rig.stand_in.num_connections == 1


def test_client_that_goes_takes_the_containers_connection_along() -> None:
    async def script(request: Received) -> None:
        await rig.stand_in.until_gone(request)

    with running(script) as rig:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{rig.url}/endpoints/chat/invocations", content=b"x", timeout=1.0)
        assert rig.stand_in.gone.wait(5)


def test_unknown_endpoint() -> None:
    with running() as rig:
        client = rig.client()
        with pytest.raises(client.exceptions.ValidationError, match="Endpoint other of account"):
            client.invoke_endpoint(EndpointName="other", Body=b"x")


def test_body_limit() -> None:
    with running() as rig:
        client = rig.client()
        body = b"x" * 6_291_456
        assert client.invoke_endpoint(EndpointName="chat", Body=body)["Body"].read() == body
        with pytest.raises(ClientError, match="HTTP content length exceeded 6291456 bytes") as caught:
            client.invoke_endpoint(EndpointName="chat", Body=body + b"x")
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    with running(body_limit_bytes=26_214_400) as rig:
        body = b"x" * 26_214_400
        assert len(rig.client().invoke_endpoint(EndpointName="chat", Body=body)["Body"].read()) == len(body)


def test_answer_over_the_limit() -> None:
    async def script(request: Received) -> None:
        await request.reply(body=b"x" * 2000)

    with running(script, body_limit_bytes=1000) as rig:
        answer = model_error(rig.client())
        assert "more than 1000 bytes" in answer["Error"]["Message"]
        assert answer["OriginalStatusCode"] == 200


@pytest.mark.parametrize(
    ("header", "value", "member"),
    [
        ("X-Amzn-SageMaker-Custom-Attributes", "x" * 1025, "customAttributes"),
        ("X-Amzn-SageMaker-Inference-Id", "x" * 65, "inferenceId"),
        ("X-Amzn-SageMaker-Session-Id", "../../etc", "sessionId"),
        ("X-Amzn-SageMaker-Target-Variant", "-x", "targetVariant"),
    ],
)
def test_header_that_breaks_the_service_model(header: str, value: str, member: str) -> None:
    with running() as rig:
        answer = httpx.post(f"{rig.url}/endpoints/chat/invocations", content=b"x", headers={header: value})
        assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (400, "ValidationError")
        assert f"at '{member}' failed to satisfy constraint" in answer.json()["Message"]


@pytest.mark.parametrize("spelling", ["X-Amzn-SageMaker-New-Session-Id", "X-Amzn-SageMaker-Session-Id"])
def test_session_is_opened_used_and_closed(spelling: str) -> None:
    opened = "s-1; Expires=2026-01-02T03:04:05Z"

    async def script(request: Received) -> None:
        kind = json.loads(request.body).get("requestType")
        headers = {
            "NEW_SESSION": ((spelling, opened),),
            "CLOSE": (("X-Amzn-SageMaker-Closed-Session-Id", "s-1"),),
            None: (("X-Amzn-SageMaker-Session-Id", opened),),
        }
        await request.reply(body=b"ok", headers=headers[kind])

    with running(script) as rig:
        client = rig.client()
        answer = client.invoke_endpoint(
            EndpointName="chat", SessionId="NEW_SESSION", Body=b'{"requestType":"NEW_SESSION"}'
        )
        assert answer["NewSessionId"] == opened
        answer = client.invoke_endpoint(EndpointName="chat", SessionId="s-1", Body=b"{}")
        assert "NewSessionId" not in answer
        answer = client.invoke_endpoint(EndpointName="chat", SessionId="s-1", Body=b'{"requestType":"CLOSE"}')
        assert answer["ClosedSessionId"] == "s-1"
        assert [asked["session_id"] for asked in rig.routing.asked] == [None, "s-1", "s-1"]
        assert (rig.routing.opened, rig.routing.closed) == (["s-1"], ["s-1"])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/inference-routers/r/invocations", "Inference routers are not emulated"),
        ("/endpoints/chat/invocations-bidirectional-stream", "HTTP/2"),
    ],
)
def test_what_is_not_emulated_says_so(path: str, text: str) -> None:
    with running() as rig:
        answer = httpx.post(rig.url + path, content=b"x")
        assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (400, "ValidationError")
        assert text in answer.json()["Message"]
