"""InvokeEndpointAsync with boto3: acceptance, locations, results, failures, capacity, and a restart in between."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_mode.runtime import RuntimeSettings, parse_fault
from tests.integration.local_mode.runtime_rig import (
    WAIT_S,
    FakeStorage,
    Received,
    Rig,
    StandIn,
    echo,
    running,
)

OUT = "s3://bucket/out"
INPUT = "s3://bucket/in/1.json"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running(async_poll_s=0.02) as rig:
        configure(rig)
        yield rig


def configure(rig: Rig, **config: Any) -> None:
    rig.resources.config["AsyncInferenceConfig"] = {"OutputConfig": {"S3OutputPath": OUT}} | config
    rig.storage.objects[INPUT] = (b'{"inputs":"x"}', "application/json")


def invoke(rig: Rig, **call: Any) -> Any:
    if "Body" not in call:
        call = {"InputLocation": INPUT} | call
    return rig.client().invoke_endpoint_async(EndpointName="chat", **call)


def test_object_goes_through_the_container_to_its_location(rig: Rig) -> None:
    async def script(request: Received) -> None:
        await request.start_chunked(content_type="application/jsonlines")
        for chunk in (b'{"a":1}\n', b'{"b":2}\n', b""):
            await request.chunk(chunk)

    rig.stand_in.script = script
    answer = invoke(
        rig,
        ContentType="application/json",
        Accept="application/jsonlines",
        CustomAttributes="a=b",
        InferenceId="mine-1",
    )
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert answer["InferenceId"] == "mine-1"
    assert answer["OutputLocation"] == f"{OUT}/mine-1.out"
    assert answer["FailureLocation"] == f"{OUT}/mine-1-error.out"
    rig.storage.wait_written()
    assert rig.storage.objects[answer["OutputLocation"]] == (b'{"a":1}\n{"b":2}\n', "application/jsonlines")
    (request,) = rig.stand_in.requests
    assert request.target == "/invocations"
    assert request.body == b'{"inputs":"x"}'
    assert dict(request.headers) == {
        "Host": "container-0.local:8080",
        "User-Agent": "AHC/2.0",
        "Content-Type": "application/json",
        "Accept": "application/jsonlines",
        "X-Amzn-SageMaker-Custom-Attributes": "a=b",
        "X-Amzn-SageMaker-Inference-Id": "mine-1",
        "Content-Length": "14",
    }


def test_inline_body_and_names_of_the_output(rig: Rig) -> None:
    configure(rig, OutputConfig={"S3OutputPath": OUT + "/", "S3FailurePath": "s3://bucket/failed"})
    answer = invoke(rig, Body=b"inline", S3OutputPathExtension="sub/folder", Filename="result.json")
    assert answer["OutputLocation"] == f"{OUT}/sub/folder/result.json"
    assert answer["FailureLocation"] == f"s3://bucket/failed/{answer['InferenceId']}-error.out"
    rig.storage.wait_written()
    assert rig.storage.objects[answer["OutputLocation"]][0] == b"inline"


def test_inference_id_cannot_leave_the_folder(rig: Rig) -> None:
    answer = invoke(rig, InferenceId="../../etc/passwd")
    assert answer["InferenceId"] == "../../etc/passwd"
    assert "/.." not in answer["OutputLocation"].removeprefix(OUT)
    assert answer["OutputLocation"].count("/") == OUT.count("/") + 1
    rig.storage.wait_written()


def test_content_type_of_the_object_is_used_where_the_call_names_none(rig: Rig) -> None:
    invoke(rig)
    rig.storage.wait_written()
    assert ("Content-Type", "application/json") in rig.stand_in.requests[0].headers


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"Body": b"x", "InputLocation": INPUT}, "Exactly one of Body and InputLocation"),
        ({"Body": b""}, "Exactly one of Body and InputLocation"),
        ({"Body": b"x" * 128_001}, "Body has more than 128000 bytes"),
        ({"InputLocation": "https://host/x"}, "inputLocation"),
        ({"S3OutputPathExtension": "../up"}, "s3OutputPathExtension"),
        ({"S3OutputPathExtension": "up/.."}, "s3OutputPathExtension"),
        ({"Filename": "a.b.c"}, "filename"),
        ({"RequestTTLSeconds": 59}, "requestTTLSeconds"),
        ({"InvocationTimeoutSeconds": 3601}, "invocationTimeoutSeconds"),
    ],
)
def test_refused_calls(rig: Rig, call: dict[str, Any], message: str) -> None:
    client = rig.client(parameter_validation=False)
    if "Body" not in call:
        call = {"InputLocation": INPUT} | call
    with pytest.raises(client.exceptions.ValidationError, match=message):
        client.invoke_endpoint_async(EndpointName="chat", **call)
    assert rig.stand_in.requests == []


def test_a_configuration_may_be_deleted_once_it_is_deployed(rig: Rig) -> None:
    rig.resources.endpoint["_Deployed"] = {"config": dict(rig.resources.config)}
    rig.resources.endpoint["EndpointConfigName"] = "deleted"
    assert invoke(rig)["ResponseMetadata"]["HTTPStatusCode"] == 202


def test_endpoint_must_be_asynchronous(rig: Rig) -> None:
    del rig.resources.config["AsyncInferenceConfig"]
    client = rig.client()
    with pytest.raises(client.exceptions.ValidationError, match="has no AsyncInferenceConfig"):
        client.invoke_endpoint_async(EndpointName="chat", InputLocation=INPUT)
    with pytest.raises(client.exceptions.ValidationError, match="Could not find"):
        client.invoke_endpoint_async(EndpointName="other", InputLocation=INPUT)
    configure(rig, OutputConfig={})
    with pytest.raises(client.exceptions.ValidationError, match="S3OutputPath is missing"):
        client.invoke_endpoint_async(EndpointName="chat", InputLocation=INPUT)


def _failure(rig: Rig, **call: Any) -> bytes:
    answer = invoke(rig, **call)
    rig.storage.wait_written()
    assert answer["OutputLocation"] not in rig.storage.objects
    return rig.storage.objects[answer["FailureLocation"]][0]


def test_error_body_of_the_container_is_the_failure(rig: Rig) -> None:
    async def script(request: Received) -> None:
        await request.reply(400, b'{"error":"no"}')

    rig.stand_in.script = script
    assert _failure(rig) == b'{"error":"no"}'


def test_failures_that_are_not_the_containers(rig: Rig) -> None:
    assert b"s3://bucket/absent does not exist" in _failure(rig, InputLocation="s3://bucket/absent")

    async def close(request: Received) -> None:
        request.close()

    rig.stand_in.script = close
    assert b"The connection was closed without an answer" in _failure(rig)


def test_invocation_has_its_own_time_limit(rig: Rig) -> None:
    async def script(request: Received) -> None:
        await rig.stand_in.until_gone(request)

    rig.stand_in.script = script
    assert b"timed out" in _failure(rig, InvocationTimeoutSeconds=1)
    assert rig.stand_in.gone.wait(WAIT_S)


def test_output_that_cannot_be_written_is_a_failure(rig: Rig) -> None:
    configure(rig, OutputConfig={"S3OutputPath": "s3://refused/out", "S3FailurePath": "s3://bucket/failed"})
    assert b"The answer could not be stored" in _failure(rig)


def test_faults_reach_asynchronous_invocations() -> None:
    with running(async_poll_s=0.02, faults=(parse_fault("model-error=503"),)) as rig:
        configure(rig)
        assert b"Received server error (503)" in _failure(rig)
    with running(faults=(parse_fault("internal-failure"),)) as rig:
        configure(rig)
        client = rig.client()
        with pytest.raises(client.exceptions.InternalFailure):
            client.invoke_endpoint_async(EndpointName="chat", InputLocation=INPUT)


def test_concurrency_is_that_of_the_configuration(rig: Rig) -> None:
    configure(rig, ClientConfig={"MaxConcurrentInvocationsPerInstance": 2})
    rig.resources.endpoint["ProductionVariants"] = [{"CurrentInstanceCount": 1}]
    running_now = 0
    most = 0
    two = rig.event()

    async def script(request: Received) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        if running_now == 2:
            two.set()
        # The first waits until a second runs beside it; a third would be counted.
        await asyncio.wait_for(two.wait(), WAIT_S)
        await asyncio.sleep(0.01)
        running_now -= 1
        await request.reply(body=b"ok")

    rig.stand_in.script = script
    client = rig.client()
    for _ in range(6):
        client.invoke_endpoint_async(EndpointName="chat", InputLocation=INPUT)
    rig.storage.wait_written(6)
    assert most == 2


def test_requests_wait_for_an_endpoint_that_is_not_in_service(rig: Rig) -> None:
    rig.routing.in_service = False
    answers = [invoke(rig, InferenceId=str(number)) for number in range(3)]
    assert rig.stand_in.requests == []
    rig.routing.in_service = True
    rig.storage.wait_written(3)
    assert all(answer["OutputLocation"] in rig.storage.objects for answer in answers)


def test_accepted_requests_survive_a_restart(tmp_path: Path) -> None:
    storage = FakeStorage()

    async def never(request: Received) -> None:
        await request.reader.read()
        request.close()

    settings = RuntimeSettings(state_dir=tmp_path, async_poll_s=0.02, async_default_concurrency=1)
    with Rig(settings, stand_in=StandIn(script=never), storage=storage) as rig:
        configure(rig)
        answers = [
            invoke(rig, InferenceId="interrupted"),
            invoke(rig, InferenceId="waiting", Body=b"inline", ContentType="text/plain"),
        ]
    assert storage.objects.keys() == {INPUT}
    with Rig(settings, stand_in=StandIn(script=echo), storage=storage) as rig:
        configure(rig)
        storage.wait_written(2)
        assert [request.body for request in rig.stand_in.requests] == [b'{"inputs":"x"}', b"inline"]
        assert ("Content-Type", "text/plain") in rig.stand_in.requests[1].headers
    assert [storage.objects[answer["OutputLocation"]][0] for answer in answers] == [
        b'{"inputs":"x"}',
        b"inline",
    ]
    assert list((tmp_path / "async").iterdir()) == []


def test_what_nobody_foresaw_is_not_asked_again_after_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Defective(FakeStorage):
        async def read(self, uri: str, *, limit_bytes: int) -> tuple[bytes, str | None]:
            raise RuntimeError("a defect")

    settings = RuntimeSettings(state_dir=tmp_path, async_poll_s=0.02)
    with Rig(settings, storage=Defective()) as rig:
        configure(rig)
        invoke(rig, InferenceId="mine-1")
        deadline_s = time.monotonic() + WAIT_S
        while list((tmp_path / "async").iterdir()) and time.monotonic() < deadline_s:
            rig.on_loop(asyncio.sleep(0))
    assert list((tmp_path / "async").iterdir()) == []
    assert "asynchronous invocation mine-1 is given up" in caplog.text and "a defect" in caplog.text


def test_request_that_waited_too_long_or_whose_endpoint_is_gone_fails(tmp_path: Path) -> None:
    storage = FakeStorage()
    settings = RuntimeSettings(state_dir=tmp_path, async_poll_s=0.02)
    with Rig(settings, storage=storage) as rig:
        configure(rig)
        rig.routing.in_service = False
        old, orphan = (invoke(rig, InferenceId=name) for name in ("old", "orphan"))
    for path in (tmp_path / "async").glob("*.json"):
        document = json.loads(path.read_bytes())
        if document["inference_id"] == "old":
            document["arrived_s"] -= 21601
        else:
            document["endpoint"] = "gone"
        path.write_text(json.dumps(document))
    with Rig(settings, storage=storage) as rig:
        rig.routing.in_service = False
        storage.wait_written(2)
    assert b"RequestTTLSeconds" in storage.objects[old["FailureLocation"]][0]
    assert b"Endpoint gone" in storage.objects[orphan["FailureLocation"]][0]
