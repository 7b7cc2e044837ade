"""Stands in for the HTTP application: `/ping` from the published stage, `/stream?n=…` sends n chunks 50 ms apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gevent


def build(run_dir: str) -> Callable[..., Any]:
    stage_file = Path(run_dir) / "stage.json"

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        stage = json.loads(stage_file.read_bytes())
        if environ["PATH_INFO"] == "/ping" or stage["stage"] != "ready":
            status = "200 OK" if stage["stage"] == "ready" else "503 Service Unavailable"
            body = json.dumps({**stage, "run_dir": run_dir}).encode()
            start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
            return [body]
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return _stream(int(parse_qs(environ["QUERY_STRING"])["n"][0]), Path(run_dir) / "engine-gone")

    return application


def _stream(num_chunks: int, engine_gone: Path) -> Iterator[bytes]:
    for index in range(num_chunks):
        if engine_gone.exists():
            yield b"data: error\n\n"
            return
        yield f"data: {index}\n\n".encode()
        gevent.sleep(0.05)
    yield b"data: end\n\n"
