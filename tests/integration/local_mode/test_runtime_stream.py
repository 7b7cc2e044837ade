"""InvokeEndpointWithResponseStream with boto3: parts cut anywhere, nothing lost, and every way to end badly."""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import replace
from typing import Any

import httpx
import pytest
from botocore.eventstream import ChecksumMismatch
from botocore.exceptions import ClientError, EventStreamError

from local_mode.runtime import RuntimeClocks, parse_fault
from tests.integration.local_mode.runtime_rig import PATIENT, Received, Rig, running

TEXT = "Größe 🙂 漢字 👩‍👩‍👧 " * 40


def parts(client: Any, **call: Any) -> list[bytes]:
    answer = client.invoke_endpoint_with_response_stream(**{"EndpointName": "chat", "Body": b"{}"} | call)
    with contextlib.closing(answer["Body"]) as body:
        return [event["PayloadPart"]["Bytes"] for event in body]


def stream_error(client: Any) -> tuple[list[bytes], EventStreamError]:
    """The parts before the error, and the error."""
    seen = []
    body = client.invoke_endpoint_with_response_stream(EndpointName="chat", Body=b"{}")["Body"]
    # An error leaves the connection with the body, which nobody else closes.
    with contextlib.closing(body), pytest.raises(EventStreamError) as caught:
        for event in body:
            seen.append(event["PayloadPart"]["Bytes"])
    return seen, caught.value


async def stream_lines(request: Received) -> None:
    await request.start_chunked()
    for line in TEXT.split():
        await request.chunk(f"data: {line}\n\n".encode())
    await request.chunk(b"")


EXPECTED = b"".join(f"data: {line}\n\n".encode() for line in TEXT.split())


async def hold(request: Received) -> None:
    """One chunk, then silence until the other side goes."""
    await request.start_chunked()
    await request.chunk(b"first")
    await request.reader.read()
    request.close()


def test_parts_are_cut_and_merged_but_nothing_is_lost() -> None:
    with running(stream_lines) as rig:
        seen = parts(rig.client())
        assert b"".join(seen) == EXPECTED
        whole = [f"data: {line}\n\n".encode() for line in TEXT.split()]
        assert any(part not in whole for part in seen)
        with pytest.raises(UnicodeDecodeError):
            [part.decode() for part in seen]


def test_cutting_can_be_turned_off() -> None:
    async def script(request: Received) -> None:
        await request.start_chunked()
        for chunk in (b"data: 1\n\n", b"data: 2\n\n"):
            await request.chunk(chunk)
        await request.chunk(b"")

    with running(script, cut_parts=False) as rig:
        assert parts(rig.client()) == [b"data: 1\n\n", b"data: 2\n\n"]


def test_headers_both_ways() -> None:
    async def script(request: Received) -> None:
        headers = (("Content-Type", "application/jsonlines"), ("X-Amzn-SageMaker-Custom-Attributes", "a=1"))
        await request.reply(body=b"whole", headers=headers)

    with running(script) as rig:
        answer = rig.client().invoke_endpoint_with_response_stream(
            EndpointName="chat",
            Body=b"{}",
            ContentType="application/json",
            Accept="text/event-stream",
            CustomAttributes="x=y",
            TargetVariant="AllTraffic",
            InferenceId="i",
            SessionId="s-1",
        )
        assert b"".join(event["PayloadPart"]["Bytes"] for event in answer["Body"]) == b"whole"
        assert (answer["ContentType"], answer["CustomAttributes"]) == ("application/jsonlines", "a=1")
        assert answer["InvokedProductionVariant"] == "AllTraffic"
        (request,) = rig.stand_in.requests
        assert dict(request.headers) == {
            "Host": "model.aws.local:8080",
            "User-Agent": "AHC/2.0",
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "X-Amzn-SageMaker-Custom-Attributes": "x=y",
            "X-Amzn-SageMaker-Target-Variant": "AllTraffic",
            "X-Amzn-SageMaker-Inference-Id": "i",
            "X-Amzn-SageMaker-Session-Id": "s-1",
            "Content-Length": "2",
        }


