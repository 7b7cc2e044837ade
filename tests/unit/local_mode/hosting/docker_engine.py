"""A stand-in of the Docker engine's HTTP API on a unix socket: as much of it as the SDK uses to run a container.

Its containers are fake containers on this machine. Written after the Engine API reference, version 1.47.
"""

from __future__ import annotations

import json
import os
import re
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.unit.local_mode.hosting.world import FAKE

_PATH = re.compile(r"/v[\d.]+(/.*)")


class Container:
    """What POST /containers/create made."""

    def __init__(self, number: int, config: dict[str, Any]) -> None:
        self.id = f"{number:064x}"
        self.config = config
        self.process: subprocess.Popen[bytes] | None = None
        self.stop_limit_s: int | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def start(self, scratch: Path) -> None:
        environment = dict(entry.split("=", 1) for entry in self.config["Env"])
        (scratch / self.id / "model").mkdir(parents=True)
        own = {"SAGEMAKER_BIND_TO_PORT": str(self.port), "SAGEMAKER_BASE_DIR": str(scratch / self.id)}
        self.process = subprocess.Popen(
            FAKE,
            env={"PATH": os.defpath, **environment, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def inspected(self) -> dict[str, Any]:
        return {
            "Id": self.id,
            "Config": {"Tty": False, **self.config},
            "State": {"Status": "running"},
            "NetworkSettings": {"Ports": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(self.port)}]}},
        }

    def end(self) -> int:
        if self.process is None:
            return 0
        self.process.terminate()
        return self.process.wait()


class Engine:
    """`images` are those it holds; `pullable` those of its registry."""

    def __init__(
        self, path: Path, *, images: set[str], pullable: set[str] | None = None, gpus: bool = False
    ) -> None:
        self.images = images
        self.pullable = pullable or set()
        self.gpus = gpus
        self.scratch = path.parent / "engine"
        self.containers: dict[str, Container] = {}
        self.created: list[Container] = []
        self.url = f"unix://{path}"
        engine = self

        class Handler(_Handler):
            def answer(self, method: str) -> None:
                engine.answer(self, method)

        self._server = _Server(str(path), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        for container in self.created:
            container.end()
            if container.process is not None and container.process.stdout is not None:
                container.process.stdout.close()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: _Handler, method: str) -> None:
        parts = urlsplit(request.path)
        found = _PATH.fullmatch(parts.path)
        path = unquote(found[1] if found else parts.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fixed: dict[str, Callable[[], None]] = {
            "/_ping": lambda: request.send(200, "OK"),
            "/version": lambda: request.send(200, {"ApiVersion": "1.47", "MinAPIVersion": "1.24"}),
            "/info": lambda: request.send(200, {"Runtimes": {"nvidia": {}} if self.gpus else {"runc": {}}}),
            "/images/create": lambda: self._pull(request, f"{query['fromImage']}:{query['tag']}"),
            "/containers/create": lambda: self._create(request, json.loads(body)),
        }
        if path in fixed:
            fixed[path]()
        elif path.startswith("/images/"):
            self._image(request, path.removeprefix("/images/").removesuffix("/json"))
        else:
            _, _, name, *action = path.split("/")
            container = self.containers.get(name)
            if container is None:
                request.send(404, {"message": f"No such container: {name}"})
            else:
                self._container(request, container, f"{method} {'/'.join(action)}", query)

    def _pull(self, request: _Handler, image: str) -> None:
        if image not in self.pullable:
            request.send(404, {"message": f"pull access denied for {image}, repository does not exist"})
            return
        self.images.add(image)
        request.send(200, {"status": "Download complete"})

    def _image(self, request: _Handler, image: str) -> None:
        if image in self.images:
            request.send(200, {"Id": f"sha256:{image}", "RepoTags": [image]})
        else:
            request.send(404, {"message": f"No such image: {image}"})

    def _create(self, request: _Handler, config: dict[str, Any]) -> None:
        container = Container(len(self.created) + 1, config)
        self.created.append(container)
        self.containers[container.id] = container
        request.send(201, {"Id": container.id, "Warnings": []})

    def _container(self, request: _Handler, container: Container, what: str, query: dict[str, str]) -> None:
        match what:
            case "POST start":
                container.start(self.scratch)
                request.send(204, None)
            case "GET json":
                request.send(200, container.inspected())
            case "GET logs":
                request.stream(container)
            case "POST wait":
                code = container.process.wait() if container.process else 0
                request.send(200, {"StatusCode": code})
            case "POST stop":
                container.stop_limit_s = int(query["t"])
                container.end()
                request.send(204, None)
            case "DELETE ":
                container.end()
                del self.containers[container.id]
                request.send(204, None)
            case _:
                request.send(501, {"message": what})


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, method: str) -> None:
        raise AssertionError("an engine answers")

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_DELETE(self) -> None:
        self.answer("DELETE")

    def send(self, status: int, content: object) -> None:
        body = (
            content.encode() if isinstance(content, str) else json.dumps(content).encode() if content else b""
        )
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, container: Container) -> None:
        """Output in the engine's frames: kind, three zeros, length, content."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        output = container.process.stdout if container.process else None
        for line in output or ():
            frame = struct.pack(">BxxxL", 1, len(line)) + line
            self.wfile.write(b"%x\r\n%s\r\n" % (len(frame), frame))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        return
