"""A real server on the demo model's weights, and streams that note what happens to them and when."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from local_mode.server_process import ServerProcess

LIMIT_S = 60.0
StartServer = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def endless_model_dir(demo_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model without an end-of-sequence token: streams last as long as a test wants."""
    folder = tmp_path_factory.mktemp("endless") / "model"
    shutil.copytree(demo_model_dir, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        config["eos_token_id"] = []
        (folder / name).write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def server_environment(endless_model_dir: Path) -> dict[str, str]:
    """Small and quiet: one compute thread, a loopback port of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAX_", "SM_"))}
    settings = {"DEVICE": "cpu", "HOSTNAME": "127.0.0.1", "PORT": "0", "NUM_THREADS": "1"}
    return {**inherited, **settings, "MODEL_ID": str(endless_model_dir)}


@contextmanager
def serving(environment: dict[str, str], **settings: str) -> Iterator[ServerProcess]:
    """A server that is ready; stopped afterwards whatever happened."""
    with ServerProcess({**environment, **settings}) as server:
        server.wait_ready(LIMIT_S)
        yield server


def tree(server: ServerProcess) -> dict[int, str]:
    """Living processes of a server by pid, with their titles."""
    root = psutil.Process(server.pid)
    found = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
    return found


def pid_of(server: ServerProcess, title: str) -> int:
    (pid,) = [pid for pid, name in tree(server).items() if name.split(" ")[0] == title]
    return pid


def wait_until(condition: Callable[[], bool], *, limit_s: float, what: str) -> float:
    """Seconds until `condition` holds. Fails the test after `limit_s`."""
    started_s = time.monotonic()
    while not condition():
        if time.monotonic() - started_s > limit_s:
            pytest.fail(f"{what}: not within {limit_s} s")
        time.sleep(0.01)
    return time.monotonic() - started_s


@dataclass
class Stream:
    """One streaming request in a thread of its own."""

    port: int
    body: dict[str, object]
    status: int = 0
    events: list[dict[str, object]] = field(default_factory=list)
    ended_s: float | None = None
    broken: str = ""
    first_event: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return self.ended_s is not None

    @property
    def error(self) -> object:
        """The in-band error that ended the stream, or None."""
        return self.events[-1].get("error") if self.events else None

    @property
    def complete(self) -> bool:
        return bool(self.events) and self.events[-1].get("generated_text") is not None

    def join(self, timeout_s: float = LIMIT_S) -> None:
        self._thread.join(timeout_s)
        assert self.ended, "the stream never ended"

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            connection.request(
                "POST", "/generate_stream", json.dumps(self.body), {"content-type": "application/json"}
            )
            response = connection.getresponse()
            self.status = response.status
            if self.status != 200:
                self.events.append(json.loads(response.read()))
                return
            while line := response.readline():
                if line.startswith(b"data:"):
                    self.events.append(json.loads(line[5:]))
                    self.first_event.set()
        except (OSError, http.client.HTTPException) as error:
            self.broken = repr(error)
        finally:
            connection.close()
            self.ended_s = time.monotonic()
            self.first_event.set()


def story(max_new_tokens: int, *, seed: int = 0) -> dict[str, object]:
    parameters = {"max_new_tokens": max_new_tokens, "do_sample": True, "seed": seed}
    return {"inputs": "Once upon a time", "parameters": parameters}


def metric(server: ServerProcess, name: str) -> float:
    """A gauge or counter without labels from `/metrics`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        for line in connection.getresponse().read().decode().splitlines():
            if line.split(" ")[0] == name:
                return float(line.split(" ")[1])
    finally:
        connection.close()
    raise AssertionError(f"no metric {name}")