def test_answer_without_a_body_is_a_stream_without_parts() -> None:
    async def script(request: Received) -> None:
        await request.reply()

    with running(script) as rig:
        assert parts(rig.client()) == []


def test_first_part_comes_while_the_container_still_works() -> None:
    async def script(request: Received) -> None:
        await request.start_chunked()
        await request.chunk(b"first")
        await seen.wait()
        await request.chunk(b"last")
        await request.chunk(b"")

    with running(script) as rig:
        seen = rig.event()
        answer = rig.client().invoke_endpoint_with_response_stream(EndpointName="chat", Body=b"{}")
        got = b""
        for event in answer["Body"]:
            got += event["PayloadPart"]["Bytes"]
            if got == b"first":
                rig.release(seen)
        assert got == b"firstlast"


def test_status_of_the_container_decides_before_the_first_part() -> None:
    async def script(request: Received) -> None:
        await request.reply(429, b'{"error":"overloaded"}')

    with running(script) as rig:
        client = rig.client()
        with pytest.raises(client.exceptions.ModelError, match=r"Received client error \(429\)") as caught:
            parts(client)
        assert caught.value.response["OriginalStatusCode"] == 429


def test_container_that_breaks_off_is_an_event() -> None:
    async def script(request: Received) -> None:
        await request.start_chunked()
        await request.chunk(b"first")
        request.close()

    with running(script) as rig:
        seen, error = stream_error(rig.client())
        assert b"".join(seen) == b"first"
        assert error.response["Error"]["Code"] == "ModelStreamError"
        raw = httpx.post(f"{rig.url}/endpoints/chat/invocations-response-stream", content=b"{}").content
        assert b'"ErrorCode": "StreamBroken"' in raw


def test_stream_that_takes_too_long() -> None:
    with running(hold, clocks=replace(PATIENT, stream_s=1.0)) as rig:
        seen, error = stream_error(rig.client())
        assert b"".join(seen) == b"first"
        assert "failed to finish sending the response" in str(error)
        raw = httpx.post(f"{rig.url}/endpoints/chat/invocations-response-stream", content=b"{}").content
        assert b'"ErrorCode": "ModelInvocationTimeExceeded"' in raw


def test_stream_that_does_not_begin_in_time() -> None:
    async def script(request: Received) -> None:
        await rig.stand_in.until_gone(request)

    with running(script, clocks=replace(PATIENT, stream_head_s=1.0)) as rig:
        client = rig.client()
        with pytest.raises(client.exceptions.ModelError, match="timed out"):
            parts(client)
        assert rig.stand_in.gone.wait(5)


def test_client_that_goes_ends_the_containers_connection_at_once() -> None:
    async def script(request: Received) -> None:
        await request.start_chunked()
        await request.chunk(b"first")
        await rig.stand_in.until_gone(request)

    with running(script) as rig:
        answer = rig.client().invoke_endpoint_with_response_stream(EndpointName="chat", Body=b"{}")
        assert next(iter(answer["Body"]))
        answer["Body"].close()
        assert rig.stand_in.gone.wait(5)


def test_sessions_are_not_opened_on_streams() -> None:
    with running() as rig:
        client = rig.client()
        with pytest.raises(client.exceptions.ValidationError, match="NEW_SESSION is not allowed"):
            parts(client, SessionId="NEW_SESSION")
        assert rig.stand_in.requests == []


def test_same_seed_cuts_at_the_same_places() -> None:
    async def script(request: Received) -> None:
        await request.reply(body=EXPECTED)

    cuts = []
    for seed in (7, 7, 8):
        with running(script, seed=seed) as rig:
            client = rig.client()
            cuts.append([[len(part) for part in parts(client)] for _ in range(5)])
    assert cuts[0] == cuts[1] != cuts[2]
    assert len({tuple(sizes) for sizes in cuts[0]}) > 1


