"""The engine process as PID 1 and the fronts see it: stages, streams, and every way it can end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from serving.config import ENGINE_SOCKET, RUN_CONFIG_FILE, ServerConfig
from serving.errors import GenerationFailed, InvalidRequest, Overloaded, SessionRefused
from serving.ipc.channel import encode_frame
from serving.ipc.client import EngineClient, OutputStream
from serving.messages import (
    AddRequest,
    CommandReply,
    EngineReady,
    LoadAdapter,
    RequestAccepted,
    SequenceOutput,
    UnloadAdapter,
)
from serving.sampling_params import SamplingParams
from tests.unit.ipc.fakes import RawFront, wait_for

ROOT = Path(__file__).parents[3]


@dataclass(slots=True)
class Engine:
    process: subprocess.Popen[str]
    run_dir: Path
    stage_fd: int
    clients: list[EngineClient] = field(default_factory=list)

    def client(self, front_id: str = "front") -> EngineClient:
        client = EngineClient(self.run_dir / ENGINE_SOCKET, front_id)
        self.clients.append(client)
        client.start()
        client.wait_ready(10.0)
        return client

    def end(self, timeout_s: float = 10.0) -> tuple[int, str, list[tuple[str, str]]]:
        """Exit status, what it logged, and its stages with their details."""
        output, _ = self.process.communicate(timeout=timeout_s)
        with os.fdopen(os.dup(self.stage_fd)) as stages:
            lines = [json.loads(line) for line in stages]
        return self.process.returncode, output, [(line["stage"], line.get("detail", "")) for line in lines]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    started: list[Engine] = []

    def start_engine(script: str = "demo") -> Engine:
        run_dir = tmp_path / "run"
        run_dir.mkdir(mode=0o700)
        (run_dir / RUN_CONFIG_FILE).write_bytes(msgspec.json.encode(ServerConfig()))
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.unit.engine.engine_main"),
                *("--run-dir", str(run_dir), "--model-dir", "/models/demo", "--model-id", script),
                *("--stage-fd", str(writer)),
            ],
            pass_fds=(writer,),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        os.close(writer)
        started.append(Engine(process, run_dir, reader))
        return started[-1]

    yield start_engine
    for engine in started:
        for client in engine.clients:
            client.close()
        engine.process.kill()
        engine.process.communicate()
        os.close(engine.stage_fd)


def submit(client: EngineClient, *, max_new_tokens: int | None = None) -> OutputStream:
    params = SamplingParams(max_new_tokens=max_new_tokens)
    request = AddRequest(request_id=client.next_request_id(), prompt_token_ids=[1], params=params)
    stream = client.submit(request)
    assert stream.get(5.0) == RequestAccepted(request_id=request.request_id), (
        "accepted before the first output"
    )
    return stream


def drain(stream: OutputStream) -> tuple[list[int], str | None]:
    tokens: list[int] = []
    while True:
        item = stream.get(5.0)
        assert isinstance(item, SequenceOutput)
        tokens += item.token_ids
        if item.finish_reason is not None:
            return tokens, item.finish_reason


def error_of(stream: OutputStream) -> str:
    with pytest.raises(GenerationFailed) as caught:
        drain(stream)
    return caught.value.message


def test_serves_two_fronts_and_stops(start: Callable[..., Engine]) -> None:
    engine = start()
    first, second = engine.client("api-1"), engine.client("api-2")
    streams = [submit(client, max_new_tokens=20) for client in (first, second) for _ in range(8)]
    assert [drain(stream) for stream in streams] == [(list(range(20)), "length")] * 16
    assert first.stats(5.0).num_steps >= 20
    engine.process.send_signal(signal.SIGTERM)
    status, output, stages = engine.end()
    assert status == 0
    assert stages == [("loading", "1/2"), ("warm-up", ""), ("ready", "")]
    assert "stopped" in output and "core closed" in output
    assert not (engine.run_dir / ENGINE_SOCKET).exists()


def test_refusal_names_the_field(start: Callable[..., Engine]) -> None:
    client = start().client()
    stream = client.submit(
        AddRequest(request_id=client.next_request_id(), prompt_token_ids=[], params=SamplingParams())
    )
    with pytest.raises(InvalidRequest, match="at least 1 token") as caught:
        stream.get(5.0)
    assert caught.value.field == "inputs"
    assert drain(submit(client, max_new_tokens=3)) == ([0, 1, 2], "length")


def test_adapter_commands_are_refused_by_name(start: Callable[..., Engine]) -> None:
    engine = start()
    engine.client()
    front = RawFront(engine.run_dir / ENGINE_SOCKET, "raw")
    for nonce, command in enumerate(
        (LoadAdapter(nonce=0, name="a", source="s"), UnloadAdapter(nonce=1, name="a"))
    ):
        front.sock.sendall(encode_frame(command))
        if nonce == 0:
            assert isinstance(front.receive(), EngineReady)
        reply = front.receive()
        assert isinstance(reply, CommandReply) and reply.nonce == nonce
        assert reply.error is not None and reply.error.field == "adapter_id"
    front.sock.close()


def test_abort_ends_the_stream(start: Callable[..., Engine]) -> None:
    client = start().client()
    stream = submit(client)
    client.abort(stream.request_ids[0])
    assert drain(stream)[1] == "abort"


def test_end_of_a_front_ends_its_requests_only(start: Callable[..., Engine]) -> None:
    engine = start()
    leaving, staying = engine.client("leaving"), engine.client("staying")
    stream = submit(staying)
    for _ in range(4):
        submit(leaving)
    assert staying.stats(5.0).num_running == 5
    leaving.close()
    deadline = time.monotonic() + 5.0
    while staying.stats(5.0).num_running != 1:
        assert time.monotonic() < deadline
    assert isinstance(stream.get(5.0), SequenceOutput)


def test_pings_are_answered_between_steps(start: Callable[..., Engine]) -> None:
    client = start("slow").client()
    submit(client)
    started_s = time.monotonic()
    num_steps = [client.stats(5.0).num_steps for _ in range(3)]
    assert time.monotonic() - started_s < 3.0
    assert num_steps == sorted(num_steps)
    assert client.healthy() == (True, "")


def test_idle_engine_sleeps(start: Callable[..., Engine]) -> None:
    engine = start()
    client = engine.client()
    drain(submit(client, max_new_tokens=5))
    num_steps = client.stats(5.0).num_steps
    assert client.stats(5.0).num_steps == num_steps, "no steps without work"


def test_sigterm_ends_running_streams_with_an_error(start: Callable[..., Engine]) -> None:
    engine = start()
    client = engine.client()
    streams = [submit(client) for _ in range(8)]
    engine.process.send_signal(signal.SIGINT)  # a Ctrl-C for PID 1: not for us
    client.stats(5.0)
    engine.process.send_signal(signal.SIGTERM)
    assert {error_of(stream) for stream in streams} == {"the server is stopping"}
    assert engine.end()[0] == 0


def test_kill_ends_every_stream_within_half_a_second(start: Callable[..., Engine]) -> None:
    engine = start()
    client = engine.client()
    streams = [submit(client) for _ in range(64)]
    reasons: list[str] = []
    threads = [threading.Thread(target=lambda s=stream: reasons.append(error_of(s))) for stream in streams]
    for thread in threads:
        thread.start()
    started_s = time.monotonic()
    engine.process.kill()
    for thread in threads:
        thread.join(timeout=5.0)
    assert time.monotonic() - started_s < 0.5
    assert reasons == ["the engine stopped unexpectedly"] * 64


def test_failing_step_ends_everything_once_and_tells_pid_1(start: Callable[..., Engine]) -> None:
    engine = start("step-fails")
    client = engine.client()
    streams = [
        client.submit(
            AddRequest(request_id=client.next_request_id(), prompt_token_ids=[1], params=SamplingParams())
        )
        for _ in range(3)
    ]
    assert {error_of_any(stream) for stream in streams} == {"the engine failed"}
    status, output, stages = engine.end()
    assert status == 1
    assert stages[-1] == ("failed", "RuntimeError: secret /path\nand a second line")
    assert output.count("Traceback") == 1
    assert "engine failed: secret /path" in output


def error_of_any(stream: OutputStream) -> str:
    """The terminal error, whether or not the request had been accepted."""
    with pytest.raises(GenerationFailed) as caught:
        while True:
            stream.get(5.0)
    return caught.value.message


def test_a_thread_that_dies_ends_the_engine(start: Callable[..., Engine]) -> None:
    engine = start("thread-dies")
    stream = submit(engine.client())
    assert error_of(stream) == "the engine failed"
    status, log, _ = engine.end()
    assert status == 1
    assert "pop from empty list" in log


def test_lost_blocks_are_found_when_idle(start: Callable[..., Engine]) -> None:
    engine = start("check-fails")
    drain(submit(engine.client(), max_new_tokens=3))
    status, output, _ = engine.end()
    assert status == 1 and "2 blocks are lost" in output


@pytest.mark.parametrize(
    ("script", "detail", "tracebacks"),
    [
        ("boot-fails", "config.json has no `model_type`: is this a model folder?", 0),
        ("boot-breaks", "KeyError: 'rope'", 1),
    ],
)
def test_failing_boot_is_one_stage(
    start: Callable[..., Engine], script: str, detail: str, tracebacks: int
) -> None:
    engine = start(script)
    status, output, stages = engine.end()
    assert status == 1
    assert stages == [("loading", "1/2"), ("warm-up", ""), ("failed", detail)]
    assert output.count("Traceback") == tracebacks
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("busy", [False, True])
def test_death_of_a_rank_ends_the_engine(start: Callable[..., Engine], busy: bool) -> None:
    """Idle, or inside a step that will never return."""
    engine = start("ranks")
    client = engine.client()
    streams = [submit(client) for _ in range(4)] if busy else []
    rank_pid = int((engine.run_dir / "rank.pid").read_text())
    started_s = time.monotonic()
    os.kill(rank_pid, signal.SIGKILL)
    assert {error_of(stream) for stream in streams} == ({"a rank of the engine died"} if busy else set())
    status, output, stages = engine.end()
    assert time.monotonic() - started_s < 1.0
    assert status == 1
    assert stages[-1] == ("failed", "rank 1 was ended by SIGKILL")
    assert output.count("engine failed") == 1 and "Traceback" not in output


def test_engine_does_not_outlive_its_parent(tmp_path: Path, start: Callable[..., Engine]) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    (run_dir / RUN_CONFIG_FILE).write_bytes(msgspec.json.encode(ServerConfig()))
    script = (
        "import subprocess, sys, threading\n"
        "engine = subprocess.Popen([sys.executable, '-m', 'tests.unit.engine.engine_main', *sys.argv[1:]])\n"
        "print(engine.pid, flush=True)\n"
        "threading.Event().wait()"
    )
    arguments = ["--run-dir", str(run_dir), "--model-dir", "/m", "--model-id", "demo"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        client = EngineClient(run_dir / ENGINE_SOCKET, "front")
        client.start()
        client.wait_ready(10.0)
        started_s = time.monotonic()
        parent.kill()
        while client.healthy()[0]:
            assert time.monotonic() - started_s < 2.0
            time.sleep(0.005)
        client.close()


def test_sessions_belong_to_the_engine_and_expire_while_it_idles(start: Callable[..., Engine]) -> None:
    engine = start()
    one, other = engine.client("one"), engine.client("other")
    before_s = time.time()
    first, second = one.open_session(5.0), one.open_session(5.0)
    assert before_s + 0.4 <= first.expires_at_s <= time.time() + 0.6
    with pytest.raises(Overloaded, match="MAX_SESSIONS"):
        other.open_session(5.0)
    request_id = other.next_request_id()
    turn = AddRequest(
        request_id=request_id,
        prompt_token_ids=[1],
        params=SamplingParams(max_new_tokens=2),
        session_id=first.session_id,
    )
    with other.submit(turn) as stream:
        assert isinstance(stream.get(5.0), RequestAccepted)
        assert drain(stream) == ([0, 1], "length")
    other.close_session(second.session_id, 5.0)
    with pytest.raises(SessionRefused, match="session not found"):
        one.close_session(second.session_id, 5.0)
    wait_for(lambda: time.time() > first.expires_at_s + 0.05)
    late = msgspec.structs.replace(turn, request_id=one.next_request_id())
    with one.submit(late) as stream, pytest.raises(SessionRefused, match="session not found"):
        stream.get(5.0)
    engine.process.terminate()
    assert engine.end()[0] == 0
