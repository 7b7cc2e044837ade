"""Calls of the native routes of a real server, and their answers read in the ways tests look at them."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

from local_mode.server_process import ServerProcess

PROMPT = "Once upon a time"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        assert self.headers["content-type"] == "text/event-stream"
        lines = self.body.decode().split("\n\n")
        assert lines.pop() == ""
        return [json.loads(line.removeprefix("data: ")) for line in lines if line != ":"]


def ask(server: ServerProcess, method: str, path: str, body: object = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            named.setdefault("content-type", "application/json")
        connection.request(method, path, data, {name: value for name, value in named.items() if value})
        response = connection.getresponse()
        return Answer(
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
        )
    finally:
        connection.close()


def generate(
    server: ServerProcess, path: str = "/generate", *, stream: bool = False, **parameters: Any
) -> Answer:
    body: dict[str, Any] = {"inputs": PROMPT, "parameters": {"max_new_tokens": 6, **parameters}}
    return ask(server, "POST", path, {**body, "stream": True} if stream else body)