def test_texts_of_every_kind_keep_their_bytes(full: bool) -> None:
    """Sent by the container in chunks of any size. (Unit tests of cutting do this without a server, for more texts.)"""
    num_texts = 1_000 if full else 40
    alphabet = 'aé漢🙂 \n"\\\u200d👩👧\u0301데'
    rng = random.Random(3)
    texts = ["".join(rng.choices(alphabet, k=rng.choice((1, 5, 60, 400)))) for _ in range(num_texts)]
    texts[-1] = "👩‍👩‍👧" * 50_000

    async def script(request: Received) -> None:
        content = texts[json.loads(request.body)].encode()
        await request.start_chunked()
        sizes = random.Random(len(content))
        position = 0
        while position < len(content):
            size = sizes.choice((1, 3, 17, 100, 5000, 65536))
            await request.chunk(content[position : position + size])
            position += size
        await request.chunk(b"")

    with running(script) as rig:
        client = rig.client()
        for number, text in enumerate(texts):
            assert b"".join(parts(client, Body=str(number).encode())).decode() == text


FAULTS = [
    ("break-stream=2", "ModelStreamError", "StreamBroken"),
    ("stream-timeout=2", "ModelStreamError", "ModelInvocationTimeExceeded"),
    ("stream-failure=2", "InternalStreamFailure", "InternalStreamFailure"),
    ("break-stream-bytes=30", "ModelStreamError", "StreamBroken"),
]


def _faulty(*faults: str, clocks: RuntimeClocks = PATIENT) -> Any:
    return running(stream_lines, faults=tuple(parse_fault(fault) for fault in faults), clocks=clocks)


@pytest.mark.parametrize(("fault", "code", "word"), FAULTS)
def test_fault_that_ends_a_stream_with_an_event(fault: str, code: str, word: str) -> None:
    with _faulty(fault) as rig:
        seen, error = stream_error(rig.client())
        assert error.response["Error"]["Code"] == code
        assert EXPECTED.startswith(b"".join(seen))
        assert (sum(map(len, seen)) == 30) if "bytes" in fault else (len(seen) == 2)
        raw = httpx.post(f"{rig.url}/endpoints/chat/invocations-response-stream", content=b"{}").content
        assert word.encode() in raw


def test_fault_that_truncates_a_frame_looks_like_the_end_to_boto3() -> None:
    with _faulty("truncated-frame=2") as rig:
        seen = parts(rig.client())
        assert len(seen) == 2
        assert EXPECTED.startswith(b"".join(seen))


def test_fault_that_corrupts_a_checksum() -> None:
    with _faulty("corrupt-crc=1") as rig, pytest.raises(ChecksumMismatch):
        parts(rig.client())


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        ("no-accept", "ModelError", 424),
        ("slow-accept=300", "ModelError", 424),
        ("timeout=0.1", "ModelError", 424),
        ("model-error=503", "ModelError", 424),
        ("throttling", "ThrottlingException", 429),
        ("throttling=503", "ServiceUnavailable", 503),
        ("model-not-ready", "ModelNotReadyException", 429),
        ("internal-failure", "InternalFailure", 500),
    ],
)
def test_fault_instead_of_an_answer(fault: str, code: str, status: int) -> None:
    with _faulty(fault, clocks=RuntimeClocks()) as rig:
        client = rig.client()
        for call in (client.invoke_endpoint, client.invoke_endpoint_with_response_stream):
            with pytest.raises(ClientError) as caught:
                call(EndpointName="chat", Body=b"{}")
            assert caught.value.response["Error"]["Code"] == code
            assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert rig.stand_in.requests == []


def test_faults_that_only_delay_and_those_of_other_endpoints() -> None:
    with _faulty("latency=20", "slow-accept=10", "internal-failure@other") as rig:
        assert b"".join(parts(rig.client())) == EXPECTED


def test_fault_with_a_probability_hits_the_same_invocations_again() -> None:
    def outcomes(rig: Rig) -> list[int]:
        url = f"{rig.url}/endpoints/chat/invocations"
        with httpx.Client() as client:
            return [client.post(url, content=b"{}").status_code for _ in range(20)]

    runs = []
    for _ in range(2):
        with _faulty("internal-failure%30") as rig:
            runs.append(outcomes(rig))
    assert runs[0] == runs[1]
    assert set(runs[0]) == {200, 500}
