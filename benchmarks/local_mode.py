"""What the emulator's runtime adds to a streamed call: time to the first part, and delay of every part, straight to a
container and through the emulator in turns. The emulator, the stand-in container and the client are processes.

    python -m benchmarks.local_mode                       # a stand-in container, 300 streams each way
    python -m benchmarks.local_mode --container demo      # the real one with the demo model on the CPU
    python -m benchmarks.local_mode --streams 50 --no-cuts
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from botocore.eventstream import EventStreamBuffer
from starlette.applications import Starlette

from local_mode.contracts import Kind, Record, Target
from local_mode.runtime import RuntimeSettings, runtime
from local_mode.server_process import ServerProcess

LIMIT_MS = 5.0
_STAND_IN_BODY = {"parts": 20, "gap_s": 0.005}
_DEMO_BODY = {
    "inputs": "Once upon a time",
    "stream": True,
    "parameters": {"max_new_tokens": 20, "do_sample": False},
}


@dataclass(slots=True)
class Way:
    """One way to the container, and what the client saw on it, in seconds."""

    port: int
    path: str
    framed: bool
    first_s: list[float] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)
    """From the container's write of a line, which holds its own time, to the client's reading its end."""
    whole_s: list[float] = field(default_factory=list)

    def stream(self, connection: http.client.HTTPConnection, body: bytes) -> None:
        buffer = EventStreamBuffer()
        rest = b""
        began_s = time.monotonic()
        headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Accept": "text/event-stream"}
        connection.request("POST", self.path, body, headers)
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"{self.path}: {response.status} {response.read()[:500]!r}")
        first = True
        while data := response.read1(65536):
            now_s = time.monotonic()
            if first:
                self.first_s.append(now_s - began_s)
                first = False
            if self.framed:
                buffer.add_data(data)
                data = b"".join(message.payload for message in buffer)
            *lines, rest = (rest + data).split(b"\n")
            self.delays_s += [now_s - float(line[5:]) for line in lines if line.startswith(b"time:")]
        self.whole_s.append(time.monotonic() - began_s)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--container", choices=("stand-in", "demo"), default="stand-in")
    parser.add_argument("--streams", type=int, default=300, help="each way")
    parser.add_argument("--no-cuts", action="store_true", help="parts as the container sends them")
    parser.add_argument("--serve", choices=("container", "emulator"), help=argparse.SUPPRESS)
    parser.add_argument("--container-url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve == "container":
        asyncio.run(_serve_container())
    elif options.serve == "emulator":
        _serve_emulator(options.container_url, cut_parts=not options.no_cuts)
    else:
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        if options.container == "demo":
            server = stack.enter_context(
                ServerProcess({**os.environ, "HF_MODEL_ID": "demo", "DEVICE": "cpu", "PORT": "0"})
            )
            server.wait_ready()
            container_port, body = server.port, json.dumps(_DEMO_BODY).encode()
        else:
            container_port = stack.enter_context(_process("--serve=container"))
            body = json.dumps(_STAND_IN_BODY).encode()
        more = ["--no-cuts"] if options.no_cuts else []
        url = f"http://127.0.0.1:{container_port}"
        emulator_port = stack.enter_context(_process("--serve=emulator", f"--container-url={url}", *more))
        direct = Way(container_port, "/invocations", framed=False)
        emulated = Way(emulator_port, "/endpoints/bench/invocations-response-stream", framed=True)
        _take_turns(direct, emulated, body, options.streams)
    _print(options, direct, emulated)


def _take_turns(direct: Way, emulated: Way, body: bytes, num_streams: int) -> None:
    connections = {way.path: http.client.HTTPConnection("127.0.0.1", way.port) for way in (direct, emulated)}
    for number in range(num_streams + 5):
        for way in (direct, emulated):
            way.stream(connections[way.path], body)
            if number < 5:
                # The first few find cold caches, and connections that are not open yet.
                way.first_s.clear()
                way.delays_s.clear()
                way.whole_s.clear()
    for connection in connections.values():
        connection.close()


def _print(options: argparse.Namespace, direct: Way, emulated: Way) -> None:
    cuts = "no cuts" if options.no_cuts else "random cuts"
    load = f"{os.cpu_count()} cores with a load of {os.getloadavg()[0]:.1f}"
    print(f"{options.container} container, {options.streams} streams each way, {cuts}, {load}; milliseconds")
    print(f"{'':34}{'p50':>8}{'p99':>8}")
    rows = {
        "first part, direct": direct.first_s,
        "first part, emulator": emulated.first_s,
        "part's delay, direct": direct.delays_s,
        "part's delay, emulator": emulated.delays_s,
        "whole stream, direct": direct.whole_s,
        "whole stream, emulator": emulated.whole_s,
    }
    figures = {name: _quantiles_ms(values) for name, values in rows.items() if values}
    for name, (middle, high) in figures.items():
        print(f"{name:34}{middle:8.2f}{high:8.2f}")
    extra = [
        figures["first part, emulator"][place] - figures["first part, direct"][place] for place in (0, 1)
    ]
    verdict = "under" if extra[0] < LIMIT_MS else "OVER"
    print(f"{'added to the first part':34}{extra[0]:8.2f}{extra[1]:8.2f}   (p50 {verdict} {LIMIT_MS:g} ms)")


def _quantiles_ms(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered) * 1000, ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000


@contextmanager
def _process(*arguments: str) -> Iterator[int]:
    """One of the other parts; yields its port."""
    command = [sys.executable, "-m", "benchmarks.local_mode", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None:
                raise SystemExit(f"{command} has no output")
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def _serve_container() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                size = int(head.split("content-length: ")[1].split("\r\n")[0])
                wanted = json.loads(await reader.readexactly(size))
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for _ in range(wanted["parts"]):
                    line = f"time:{time.monotonic():.6f}\n".encode()
                    writer.write(b"%x\r\n%b\r\n" % (len(line), line))
                    await writer.drain()
                    await asyncio.sleep(wanted["gap_s"])
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


class _OneContainer:
    """Routing, resources and storage of an emulator with one endpoint."""

    def __init__(self, base_url: str) -> None:
        self._target = Target(base_url=base_url, variant="AllTraffic", hostname="primary", log_stream_arn="")

    def target(self, endpoint: str, **wanted: str | None) -> Target:
        return self._target

    def finished(self, target: Target) -> None:
        return

    def opened_session(self, session_id: str, target: Target) -> None:
        return

    def closed_session(self, session_id: str) -> None:
        return


class _NoResources:
    def get(self, kind: Kind, name: str) -> Record:
        return {}

    def add(self, kind: Kind, name: str, record: Record) -> None:
        return

    def change(self, kind: Kind, name: str, **members: Any) -> Record:
        return {}

    def remove(self, kind: Kind, name: str) -> None:
        return

    def all(self, kind: Kind) -> list[Record]:
        return []


class _NoStorage:
    async def read(self, uri: str, *, limit_bytes: int) -> tuple[bytes, str | None]:
        return b"", None

    async def write(self, uri: str, content: bytes, *, content_type: str | None = None) -> None:
        return


def _serve_emulator(container_url: str, *, cut_parts: bool) -> None:
    emulated = runtime(
        routing=_OneContainer(container_url),
        storage=_NoStorage(),
        resources=_NoResources(),
        settings=RuntimeSettings(cut_parts=cut_parts),
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await emulated.start()
        yield
        await emulated.stop()

    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    app = Starlette(routes=emulated.routes, lifespan=lifespan)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_keep_alive=75)).run(
        sockets=[listener]
    )


if __name__ == "__main__":
    main()
