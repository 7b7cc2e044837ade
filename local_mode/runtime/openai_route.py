"""`/endpoints/{endpoint}/openai/v1/chat/completions`: the body goes to the container and its answer comes back as it
is, status and error documents included. Any Authorization will do; only what the emulator itself refuses looks made up.
"""

from __future__ import annotations

import asyncio
import json

from local_mode.contracts import ServiceError, Target
from local_mode.runtime import failures
from local_mode.runtime.carrier import Carrier, answer_headers
from local_mode.runtime.container_client import Answer, AnswerBroken
from local_mode.runtime.exchange import Exchange
from local_mode.runtime.faults import Injected
from local_mode.runtime.request import OPENAI, Members


class OpenAIChatCompletions:
    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._settings = carrier.settings

    async def __call__(self, exchange: Exchange) -> None:
        if not any(name == b"authorization" and value for name, value in exchange.headers):
            raise ServiceError(
                "MissingAuthenticationTokenException",
                "Missing Authentication Token: send `Authorization: Bearer sagemaker-api-key-…`, or sign the request.",
                status=403,
            )
        members = exchange.members(OPENAI)
        body = await exchange.body(self._settings.body_limit_bytes)
        injected = self._carrier.draw_faults(members.endpoint)
        with self._carrier.target(members, component=exchange.path_parameter("component")) as target:
            await exchange.while_connected(self._answer(exchange, members, target, body, injected))

    async def _answer(
        self, exchange: Exchange, members: Members, target: Target, body: bytes, injected: Injected
    ) -> None:
        clocks = self._settings.clocks
        started_s = asyncio.get_running_loop().time()
        try:
            async with (
                asyncio.timeout_at(started_s + min(clocks.unary_s, clocks.stream_head_s)) as clock,
                self._carrier.ask(target, members, body, injected=injected) as answer,
            ):
                if _wants_stream(body):
                    clock.reschedule(started_s + clocks.stream_s)
                content_type = answer.headers.get("content-type", "application/json")
                headers = [("content-type", content_type), *answer_headers(target, answer)]
                if await self._pass_on(exchange, answer, headers, injected):
                    await exchange.end()
        except TimeoutError as error:
            if not exchange.started:
                raise failures.container_silent(target) from error

    async def _pass_on(
        self, exchange: Exchange, answer: Answer, headers: list[tuple[str, str]], injected: Injected
    ) -> bool:
        """Whether the answer is complete. Raw bytes have no place for an error: the connection is cut instead."""
        fault = injected.in_stream()
        num_chunks = 0
        await exchange.start(answer.status, headers)
        try:
            async for chunk in answer.chunks:
                if fault is not None and num_chunks >= fault[1]:
                    return False
                await exchange.send(chunk)
                num_chunks += 1
        except AnswerBroken:
            return False
        return True


def _wants_stream(body: bytes) -> bool:
    try:
        document = json.loads(body)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("stream") is True
