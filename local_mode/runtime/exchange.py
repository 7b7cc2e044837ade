"""One request of a client and its answer, over ASGI. Knows no operation."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from local_mode.contracts import ServiceError
from local_mode.runtime import request
from local_mode.runtime.failures import ErrorAnswer

_Result = TypeVar("_Result")


class ClientGone(Exception):
    """Nobody is there to answer."""


class Exchange:
    """The answer is either `answer`, or `start`, any number of `send`, and `end`."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.request_id = str(uuid.uuid4())
        self.started = False

    @property
    def endpoint(self) -> str:
        return self.path_parameter("endpoint") or ""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self._scope["headers"])

    def path_parameter(self, name: str) -> str | None:
        value: str | None = self._scope.get("path_params", {}).get(name)
        return value

    def members(self, rules: Iterable[request.HeaderRule]) -> request.Members:
        return request.members(rules, self.endpoint, self.headers)

    async def body(self, limit_bytes: int) -> bytes:
        try:
            return await request.read_body(self._receive, limit_bytes)
        except ConnectionError as error:
            raise ClientGone from error

    async def while_connected(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Do `work`, or cancel it as soon as the client goes: `ClientGone`. The body must have been read."""
        task = asyncio.create_task(work)
        gone = asyncio.create_task(self._gone())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.wait({task, gone})
        raise ClientGone

    async def answer(self, status: int, headers: Iterable[tuple[str, str]], body: bytes = b"") -> None:
        await self.start(status, [*headers, ("content-length", str(len(body)))])
        await self.end(body)

    async def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        if not any(name == b"x-amzn-requestid" for name, _ in raw):
            raw.append((b"x-amzn-requestid", self.request_id.encode()))
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, data: bytes) -> None:
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


Handler = Callable[[Exchange], Awaitable[None]]


class Operation:
    """A handler as an ASGI application that answers errors in the form its clients read."""

    def __init__(
        self,
        handler: Handler,
        *,
        error_form: Callable[[ServiceError, str], ErrorAnswer] = ErrorAnswer.of,
    ) -> None:
        self._handler = handler
        self._error_form = error_form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            await self._handler(exchange)
        except ClientGone:
            return
        except ServiceError as error:
            answer = self._error_form(error, exchange.request_id)
            await exchange.answer(answer.status, answer.headers, answer.body)
