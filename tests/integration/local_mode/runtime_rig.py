"""The emulator's runtime in a real server, a container that a test scripts byte for byte, and unmodified boto3."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import uvicorn
from botocore.config import Config
from starlette.applications import Starlette

from local_mode.contracts import Kind, Record, ServiceError, Target
from local_mode.runtime import RuntimeClocks, RuntimeSettings, runtime

LOG_ARN = "arn:aws:logs:us-east-1:123456789012:log-group:/aws/sagemaker/Endpoints/chat"
WAIT_S = 20.0


@dataclass(slots=True)
class Received:
    """A request as the container got it; header names as sent."""

    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def reply(
        self, status: int = 200, body: bytes = b"", *, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        lines = [
            f"HTTP/1.1 {status} X",
            f"Content-Length: {len(body)}",
            *(": ".join(pair) for pair in headers),
        ]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def start_chunked(self, status: int = 200, content_type: str = "text/event-stream") -> None:
        head = f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\nContent-Type: {content_type}\r\n\r\n"
        self.writer.write(head.encode())
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        """An empty one ends the answer."""
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()


Script = Callable[[Received], Awaitable[None]]

PATIENT = RuntimeClocks(accept_s=WAIT_S)
"""Client and container share a loop, which may not turn for longer than the platform waits for a connection."""


async def echo(request: Received) -> None:
    await request.reply(body=request.body)


@dataclass(slots=True)
class StandIn:
    """A container; `script` answers each request."""

    script: Script = echo
    requests: list[Received] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when a connection ended that the container did not close."""
    base_url: str = ""
    num_connections: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def end(self) -> None:
        """Scripts that still wait are given up."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        number = self.num_connections
        try:
            while not writer.is_closing():
                request = await self._read(reader, writer, number)
                if request is None:
                    return
                self.requests.append(request)
                await self.script(request)
        except ConnectionError:
            self.gone.set()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def until_gone(self, request: Received) -> None:
        """For scripts: wait until the other side closes the connection."""
        with contextlib.suppress(ConnectionError):
            await request.reader.read()
        self.gone.set()
        request.close()

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> Received | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
            size = int(next(value for name, value in headers if name.lower() == "content-length"))
            body = await reader.readexactly(size)
        except asyncio.IncompleteReadError:
            self.gone.set()
            return None
        return Received(first.split(" ")[1], headers, body, number, reader, writer)


class FakeRouting:
    """One endpoint, `chat`, whose container is the stand-in."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in
        self.asked: list[dict[str, str | None]] = []
        self.num_open = 0
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.in_service = True
        self.adapter: str | None = None

    def target(self, endpoint: str, **wanted: str | None) -> Target:
        self.asked.append(wanted)
        if endpoint != "chat" or not self.in_service:
            raise ServiceError("ValidationError", f"Endpoint {endpoint} of account 123456789012 not found.")
        self.num_open += 1
        return Target(
            base_url=self._stand_in.base_url,
            variant="AllTraffic",
            hostname="primary",
            log_stream_arn=LOG_ARN,
            adapter=self.adapter,
        )

    def finished(self, target: Target) -> None:
        self.num_open -= 1

    def opened_session(self, session_id: str, target: Target) -> None:
        self.opened.append(session_id)

    def closed_session(self, session_id: str) -> None:
        self.closed.append(session_id)


class FakeResources:
    """Endpoint `chat` with a configuration that the test fills."""

    def __init__(self) -> None:
        self.config: Record = {"EndpointConfigName": "config"}
        self.endpoint: Record = {"EndpointName": "chat", "EndpointConfigName": "config"}

    def get(self, kind: Kind, name: str) -> Record:
        if (kind, name) == ("endpoint", "chat"):
            return dict(self.endpoint)
        if (kind, name) == ("endpoint-config", "config"):
            return dict(self.config)
        raise ServiceError("ValidationException", f'Could not find {kind} "{name}".')

    def add(self, kind: Kind, name: str, record: Record) -> None: ...

    def change(self, kind: Kind, name: str, **members: Any) -> Record:
        return {}

    def remove(self, kind: Kind, name: str) -> None: ...

    def all(self, kind: Kind) -> list[Record]:
        return []


class FakeStorage:
    """Objects in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str | None]] = {}
        self.written = threading.Semaphore(0)

    async def read(self, uri: str, *, limit_bytes: int) -> tuple[bytes, str | None]:
        if uri not in self.objects:
            raise ServiceError("ValidationError", f"{uri} does not exist")
        return self.objects[uri]

    async def write(self, uri: str, content: bytes, *, content_type: str | None = None) -> None:
        if uri.startswith("s3://refused/"):
            raise ServiceError("ValidationError", f"{uri} cannot be written")
        self.objects[uri] = (content, content_type)
        self.written.release()

    def wait_written(self, num_objects: int = 1) -> None:
        for _ in range(num_objects):
            assert self.written.acquire(timeout=WAIT_S), self.objects


class Rig:
    """All of it, on a loop in a thread of its own."""

    def __init__(
        self,
        settings: RuntimeSettings,
        *,
        stand_in: StandIn | None = None,
        storage: FakeStorage | None = None,
    ) -> None:
        self.stand_in = stand_in or StandIn()
        self.routing = FakeRouting(self.stand_in)
        self.resources = FakeResources()
        self.storage = storage or FakeStorage()
        self._settings = settings
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._clients: list[Any] = []

    def __enter__(self) -> Rig:
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self._server.should_exit = True
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        assert self.routing.num_open == 0

    def client(self, **config: Any) -> Any:
        """boto3's `sagemaker-runtime`, one attempt for each call."""
        client = boto3.client(
            "sagemaker-runtime",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",
            config=Config(**{"retries": {"total_max_attempts": 1}, "read_timeout": WAIT_S} | config),
        )
        self._clients.append(client)
        return client

    def on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def event(self) -> asyncio.Event:
        """For scripts to wait on; `release` sets it from the test."""
        return asyncio.Event()

    def release(self, event: asyncio.Event) -> None:
        self._loop.call_soon_threadsafe(event.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        container = await asyncio.start_server(self.stand_in.connected, "127.0.0.1", 0)
        self.stand_in.base_url = f"http://127.0.0.1:{container.sockets[0].getsockname()[1]}"
        emulated = runtime(
            routing=self.routing, storage=self.storage, resources=self.resources, settings=self._settings
        )

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            await emulated.start()
            self._ready.set()
            yield
            await emulated.stop()

        app = Starlette(routes=emulated.routes, lifespan=lifespan)
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=5)
        )
        async with container:
            await self._server.serve(sockets=[self._listener])
            await self.stand_in.end()


@contextlib.contextmanager
def running(script: Script = echo, *, clocks: RuntimeClocks = PATIENT, **settings: Any) -> Iterator[Rig]:
    with Rig(RuntimeSettings(clocks=clocks, **settings), stand_in=StandIn(script=script)) as rig:
        yield rig
