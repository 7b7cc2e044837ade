"""Stands in for the HTTP application: `/ping` tells the stage, `/stream` sends chunks until `<run_dir>/finish` exists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
        return _stream(Path(run_dir))

    return application


def _stream(run_dir: Path) -> Iterator[bytes]:
    index = 0
    while not (run_dir / "finish").exists():
        if (run_dir / "engine-gone").exists():
            yield b"data: error\n\n"
            return
        yield f"data: {index}\n\n".encode()
        index += 1
        gevent.sleep(0.05)
    yield b"data: end\n\n"
