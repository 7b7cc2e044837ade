"""boto3 as it is: resources, waiters, unary and streamed invocations, error mapping, sessions."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, WaiterError

from tests.sagemaker.conftest import (
    IMAGE,
    REGION,
    Aws,
    Endpoint,
    create_config,
    create_endpoint,
    delete_endpoint,
    wait_in_service,
)

IN_SERVICE_LIMIT_S = 15.0
GREEDY = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 12}}
CHAT = {"messages": [{"role": "user", "content": "Tell me a story 🦊"}], "max_tokens": 12}


@pytest.fixture(scope="module")
def endpoint(aws: Aws) -> Iterator[Endpoint]:
    made = create_endpoint(aws, "shared", container={"ContainerHostname": "primary"})
    wait_in_service(aws, made.name)
    in_service_s = time.monotonic() - made.started_s
    assert in_service_s < IN_SERVICE_LIMIT_S, f"CreateEndpoint to InService took {in_service_s:.1f} s"
    yield made
    delete_endpoint(aws, made.name)


def invoke(aws: Aws, endpoint: str, body: Any, **arguments: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    arguments.setdefault("ContentType", "application/json")
    return aws.client("sagemaker-runtime").invoke_endpoint(EndpointName=endpoint, Body=content, **arguments)


def stream(aws: Aws, endpoint: str, body: Any, **arguments: Any) -> tuple[Any, list[bytes]]:
    reply = aws.client("sagemaker-runtime").invoke_endpoint_with_response_stream(
        EndpointName=endpoint, Body=json.dumps(body), ContentType="application/json", **arguments
    )
    return reply, [event["PayloadPart"]["Bytes"] for event in reply["Body"]]


def sse_events(parts: list[bytes]) -> list[Any]:
    lines = b"".join(parts).decode().splitlines()
    data = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    return [json.loads(text) for text in data if text != "[DONE]"]


def test_an_endpoint_is_described_as_aws_describes_it(aws: Aws, endpoint: Endpoint) -> None:
    described = endpoint.describe(aws)
    assert described["EndpointStatus"] == "InService"
    assert described["EndpointArn"].endswith(f":endpoint/{endpoint.name}")
    assert described["EndpointArn"].startswith(f"arn:aws:sagemaker:{REGION}:")
    (variant,) = described["ProductionVariants"]
    assert (variant["VariantName"], variant["CurrentInstanceCount"]) == ("AllTraffic", 1)
    assert variant["DeployedImages"][0]["SpecifiedImage"] == IMAGE
    assert described["CreationTime"] <= described["LastModifiedTime"]
    listed = aws.client("sagemaker").list_endpoints(NameContains=endpoint.name)["Endpoints"]
    assert [item["EndpointName"] for item in listed] == [endpoint.name]
    model = aws.client("sagemaker").describe_model(ModelName=endpoint.name)
    assert model["PrimaryContainer"]["Environment"]["HF_MODEL_ID"] == "demo"


def test_tags_of_an_endpoint(aws: Aws, endpoint: Endpoint) -> None:
    sagemaker, arn = aws.client("sagemaker"), endpoint.describe(aws)["EndpointArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "team", "Value": "a"}, {"Key": "stage", "Value": "b"}])
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["stage"])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "a"}]


@pytest.mark.parametrize("arguments", [{}, {"ContentType": ""}, {"Accept": "application/json"}])
def test_a_unary_invocation(aws: Aws, endpoint: Endpoint, arguments: dict[str, str]) -> None:
    reply = invoke(aws, endpoint.name, GREEDY, **arguments)
    (answer,) = json.loads(reply["Body"].read())
    assert answer["generated_text"].startswith(GREEDY["inputs"])
    assert reply["ContentType"] == "application/json"
    assert reply["InvokedProductionVariant"] == "AllTraffic"
    assert reply["ResponseMetadata"]["RequestId"]


def test_no_content_type_at_all(aws: Aws, endpoint: Endpoint) -> None:
    """boto3 sends no such header when the argument is left out."""
    runtime = aws.client("sagemaker-runtime")
    reply = runtime.invoke_endpoint(EndpointName=endpoint.name, Body=json.dumps(CHAT))
    assert json.loads(reply["Body"].read())["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_stream_says_what_the_unary_answer_says(aws: Aws, endpoint: Endpoint) -> None:
    expected = json.loads(invoke(aws, endpoint.name, GREEDY)["Body"].read())[0]["generated_text"]
    reply, parts = stream(aws, endpoint.name, {**GREEDY, "stream": True}, Accept="text/event-stream")
    assert reply["ContentType"].startswith("text/event-stream")
    assert reply["InvokedProductionVariant"] == "AllTraffic"
    events = sse_events(parts)
    texts = [event["token"]["text"] for event in events if not event["token"]["special"]]
    assert GREEDY["inputs"] + "".join(texts) == expected
    assert len(events) == GREEDY["parameters"]["max_new_tokens"]
    assert events[-1]["generated_text"] is not None


def test_a_stream_of_chat_chunks(aws: Aws, endpoint: Endpoint) -> None:
    _, parts = stream(aws, endpoint.name, {**CHAT, "stream": True})
    events = sse_events(parts)
    assert [event["object"] for event in events] == ["chat.completion.chunk"] * len(events)
    assert b"".join(parts).rstrip().endswith(b"data: [DONE]")
    assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("operation", ["unary", "stream"])
def test_a_container_error_is_a_model_error(aws: Aws, endpoint: Endpoint, operation: str) -> None:
    body = {"inputs": "x", "parameters": {"max_new_tokens": -1}}
    call = invoke if operation == "unary" else stream
    with pytest.raises(ClientError) as raised:
        call(aws, endpoint.name, body)
    answer = raised.value.response
    assert answer["Error"]["Code"] == "ModelError"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert answer["OriginalStatusCode"] == 422
    assert "max_new_tokens" in json.loads(answer["OriginalMessage"])["error"]
    assert answer["Error"]["Message"].startswith("Received client error (422) from primary with message")
    assert f"/aws/sagemaker/Endpoints/{endpoint.name}" in answer["LogStreamArn"]


@pytest.mark.parametrize("operation", ["unary", "stream"])
def test_an_unknown_endpoint_is_a_validation_error(aws: Aws, operation: str) -> None:
    call = invoke if operation == "unary" else stream
    with pytest.raises(ClientError) as raised:
        call(aws, "nobody", GREEDY)
    assert raised.value.response["Error"]["Code"] == "ValidationError"
    assert "Endpoint nobody of account" in raised.value.response["Error"]["Message"]


def test_a_session_is_opened_used_and_closed(aws: Aws, endpoint: Endpoint) -> None:
    opened = invoke(aws, endpoint.name, {"requestType": "NEW_SESSION"}, SessionId="NEW_SESSION")
    session, _, expires = opened["NewSessionId"].partition("; Expires=")
    assert time.strptime(expires, "%Y-%m-%dT%H:%M:%SZ") > time.gmtime()
    reply = invoke(aws, endpoint.name, GREEDY, SessionId=session)
    assert json.loads(reply["Body"].read())[0]["generated_text"]
    closed = invoke(aws, endpoint.name, {"requestType": "CLOSE"}, SessionId=session)
    assert closed["ClosedSessionId"] == session
    with pytest.raises(ClientError, match="ModelError|ValidationError"):
        invoke(aws, endpoint.name, GREEDY, SessionId=session)


@pytest.mark.parametrize(
    ("operation", "arguments", "reason"),
    [
        ("describe_endpoint", {"EndpointName": "nobody"}, 'Could not find endpoint "'),
        ("delete_endpoint", {"EndpointName": "nobody"}, 'Could not find endpoint "'),
        ("describe_model", {"ModelName": "nobody"}, "Could not find model"),
        ("create_endpoint", {"EndpointName": "new", "EndpointConfigName": "nobody"}, "Could not find"),
    ],
)
def test_what_is_not_there_is_a_validation_exception(
    aws: Aws, operation: str, arguments: dict[str, str], reason: str
) -> None:
    with pytest.raises(ClientError) as raised:
        getattr(aws.client("sagemaker"), operation)(**arguments)
    assert raised.value.response["Error"]["Code"] == "ValidationException"
    assert reason in raised.value.response["Error"]["Message"]


def test_a_name_is_taken_once(aws: Aws, endpoint: Endpoint) -> None:
    with pytest.raises(ClientError, match="Cannot create already existing"):
        aws.client("sagemaker").create_endpoint(EndpointName=endpoint.name, EndpointConfigName=endpoint.name)


def test_a_container_that_dies_fails_the_endpoint(aws: Aws) -> None:
    environment = {"HF_MODEL_ID": "/no/such/folder", "DEVICE": "cpu"}
    create_endpoint(aws, "dies", container={"Environment": environment})
    with pytest.raises(WaiterError, match="terminal failure state"):
        wait_in_service(aws, "dies")
    described = aws.client("sagemaker").describe_endpoint(EndpointName="dies")
    assert described["EndpointStatus"] == "Failed"
    assert "AllTraffic" in described["FailureReason"]
    with pytest.raises(ClientError) as raised:
        invoke(aws, "dies", GREEDY)
    assert raised.value.response["Error"]["Code"] == "ValidationError"
    delete_endpoint(aws, "dies")


@pytest.mark.full
def test_a_container_that_never_pings_fails_the_endpoint(aws: Aws) -> None:
    """It waits for a storage that accepts and never answers. The shortest limit that SageMaker takes is a minute."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        storage = f"http://127.0.0.1:{silent.getsockname()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION}
        stuck = {"HF_MODEL_ID": "s3://models/m/", "DEVICE": "cpu", "AWS_ENDPOINT_URL_S3": storage, **keys}
        variant = {"ContainerStartupHealthCheckTimeoutInSeconds": 60}
        create_endpoint(aws, "mute", container={"Environment": stuck}, variant=variant)
        with pytest.raises(WaiterError):
            wait_in_service(aws, "mute")
    reason = aws.client("sagemaker").describe_endpoint(EndpointName="mute")["FailureReason"]
    assert "AllTraffic did not pass the ping health check" in reason
    assert "exited" not in reason
    delete_endpoint(aws, "mute")


@pytest.mark.full
def test_an_update_serves_all_the_time(aws: Aws) -> None:
    made = create_endpoint(aws, "rolling")
    wait_in_service(aws, made.name)
    create_config(aws, "rolling-next", model=made.name)
    aws.client("sagemaker").update_endpoint(EndpointName=made.name, EndpointConfigName="rolling-next")
    invoked = 0
    while (described := made.describe(aws))["EndpointStatus"] == "Updating":
        assert json.loads(invoke(aws, made.name, GREEDY)["Body"].read())[0]["generated_text"]
        invoked += 1
    assert described["EndpointStatus"] == "InService"
    assert described["EndpointConfigName"] == "rolling-next"
    assert invoked > 2
    assert invoke(aws, made.name, GREEDY)["Body"].read()
    delete_endpoint(aws, made.name)
