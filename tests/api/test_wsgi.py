"""`serving.api.wsgi:build` as gunicorn loads it: real transport, real tokenizer, two workers, a scripted engine."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from serving.config import ENGINE_SOCKET, RUN_CONFIG_FILE, STAGE_FILE, HttpConfig, ServerConfig, Stage
from serving.ipc.server import EngineHub
from serving.messages import (
    AddRequest,
    CommandReply,
    EngineReady,
    EngineStats,
    Ping,
    RequestAccepted,
    SequenceOutput,
    StepOutputs,
)
from tests.api.fake_engine import READY

ROOT = Path(__file__).parents[2]
STATS = EngineStats(
    **{
        name: 1
        for name in EngineStats.__struct_fields__
        if name not in ("queue_s", "step", "grammar", "session")
    }
)


def write_tokenizer(directory: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "config.json").write_text("{}")


class ScriptedEngine:
    """Echoes the prompt's last token once."""

    def __init__(self, path: Path, ready: EngineReady) -> None:
        self._hub = EngineHub(path, ready)
        self._stopped = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._stopped = True
        self._hub.wake()
        self._thread.join(10)
        self._hub.close()

    def _run(self) -> None:
        while not self._stopped:
            for front_id, message in self._hub.poll(1.0):
                if isinstance(message, Ping):
                    self._hub.send(front_id, CommandReply(nonce=message.nonce, stats=STATS))
                elif isinstance(message, AddRequest):
                    self._hub.send(front_id, RequestAccepted(request_id=message.request_id))
                    output = SequenceOutput(
                        request_id=message.request_id,
                        token_ids=message.prompt_token_ids[-1:],
                        logprobs=[-0.5],
                        finish_reason="length",
                    )
                    self._hub.send(front_id, StepOutputs(outputs=[output]))


class Front:
    def __init__(self, directory: Path, listener: socket.socket) -> None:
        self.directory = directory
        self.port = listener.getsockname()[1]
        config = ServerConfig(http=HttpConfig(api_workers=2))
        (directory / RUN_CONFIG_FILE).write_bytes(msgspec.json.encode(config))
        (directory / "metrics").mkdir()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "--worker-class=gevent",
                "--workers=2",
                "--no-control-socket",
                f"--worker-tmp-dir={directory}",
                f"--bind=fd://{listener.fileno()}",
                "--log-level=error",
                f"serving.api.wsgi:build({str(directory)!r})",
            ],
            pass_fds=[listener.fileno()],
            cwd=ROOT,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics")},
        )

    def publish(self, stage: Stage) -> None:
        temporary = self.directory / "new"
        temporary.write_bytes(msgspec.json.encode(stage))
        temporary.replace(self.directory / STAGE_FILE)

    def call(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def all_loaded(self) -> bool:
        """Both workers have called `build`. Before that gunicorn's worker may miss a SIGTERM."""
        workers = self.workers()
        return len(workers) == 2 and all(
            any("metrics-slot" in path for path in open_files(pid)) for pid in workers
        )

    def metric(self, name: str) -> float:
        status, page = self.call("GET", "/metrics")
        assert status == 200
        return next(float(line.split()[1]) for line in page.splitlines() if line.split()[0] == name)


def open_files(pid: int) -> list[str]:
    try:
        return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:
        return []


@pytest.fixture
def front() -> Iterator[Front]:
    with tempfile.TemporaryDirectory(prefix="front-") as name, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        running = Front(Path(name), listener)
        try:
            yield running
        finally:
            until(lambda: running.process.poll() is not None or running.all_loaded(), "workers never loaded")
            running.process.terminate()
            running.process.wait(20)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def both_ready(front: Front) -> bool:
    """Several connections, so that each of the two workers was asked."""
    return all(front.call("GET", "/ping")[0] == 200 for _ in range(12))


def test_from_start_to_the_loss_of_the_engine(front: Front) -> None:
    status, body = front.call("GET", "/ping")
    assert (status, json.loads(body)["stage"]) == (503, "starting")
    front.publish(Stage(stage="ready"))
    assert json.loads(front.call("GET", "/ping")[1])["stage"] == "connecting"
    assert front.call("POST", "/generate", {"inputs": "a"})[0] == 503

    model_dir = front.directory / "model"
    write_tokenizer(model_dir)
    ready = msgspec.structs.replace(READY, model_dir=str(model_dir), vocab_size=256)
    engine = ScriptedEngine(front.directory / ENGINE_SOCKET, ready)
    try:
        until(lambda: both_ready(front), "the workers never became ready")
        assert json.loads(front.call("GET", "/info")[1])["model_id"] == "demo"
        counted = front.metric("tgi_request_count")
        for _ in range(20):
            answer = front.call("POST", "/generate", {"inputs": "some text é?"})
            assert answer == (200, '{"generated_text":"?"}')
        long = "x" * 50_000
        body = {"inputs": long + "!", "parameters": {"truncate": 5, "return_full_text": True}}
        assert front.call("POST", "/generate", body) == (
            200,
            json.dumps({"generated_text": long + "!!"}, separators=(",", ":")),
        )
        status, error = front.call("POST", "/generate", {"inputs": "x" * 5_000})
        assert status == 422 and "at most 200 tokens" in error
        assert front.metric("tgi_request_count") == counted + 22
        assert front.metric("tgi_request_generated_tokens_sum") == 21
        assert front.metric("textgen_engine_up") == 1

        # A worker's successor goes on counting in its file.
        victim = front.workers()[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in front.workers() and front.all_loaded(), "no new worker")
        until(lambda: both_ready(front), "the new worker never became ready")
        assert front.metric("tgi_request_success") == 21
        assert front.call("POST", "/generate", {"inputs": "a"})[0] == 200
        assert front.metric("tgi_request_success") == 22
        files = sorted(path.name for path in (front.directory / "metrics").iterdir())
        assert files == [f"{kind}_slot{n}.db" for kind in ("counter", "histogram") for n in (0, 1)]
    finally:
        engine.close()
    until(lambda: front.call("GET", "/ping")[0] == 503, "a lost engine was not noticed")
    assert front.metric("textgen_engine_up") == 0


def test_a_tokenizer_that_cannot_be_read_ends_the_server(front: Front) -> None:
    ready = msgspec.structs.replace(READY, model_dir=str(front.directory / "nothing"))
    engine = ScriptedEngine(front.directory / ENGINE_SOCKET, ready)
    try:
        assert front.process.wait(60) in (1, 4)  # 1 when both workers end at the same time
    finally:
        engine.close()
