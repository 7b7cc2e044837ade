"""What clients and the platform see when a process dies, the container is stopped, or clients leave."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from local_mode.server_process import ServerProcess
from tests.e2e.conftest import Stream, metric, pid_of, serving, story, tree, wait_until


def _streams(server: ServerProcess, count: int, tokens: int) -> list[Stream]:
    """Streams that have all seen their first token."""
    streams = [Stream(server.port, story(tokens, seed=index)) for index in range(count)]
    for stream in streams:
        assert stream.first_event.wait(30) and stream.status == 200, stream.events
    return streams


@pytest.mark.parametrize(("title", "ranks"), [("engine", "1"), ("engine", "2"), ("worker-tp1", "2")])
def test_kill_9_ends_every_stream_and_the_container(
    server_environment: dict[str, str], full: bool, title: str, ranks: str
) -> None:
    """Within 2 s all 16 streams hold a terminal error and /ping is 503; within 15 s the container has ended with a
    non-zero status, without orphans."""
    for _ in range(5 if full else 1):
        with serving(server_environment, SM_NUM_GPUS=ranks, MAX_TOTAL_TOKENS="2048") as server:
            streams = _streams(server, 16, 1500)
            processes = [psutil.Process(pid) for pid in tree(server)]
            killed_s = time.monotonic()
            os.kill(pid_of(server, title), signal.SIGKILL)
            unhealthy_s = wait_until(lambda: server.ping()[0] != 200, limit_s=2.0, what="/ping unhealthy")
            for stream in streams:
                stream.join()
            slowest_s = max(stream.ended_s or 0.0 for stream in streams) - killed_s
            assert all(stream.error and not stream.broken for stream in streams), [s.broken for s in streams]
            assert slowest_s < 2.0
            assert server.wait(15.0) != 0
            ended_s = time.monotonic() - killed_s
            _wait_gone(processes)
            print(
                f"{title}/{ranks}: 503 {unhealthy_s:.2f} s, streams {slowest_s:.2f} s, exit {ended_s:.2f} s"
            )


def _wait_gone(processes: list[psutil.Process]) -> None:
    wait_until(lambda: not any(_alive(process) for process in processes), limit_s=5.0, what="no orphans")


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_kill_9_of_pid_1_leaves_no_orphans(server_environment: dict[str, str]) -> None:
    with serving(server_environment, SM_NUM_GPUS="2") as server:
        processes = [psutil.Process(pid) for pid in tree(server)]
        assert len(processes) >= 4
        os.kill(server.pid, signal.SIGKILL)
        _wait_gone(processes)


def test_sigterm_lets_32_streams_finish(server_environment: dict[str, str]) -> None:
    with serving(server_environment) as server:
        streams = _streams(server, 32, 60)
        started_s = time.monotonic()
        server.terminate()
        wait_until(lambda: server.ping()[0] in (503, 0), limit_s=1.0, what="/ping unhealthy")
        late = Stream(server.port, story(5))
        late.join()
        assert late.status in (503, 0), "new work was accepted while draining"
        for stream in streams:
            stream.join()
        assert server.wait(25.0) == 0
        assert time.monotonic() - started_s < 25.0
        unfinished = [stream.events[-1] for stream in streams if not stream.complete]
        assert unfinished == []


def test_sigterm_ends_what_is_left_with_an_error(server_environment: dict[str, str]) -> None:
    """Streams that cannot finish in time end in band, not by a cut."""
    with serving(server_environment, GRACEFUL_TERMINATION_TIMEOUT="5") as server:
        streams = _streams(server, 8, 1900)
        started_s = time.monotonic()
        server.terminate()
        for stream in streams:
            stream.join()
        assert server.wait(25.0) == 0
        assert time.monotonic() - started_s < 10.0
        assert all(stream.error and not stream.broken for stream in streams), [s.events[-1:] for s in streams]


@pytest.fixture(scope="module")
def server(server_environment: dict[str, str]) -> Iterator[ServerProcess]:
    with serving(server_environment) as server:
        yield server


def _leave(server: ServerProcess, rng: random.Random, number: int) -> None:
    """Ask for more than can be generated in time and close the connection at a random moment."""
    body = story(1900, seed=number)
    path = rng.choice(["/generate", "/generate_stream", "/invocations"])
    if path == "/invocations":
        body["stream"] = rng.random() < 0.5
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + payload)
        moment = rng.random()
        if moment > 0.3:
            connection.settimeout(rng.uniform(0.0, 0.3) + 1e-3)
            try:
                while connection.recv(rng.randrange(1, 4096)):
                    if rng.random() < 0.2:
                        break
            except TimeoutError:
                pass


def test_disconnects_free_everything_within_half_a_second(server: ServerProcess, full: bool) -> None:
    rng = random.Random(11)
    waits = []
    for number in range(200 if full else 25):
        _leave(server, rng, number)
        waits.append(wait_until(lambda: _idle(server), limit_s=0.5 + 0.1, what=f"disconnect {number} freed"))
    assert metric(server, "textgen_kv_blocks_free") == metric(server, "textgen_kv_blocks")
    print(f"{len(waits)} disconnects: p50 {statistics.median(waits):.3f} s, max {max(waits):.3f} s")


def _idle(server: ServerProcess) -> bool:
    return metric(server, "tgi_batch_current_size") == metric(server, "tgi_queue_size") == 0


def test_disconnects_under_load_leak_nothing_and_disturb_nobody(server: ServerProcess, full: bool) -> None:
    rng = random.Random(12)
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 40}}
    alone = Stream(server.port, body)
    alone.join()
    leaving = [
        threading.Thread(target=_leave, args=(server, random.Random(rng.random()), number))
        for number in range(200 if full else 24)
    ]
    staying = []
    for number, thread in enumerate(leaving):
        thread.start()
        if number % 8 == 0:
            staying.append(Stream(server.port, body))
    for thread in leaving:
        thread.join()
    for stream in staying:
        stream.join()
        assert stream.status == 200 or stream.status == 429
        if stream.status == 200:
            assert stream.events[-1]["generated_text"] == alone.events[-1]["generated_text"]
    wait_until(lambda: _idle(server), limit_s=2.0, what="idle")
    assert metric(server, "textgen_kv_blocks_free") == metric(server, "textgen_kv_blocks")
    started, ended = metric(server, "textgen_sequences"), 0.0
    for outcome in ("finished", "failed", "aborted"):
        ended += metric(server, f"textgen_sequences_{outcome}")
    assert started == ended


def test_stalled_rank_makes_ping_unhealthy_and_a_busy_engine_does_not(
    server_environment: dict[str, str],
) -> None:
    """SIGSTOP of a rank: within the stall limit plus 2 s /ping is 503. Before that, 20 busy streams never made it so."""
    with serving(server_environment, SM_NUM_GPUS="2") as server:
        streams = _streams(server, 20, 60)
        while not all(stream.ended for stream in streams):
            assert server.ping()[0] == 200
        limit_s = float(server.wait_log(r"stall_limit_s=([\d.]+)", limit_s=1.0)[1])
        os.kill(pid_of(server, "worker-tp1"), signal.SIGSTOP)
        Stream(server.port, story(50))
        wait_until(
            lambda: server.ping()[0] == 503, limit_s=limit_s + 2.0, what="/ping unhealthy after a stall"
        )
        assert "engine" in server.ping()[1]
        os.kill(pid_of(server, "worker-tp1"), signal.SIGCONT)
        wait_until(lambda: server.ping()[0] == 200, limit_s=5.0, what="healthy again")
