"""Serve the demo model from the environment that runs this file, ask it everything that loads code, and keep the bytecode.

    /opt/venv/bin/python image_exercise.py [MODULE ...]

Run in the build stage, after pruning: an environment that cannot serve fails the build, and what the server imported is
compiled, so that a container does not compile it at each start while nothing else is. Standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import importlib
import json
import os
import py_compile
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

START_LIMIT_S = 120.0
STOP_LIMIT_S = 30.0
ANSWER_LIMIT_S = 60.0
# Imported only when a model comes from there, or a trace goes there.
ON_DEMAND = ("boto3", "huggingface_hub", "container.fetch_model", "container.hub_source", "container.s3_source",
             "opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk.trace.export")  # fmt: skip


class Failed(Exception):
    """What the server did instead."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def ask(port: int, method: str, path: str, body: object = None, *, status: int = 200) -> bytes:
    """The body of the answer. Raises `Failed` for another status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_LIMIT_S)
    try:
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"content-type": "application/json"})
        reply = connection.getresponse()
        content = reply.read()
    finally:
        connection.close()
    if reply.status != status:
        raise Failed(f"{method} {path}: {reply.status} {content[:500]!r}")
    return content


def wait_ready(port: int, server: subprocess.Popen[str]) -> float:
    """Seconds until /ping answers 200. Raises `Failed` when the server ends or takes too long."""
    started_s = time.monotonic()
    while time.monotonic() - started_s < START_LIMIT_S:
        if server.poll() is not None:
            raise Failed(f"the server ended with status {server.returncode} before it was ready")
        try:
            ask(port, "GET", "/ping")
        except (OSError, Failed):
            time.sleep(0.05)
        else:
            return time.monotonic() - started_s
    raise Failed(f"not ready within {START_LIMIT_S:g} s")


def exercise(port: int) -> None:
    """A plain answer, a stream, a chat held to a schema, metrics. Raises `Failed`."""
    prompt = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8}}
    if b"generated_text" not in ask(port, "POST", "/invocations", prompt):
        raise Failed("no generated_text in the answer of /invocations")
    events = ask(port, "POST", "/invocations", {**prompt, "stream": True}).decode().split("\n\n")
    last = json.loads([event for event in events if event.startswith("data:")][-1].removeprefix("data:"))
    if not last.get("generated_text"):
        raise Failed(f"the stream ends with {last}")
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}
    messages = [{"role": "user", "content": "Hi"}]
    chat = {"messages": messages, "max_tokens": 16, "response_format": response_format}
    answer = json.loads(ask(port, "POST", "/v1/chat/completions", chat))
    if (said := json.loads(answer["choices"][0]["message"]["content"])) not in ("yes", "no"):
        raise Failed(f"the chat says {said!r}, which its schema does not allow")
    ask(port, "GET", "/metrics")


def serve_once() -> float:
    """Start, exercise, stop; the seconds to readiness. Raises `Failed`."""
    port = free_port()
    settings = {
        "HF_MODEL_ID": "demo",
        "DEVICE": "cpu",
        "HOSTNAME": "127.0.0.1",
        "SAGEMAKER_BIND_TO_PORT": str(port),
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "container.entrypoint", "serve"]
    with subprocess.Popen(command, env={**environment, **settings}, cwd="/", text=True) as server:
        try:
            ready_s = wait_ready(port, server)
            exercise(port)
            server.send_signal(signal.SIGTERM)
            if server.wait(STOP_LIMIT_S) != 0:
                raise Failed(f"SIGTERM ended it with status {server.returncode}")
        finally:
            if server.poll() is None:
                server.kill()
    return ready_s


def freeze_bytecode(site_packages: Path) -> int:
    """Compile again what was imported, without a time stamp to compare: layers may change those. The number of files."""
    count = 0
    ending = f".{sys.implementation.cache_tag}.pyc"
    for compiled in site_packages.glob("**/__pycache__/*.pyc"):
        source = compiled.parent.parent / f"{compiled.name.removesuffix(ending)}.py"
        compiled.unlink()
        # Others came with a package, for other interpreters.
        if compiled.name.endswith(ending) and source.is_file():
            py_compile.compile(
                str(source), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
            )
            count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="what this image imports besides")
    options = parser.parse_args(arguments)
    try:
        ready_s = serve_once()
    except (Failed, OSError, subprocess.TimeoutExpired, ValueError) as error:
        print(f"error: the environment does not serve: {error}", file=sys.stderr)
        return 1
    for name in (*ON_DEMAND, *options.modules):
        importlib.import_module(name)
    count = freeze_bytecode(Path(sysconfig.get_path("purelib")))
    print(f"served the demo model after {ready_s:.1f} s; kept the bytecode of {count} modules")
    return 0


if __name__ == "__main__":
    sys.exit(main())
