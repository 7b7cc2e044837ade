"""InvokeEndpoint and InvokeEndpointWithResponseStream."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from itertools import count

from local_mode.contracts import Target
from local_mode.runtime import cutting, event_stream, failures
from local_mode.runtime.carrier import Carrier, answer_headers
from local_mode.runtime.container_client import Answer, AnswerBroken
from local_mode.runtime.exchange import Exchange
from local_mode.runtime.faults import Injected
from local_mode.runtime.request import NEW_SESSION, PREFIX, STREAM, UNARY, Members

_DEFAULT_CONTENT_TYPE = "application/octet-stream"
_TOO_LONG = "The model failed to finish sending the response within the timeout period."
_BROKEN = "The TCP connection to the model was reset or closed."


class InvokeEndpoint:
    """The whole answer at once, however the container sends it."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._settings = carrier.settings

    async def __call__(self, exchange: Exchange) -> None:
        members = exchange.members(UNARY)
        body = await exchange.body(self._settings.body_limit_bytes)
        injected = self._carrier.draw_faults(members.endpoint)
        with self._carrier.target(members) as target:
            headers, content = await exchange.while_connected(self._answer(members, target, body, injected))
        await exchange.answer(200, headers, content)

    async def _answer(
        self, members: Members, target: Target, body: bytes, injected: Injected
    ) -> tuple[list[tuple[str, str]], bytes]:
        limit_bytes = self._settings.body_limit_bytes
        try:
            async with (
                asyncio.timeout(self._settings.clocks.unary_s),
                self._carrier.ask(target, members, body, injected=injected) as answer,
            ):
                await self._carrier.refuse_errors(target, answer)
                content, complete = await answer.read(limit_bytes)
        except TimeoutError as error:
            raise failures.container_silent(target) from error
        if not complete:
            raise failures.answer_too_large(target, answer.status, limit_bytes)
        content_type = answer.headers.get("content-type", _DEFAULT_CONTENT_TYPE)
        sessions = self._carrier.note_sessions(members, target, answer)
        return [("content-type", content_type), *answer_headers(target, answer), *sessions], content


class InvokeEndpointWithResponseStream:
    """The container's chunks as parts of an event stream; its status decides before the first part."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._settings = carrier.settings
        self._numbers = count()

    async def __call__(self, exchange: Exchange) -> None:
        members = exchange.members(STREAM)
        if members.get("sessionId") == NEW_SESSION:
            raise failures.invalid(
                "SessionId NEW_SESSION is not allowed with InvokeEndpointWithResponseStream; open a session with "
                "InvokeEndpoint."
            )
        body = await exchange.body(self._settings.body_limit_bytes)
        injected = self._carrier.draw_faults(members.endpoint)
        with self._carrier.target(members) as target:
            await exchange.while_connected(self._answer(exchange, members, target, body, injected))

    async def _answer(
        self, exchange: Exchange, members: Members, target: Target, body: bytes, injected: Injected
    ) -> None:
        clocks = self._settings.clocks
        started_s = asyncio.get_running_loop().time()
        try:
            async with (
                asyncio.timeout_at(started_s + clocks.stream_head_s) as clock,
                self._carrier.ask(target, members, body, injected=injected) as answer,
            ):
                await self._carrier.refuse_errors(target, answer)
                self._carrier.note_sessions(members, target, answer)
                await exchange.start(200, self._headers(target, answer))
                clock.reschedule(started_s + clocks.stream_s)
                end = await self._send_parts(exchange, answer, injected)
        except TimeoutError as error:
            if not exchange.started:
                raise failures.container_silent(target) from error
            end = model_stream_error("ModelInvocationTimeExceeded", _TOO_LONG)
        await exchange.end(end)

    def _headers(self, target: Target, answer: Answer) -> list[tuple[str, str]]:
        content_type = answer.headers.get("content-type", _DEFAULT_CONTENT_TYPE)
        return [
            ("content-type", event_stream.CONTENT_TYPE),
            (PREFIX + "Content-Type", content_type),
            *answer_headers(target, answer),
        ]

    async def _send_parts(self, exchange: Exchange, answer: Answer, injected: Injected) -> bytes:
        """Returns the last bytes of the body: an exception's event, or nothing."""
        rng = (
            random.Random(f"{self._settings.seed} {next(self._numbers)}")
            if self._settings.cut_parts
            else None
        )
        frames = Frames(injected.in_stream())
        try:
            async with aclosing(cutting.parts(answer.chunks, rng)) as batches:
                async for batch in batches:
                    await exchange.send(frames.of(batch))
                    if frames.end is not None:
                        return frames.end
        except AnswerBroken:
            return model_stream_error("StreamBroken", _BROKEN)
        return b""


def model_stream_error(code: str, text: str) -> bytes:
    return event_stream.exception("ModelStreamError", Message=text, ErrorCode=code)


class Frames:
    """Parts as messages, up to the fault of this stream."""

    def __init__(self, fault: tuple[str, int] | None) -> None:
        self._fault, self._left = fault or ("", 0)
        self.end: bytes | None = None
        """Set when the fault has come: what the body ends with."""

    def of(self, parts: list[bytes]) -> bytes:
        messages = []
        for part in parts:
            kept = part if not self._fault else self._before_fault(part)
            if kept:
                messages.append(event_stream.payload_part(kept))
            if self.end is not None:
                break
        return b"".join(messages)

    def _before_fault(self, part: bytes) -> bytes:
        by_bytes = self._fault == "break-stream-bytes"
        kept = part[: self._left] if by_bytes else part if self._left else b""
        if len(kept) < len(part):
            self.end = self._ending(part)
        self._left -= len(kept) if by_bytes else bool(kept)
        return kept

    def _ending(self, part: bytes) -> bytes:
        if self._fault == "stream-timeout":
            return model_stream_error("ModelInvocationTimeExceeded", _TOO_LONG)
        if self._fault == "stream-failure":
            return event_stream.exception("InternalStreamFailure", Message="The stream processing failed.")
        frame = event_stream.payload_part(part)
        if self._fault == "truncated-frame":
            return frame[: len(frame) // 2]
        if self._fault == "corrupt-crc":
            return frame[:-1] + bytes((frame[-1] ^ 0xFF,))
        return model_stream_error("StreamBroken", _BROKEN)
