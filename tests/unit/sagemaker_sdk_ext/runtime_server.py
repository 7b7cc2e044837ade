"""A tiny `sagemaker-runtime` on a local port: scripted answers, the event stream's framing, and what was asked."""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3

from sagemaker_sdk_ext import runtime_client


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Asked:
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Runtime:
    url: str
    answers: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def client(self) -> Any:
        session = boto3.session.Session(
            aws_access_key_id="test", aws_secret_access_key="test", region_name="eu-west-1"
        )
        return runtime_client(region="eu-west-1", endpoint_url=self.url, boto_session=session)


def model_error(status: int, body: object) -> Answer:
    """The platform's answer to a container's error."""
    text = body if isinstance(body, str) else json.dumps(body)
    value = {
        "Message": f"Received error ({status}) from primary with message {text!r}",
        "OriginalStatusCode": status,
        "OriginalMessage": text,
        "LogStreamArn": "arn:aws:logs:eu-west-1:123456789012:log-group:g:log-stream:s",
    }
    return Answer(json.dumps(value).encode(), 424, {"x-amzn-ErrorType": "ModelError"})


def refusal(name: str, message: str, status: int = 400) -> Answer:
    return Answer(json.dumps({"Message": message}).encode(), status, {"x-amzn-ErrorType": name})


def stream(parts: Iterable[bytes], *, content_type: str = "text/event-stream", end: bytes = b"") -> Answer:
    data = b"".join(frame({":message-type": "event", ":event-type": "PayloadPart"}, part) for part in parts)
    return Answer(
        data + end,
        headers={
            "Content-Type": "application/vnd.amazon.eventstream",
            "X-Amzn-SageMaker-Content-Type": content_type,
        },
    )


def stream_exception(name: str, message: str) -> bytes:
    headers = {":message-type": "exception", ":exception-type": name, ":content-type": "application/json"}
    return frame(headers, json.dumps({"Message": message}).encode())


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    block = b""
    for name, value in headers.items():
        block += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    prelude = struct.pack(">II", len(block) + len(payload) + 16, len(block))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + block + payload
    return message + struct.pack(">I", zlib.crc32(message))


@contextmanager
def serve() -> Iterator[Runtime]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            runtime.asked.append(Asked(self.path, headers, body))
            answer = runtime.answers.pop(0)
            self.send_response(answer.status)
            for name, value in {"x-amzn-RequestId": "aws-1", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    runtime = Runtime(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield runtime
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
