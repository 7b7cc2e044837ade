"""HTTP to containers: one request, its answer as it comes, connections kept and found closed.

Knows what a connection can do wrong, and nothing of AWS's errors.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

# Below the 2 s after which gunicorn, and the 5 s after which uvicorn, closes an idle connection.
_KEEP_IDLE_S = 1.0
# A kept connection that its container was just closing fails at once; what fails later has reached the container.
_STALE_S = 0.1


class NotAccepted(Exception):
    """The container does not take the connection: refused, or not in time."""


class NotAnswered(Exception):
    """The connection was closed before an answer, or what came is not HTTP."""


class AnswerBroken(ConnectionError):
    """The connection was lost within the answer's body."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: httpx.Headers
    chunks: AsyncIterator[bytes]
    """The body as it comes. Raises `AnswerBroken`."""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    async def read(self, limit_bytes: int) -> tuple[bytes, bool]:
        """The body up to its limit, and whether that is all."""
        content = bytearray()
        async for chunk in self.chunks:
            content += chunk
            if len(content) > limit_bytes:
                return bytes(content[:limit_bytes]), False
        return bytes(content), True


class ContainerClient:
    """A pool of connections for each container. Close it when no request is running."""

    def __init__(self, *, accept_s: float) -> None:
        self._timeout = {"connect": accept_s, "read": None, "write": None, "pool": None}
        # The transports are used without httpx's client, which would add headers of its own.
        self._kept = _transport(keep_idle_s=_KEEP_IDLE_S)
        self._single = _transport(keep_idle_s=0.0)

    async def aclose(self) -> None:
        await self._kept.aclose()
        await self._single.aclose()

    @asynccontextmanager
    async def post(
        self, url: str, *, headers: Iterable[tuple[str, str]], body: bytes
    ) -> AsyncIterator[Answer]:
        """POST with exactly these headers and Content-Length. Leaving the context early closes the connection.

        Raises `NotAccepted`, `NotAnswered`. Time limits other than that of accepting are the caller's.
        """
        sent = [*headers, ("Content-Length", str(len(body)))]
        response = await self._send(url, sent, body)
        # As they are on the wire, so that any value can be passed on: httpx guesses UTF-8.
        response.headers.encoding = "iso-8859-1"
        try:
            yield Answer(response.status_code, response.headers, _chunks(response))
        finally:
            await response.aclose()

    async def _send(self, url: str, headers: list[tuple[str, str]], body: bytes) -> httpx.Response:
        connected = False

        async def trace(event: str, _: Any) -> None:
            nonlocal connected
            connected = connected or event == "connection.connect_tcp.started"

        extensions: dict[str, Any] = {"timeout": self._timeout, "trace": trace}
        started_s = time.monotonic()
        try:
            return await _answered(
                self._kept, httpx.Request("POST", url, headers=headers, content=body, extensions=extensions)
            )
        except NotAnswered:
            if connected or time.monotonic() - started_s > _STALE_S:
                raise
        return await _answered(
            self._single, httpx.Request("POST", url, headers=headers, content=body, extensions=extensions)
        )


def _transport(*, keep_idle_s: float) -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(
        max_connections=None,
        max_keepalive_connections=None if keep_idle_s else 0,
        keepalive_expiry=keep_idle_s,
    )
    return httpx.AsyncHTTPTransport(limits=limits, trust_env=False)


async def _answered(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
    try:
        return await transport.handle_async_request(request)
    except httpx.ConnectTimeout as error:
        raise NotAccepted("The connection was not accepted in time") from error
    except httpx.ConnectError as error:
        raise NotAccepted("The connection was refused") from error
    except httpx.TransportError as error:
        raise NotAnswered("The connection was closed without an answer") from error


async def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    stream = response.stream
    if not isinstance(stream, httpx.AsyncByteStream):
        raise TypeError(f"a transport for asyncio gave {type(stream).__name__}")
    try:
        async for chunk in stream:
            yield chunk
    except httpx.TransportError as error:
        raise AnswerBroken(str(error) or type(error).__name__) from error
