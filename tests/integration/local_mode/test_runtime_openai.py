"""The OpenAI route with OpenAI's own client: raw answers, raw streams, raw errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from local_mode.runtime import parse_fault
from tests.integration.local_mode.runtime_rig import PATIENT, Received, Rig, Script, running

DELTAS = ["Gr", "üß", "e 🙂"]


def _event(delta: str) -> bytes:
    chunk = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": delta}, "finish_reason": None}],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def chat(request: Received) -> None:
    if json.loads(request.body).get("stream"):
        await request.start_chunked()
        for delta in DELTAS:
            await request.chunk(_event(delta))
        await request.chunk(b"data: [DONE]\n\n")
        await request.chunk(b"")
        return
    message = {"role": "assistant", "content": "".join(DELTAS)}
    document = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    await request.reply(body=json.dumps(document).encode(), headers=(("Content-Type", "application/json"),))


@contextmanager
def openai_client(rig: Rig, path: str = "/endpoints/chat/openai/v1") -> Iterator[Any]:
    with openai.OpenAI(
        base_url=rig.url + path, api_key="sagemaker-api-key-abc", max_retries=0, timeout=20
    ) as client:
        yield client


MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("component", [None, "base"])
def test_unary_and_stream(component: str | None) -> None:
    path = f"/endpoints/chat/inference-components/{component}" if component else "/endpoints/chat"
    with running(chat) as rig, openai_client(rig, f"{path}/openai/v1") as client:
        answer = client.chat.completions.create(model="", messages=MESSAGES)
        assert answer.choices[0].message.content == "".join(DELTAS)
        stream = client.chat.completions.create(model="", messages=MESSAGES, stream=True)
        with stream:
            assert [chunk.choices[0].delta.content for chunk in stream] == DELTAS
        assert [asked["component"] for asked in rig.routing.asked] == [component] * 2
        request = rig.stand_in.requests[0]
        assert request.target == "/invocations"
        assert json.loads(request.body) == {"model": "", "messages": MESSAGES}
        assert [name for name, _ in request.headers] == [
            "Host",
            "User-Agent",
            "Content-Type",
            "Accept",
            "Content-Length",
        ]


def test_errors_of_the_container_come_as_they_are() -> None:
    async def script(request: Received) -> None:
        error = {"error": {"message": "too many", "type": "overloaded", "code": "overloaded"}}
        await request.reply(429, json.dumps(error).encode(), headers=(("Content-Type", "application/json"),))

    with (
        running(script) as rig,
        openai_client(rig) as client,
        pytest.raises(openai.RateLimitError, match="too many"),
    ):
        client.chat.completions.create(model="m", messages=MESSAGES)


def test_errors_of_the_emulator_are_read_by_the_client() -> None:
    with running(chat) as rig:
        with (
            openai_client(rig, "/endpoints/other/openai/v1") as client,
            pytest.raises(openai.BadRequestError, match="Endpoint other") as caught,
        ):
            client.chat.completions.create(model="m", messages=MESSAGES)
        assert caught.value.code == "ValidationError"
        with (
            openai_client(rig) as client,
            pytest.raises(openai.BadRequestError, match="Only /openai/v1/chat/completions"),
        ):
            client.completions.create(model="m", prompt="x")
        answer = httpx.post(f"{rig.url}/endpoints/chat/openai/v1/chat/completions", content=b"{}")
        assert answer.status_code == 403


async def hold(request: Received) -> None:
    await request.start_chunked()
    await request.chunk(_event("Gr"))
    await request.reader.read()
    request.close()


async def break_off(request: Received) -> None:
    await request.start_chunked()
    await request.chunk(_event("Gr"))
    request.close()


SHORT = replace(PATIENT, stream_s=1.0)


@pytest.mark.parametrize(
    ("script", "settings"),
    [(hold, {"clocks": SHORT}), (break_off, {}), (chat, {"faults": (parse_fault("break-stream=1"),)})],
)
def test_stream_that_cannot_end_is_cut(script: Script, settings: dict[str, object]) -> None:
    with running(script, **settings) as rig, openai_client(rig) as client:
        seen = []
        stream = client.chat.completions.create(model="", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIConnectionError):
            for chunk in stream:
                seen.append(chunk.choices[0].delta.content)
        assert seen == ["Gr"]


def test_unary_answer_has_the_unary_clock() -> None:
    async def script(request: Received) -> None:
        await rig.stand_in.until_gone(request)

    with running(script, clocks=replace(PATIENT, unary_s=1.0)) as rig, openai_client(rig) as client:
        with pytest.raises(openai.APIStatusError, match="timed out") as caught:
            client.chat.completions.create(model="m", messages=MESSAGES)
        assert caught.value.status_code == 424
        assert rig.stand_in.gone.wait(5)
