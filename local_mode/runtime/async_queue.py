"""Accepted asynchronous requests, in the order of their arrival; on disk when there is a folder for them.

A request is on disk before its acceptance is answered, and leaves it when its result is written: after a restart of the
emulator it is asked again, so that an interrupted one may reach its container twice.
"""

from __future__ import annotations

import json
import os
import uuid
from bisect import insort
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncRequest:
    endpoint: str
    inference_id: str
    arrived_s: float
    """Seconds since the epoch."""
    ttl_s: int
    timeout_s: int
    input_location: str | None
    """None: the body came with the request."""
    output_location: str
    failure_location: str
    container_headers: tuple[tuple[str, str], ...]
    key: str = ""
    """Its name in the folder; sorts by arrival."""


class AsyncQueue:
    """One queue for each endpoint."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._waiting: dict[str, list[AsyncRequest]] = {}
        self._bodies: dict[str, bytes] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.json")):
                self._append(_read(path))

    @property
    def endpoints(self) -> list[str]:
        """Those for which something waits."""
        return [endpoint for endpoint, waiting in self._waiting.items() if waiting]

    def add(self, request: AsyncRequest, body: bytes | None) -> None:
        """`request` has its key."""
        if self._folder is None:
            self._bodies[request.key] = body or b""
        else:
            if body is not None:
                _write(self._folder / f"{request.key}.body", body)
            _write(self._folder / f"{request.key}.json", json.dumps(asdict(request)).encode())
        self._append(request)

    def body(self, request: AsyncRequest) -> bytes:
        if self._folder is None:
            return self._bodies[request.key]
        return (self._folder / f"{request.key}.body").read_bytes()

    def take(self, endpoint: str, num_requests: int) -> list[AsyncRequest]:
        """The oldest, at most so many. They stay on disk until `forget`."""
        waiting = self._waiting.get(endpoint, [])
        taken = waiting[: max(0, num_requests)]
        del waiting[: len(taken)]
        return taken

    def take_expired(self, endpoint: str, now_s: float) -> list[AsyncRequest]:
        waiting = self._waiting.get(endpoint, [])
        expired = [request for request in waiting if now_s - request.arrived_s > request.ttl_s]
        for request in expired:
            waiting.remove(request)
        return expired

    def put_back(self, request: AsyncRequest) -> None:
        insort(self._waiting[request.endpoint], request, key=lambda waiting: waiting.key)

    def forget(self, request: AsyncRequest) -> None:
        """It has been answered."""
        self._bodies.pop(request.key, None)
        if self._folder is not None:
            (self._folder / f"{request.key}.json").unlink(missing_ok=True)
            (self._folder / f"{request.key}.body").unlink(missing_ok=True)

    def _append(self, request: AsyncRequest) -> None:
        self._waiting.setdefault(request.endpoint, []).append(request)


def new_key(arrived_s: float) -> str:
    return f"{arrived_s:017.6f}-{uuid.uuid4().hex}"


def _read(path: Path) -> AsyncRequest:
    document = json.loads(path.read_bytes())
    headers = tuple((name, value) for name, value in document.pop("container_headers"))
    return AsyncRequest(container_headers=headers, **document)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: a half-written request must not be read after a crash."""
    partial = path.with_suffix(path.suffix + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
