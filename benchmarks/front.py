"""The front alone, over an engine stand-in: what a token and a request cost it, and how much later they arrive.

    python -m benchmarks.front                                # everything, to benchmarks/results/DATE-front.json
    python -m benchmarks.front --only streams --streams 1000

Tokens per second and core are those of the gunicorn workers by their processor time, from the moment when all streams run
to the one when the first is about to end. Steps at a pace leave a worker idle in between: it reads one step at a time, and
writes to each stream once per step (`tokens_per_read` at the client tells). `as fast as they go` keeps it busy, so that
steps which piled up leave together.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks import machine
from benchmarks.front_client import StreamsClient, Window, request_bytes, request_times
from container.processes import api_command, serving_environment
from serving.config import (
    RUN_CONFIG_FILE,
    STAGE_FILE,
    HttpConfig,
    LimitsConfig,
    ModelConfig,
    ServerConfig,
    Stage,
)

MODEL_DIR = Path(__file__).parents[1] / "local_mode" / "demo_model"
RESULTS = Path(__file__).with_name("results")
APPLICATION = "serving.api.wsgi:build"
PROMPT = "Once upon a time there was a small red fox"
LONG_PROMPT = (PROMPT + ". ") * 2500  # some 30k tokens, which take a while to be tokenized
PARTS = ("streams", "latency", "requests", "tokenizing")

_START_LIMIT_S = 60.0
_SKIPPED_EVENTS = 8
_FEW_STREAMS = ((1, 250.0), (16, 60.0))  # and tokens/s of each, as a small model on a host gives them
_CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


class Measured(msgspec.Struct, kw_only=True):
    """One measurement. Times in milliseconds unless their names say otherwise."""

    part: str
    what: str
    values: dict[str, float]


class FrontRecord(msgspec.Struct, kw_only=True):
    date: str
    commit: str
    command: list[str]
    machine: machine.Machine
    load_average_1m: float
    measured: list[Measured]


class Front:
    """A running front: its port, and the processor time of its workers."""

    def __init__(self, port: int, master_pid: int) -> None:
        self.port = port
        self._master_pid = master_pid

    def cpu_s(self) -> float:
        """Seconds on a core, all workers, to the nanosecond where the kernel tells."""
        children = Path(f"/proc/{self._master_pid}/task/{self._master_pid}/children").read_text().split()
        tasks = [task for pid in children for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def front(tokens_per_s: float, *, max_concurrent_requests: int, num_workers: int = 1) -> Iterator[Front]:
    """A gunicorn and the stand-in behind it, which gives every stream `tokens_per_s`."""
    config = ServerConfig(
        model=ModelConfig(model_id="stand-in", chat_template=_CHAT_TEMPLATE),
        limits=LimitsConfig(max_concurrent_requests=max_concurrent_requests),
        http=HttpConfig(api_workers=num_workers),
    )
    with tempfile.TemporaryDirectory(prefix="front-", dir="/tmp") as folder, socket.socket() as listener:
        run_dir = Path(folder)
        os.chmod(run_dir, 0o700)
        (run_dir / "metrics").mkdir()
        (run_dir / RUN_CONFIG_FILE).write_bytes(msgspec.json.encode(config))
        (run_dir / STAGE_FILE).write_bytes(msgspec.json.encode(Stage(stage="ready")))
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        listener.set_inheritable(True)
        stand_in = [sys.executable, "-m", "benchmarks.engine_stand_in", f"--run-dir={run_dir}"]
        stand_in += [f"--model-dir={MODEL_DIR}", f"--tokens-per-s={tokens_per_s}"]
        gunicorn = api_command(config, run_dir, listener_fd=listener.fileno(), application=APPLICATION)
        processes = [
            subprocess.Popen(stand_in),
            subprocess.Popen(
                gunicorn,
                env=serving_environment(config, dict(os.environ), run_dir),
                pass_fds=[listener.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a line per request
            ),
        ]
        try:
            port = listener.getsockname()[1]
            _wait_ready(port)
            yield Front(port, processes[1].pid)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


def _wait_ready(port: int) -> None:
    end_s = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < end_s:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if sock.recv(4096).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.05)
    raise SystemExit(f"the front did not become ready within {_START_LIMIT_S:g} s")


def stream_request(route: str, num_tokens: int, prompt: str = PROMPT) -> bytes:
    if route == "/v1/chat/completions":
        messages = [{"role": "user", "content": prompt}]
        return request_bytes(route, {"messages": messages, "max_tokens": num_tokens, "stream": True})
    body = {"inputs": prompt, "parameters": {"max_new_tokens": num_tokens}}
    return request_bytes(route, body if route == "/generate_stream" else {**body, "stream": True})


def measure_streams(
    options: argparse.Namespace, route: str, *, tokens_per_s: float, num_tokens: int
) -> Measured:
    with front(tokens_per_s, max_concurrent_requests=options.streams + 8, num_workers=options.workers) as one:
        client = StreamsClient(
            one.port,
            stream_request(route, num_tokens),
            num_streams=options.streams,
            num_events=num_tokens,
            skipped=_SKIPPED_EVENTS,
            # All at once, streams at a pace would be catching up for as long as they are looked at.
            opening_s=options.seconds / 4 if tokens_per_s else 0.0,
        )
        with pinged(one.port) if options.ping else nullcontext([]) as pings:
            window = client.run(one.cpu_s)
    pace = f"{tokens_per_s:g} tokens/s each" if tokens_per_s else "as fast as they go"
    values = _stream_values(window) | _quantiles("ping", pings)
    return Measured(part="streams", what=f"{options.streams} x {route}, {pace}", values=values)


@contextmanager
def pinged(port: int) -> Iterator[list[float]]:
    """Seconds that `/ping` took meanwhile, again and again; they are there afterwards."""
    command = [sys.executable, "-m", "benchmarks.pinger", str(port)]
    pinger = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pings: list[float] = []
    try:
        yield pings
    finally:
        output, _ = pinger.communicate()
    if pinger.returncode:
        raise SystemExit("/ping did not answer 200 throughout")
    pings += json.loads(output)


def _stream_values(window: Window) -> dict[str, float]:
    if not window.num_tokens or window.cpu_s <= 0:
        raise SystemExit(
            "the first stream ended before all of them ran: give them more tokens (--burst-tokens, --seconds)"
        )
    return {
        "tokens_per_core_s": window.num_tokens / window.cpu_s,
        "us_per_token": 1e6 * window.cpu_s / window.num_tokens,
        "tokens_per_s": window.num_tokens / window.wall_s,
        "tokens_per_read": window.num_tokens / window.num_reads,
        "cores_busy": window.cpu_s / window.wall_s,
    } | _quantiles("step_to_client", window.path_s)


def measure_latency(seconds: float = 3.0) -> Iterator[Measured]:
    """Few streams, where a token costs a whole turn of the front: what it takes of the engine's cores, and how late tokens
    are. And whole requests for one token."""
    for num_streams, tokens_per_s in _FEW_STREAMS:
        num_tokens = int(tokens_per_s * seconds)
        with front(tokens_per_s, max_concurrent_requests=num_streams + 8) as one:
            client = StreamsClient(
                one.port,
                stream_request("/generate_stream", num_tokens),
                num_streams=num_streams,
                num_events=num_tokens,
                skipped=_SKIPPED_EVENTS,
            )
            window = client.run(one.cpu_s)
        what = f"{num_streams} x /generate_stream, {tokens_per_s:g} tokens/s each"
        yield Measured(part="latency", what=what, values=_stream_values(window))
    prompt = PROMPT * 12  # about 128 tokens
    body = {"inputs": prompt, "parameters": {"max_new_tokens": 1}}
    with front(0.0, max_concurrent_requests=8) as one:
        for route in ("/generate", "/invocations"):
            taken_s = request_times(one.port, request_bytes(route, body), num_connections=1, seconds=2.0)
            yield Measured(
                part="latency", what=f"whole {route}, one token", values=_quantiles("request", taken_s)
            )


def measure_requests(seconds: float = 2.0) -> Iterator[Measured]:
    """Requests that say little, eight at a time on connections that stay."""
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 4}}
    with front(0.0, max_concurrent_requests=64) as one:
        for what, request in (
            ("/ping", request_bytes("/ping")),
            ("/generate", request_bytes("/generate", body)),
        ):
            before_s, began_s = one.cpu_s(), time.monotonic()
            taken_s = request_times(one.port, request, num_connections=8, seconds=seconds)
            wall_s, cpu_s = time.monotonic() - began_s, one.cpu_s() - before_s
            values = {
                "requests_per_core_s": len(taken_s) / cpu_s,
                "requests_per_s": len(taken_s) / wall_s,
                "cpu_us_per_request": 1e6 * cpu_s / len(taken_s),
            }
            yield Measured(part="requests", what=what, values=values | _quantiles("request", taken_s))


def measure_tokenizing(seconds: float = 4.0) -> Measured:
    """`/ping` beside four clients that send one long prompt after the other."""
    body = {"inputs": LONG_PROMPT, "parameters": {"max_new_tokens": 1}}
    with front(0.0, max_concurrent_requests=64) as one, pinged(one.port) as pings:
        taken_s = request_times(
            one.port, request_bytes("/generate", body), num_connections=4, seconds=seconds
        )
    values = _quantiles("ping", pings) | _quantiles("request", taken_s)
    return Measured(part="tokenizing", what=f"4 x /generate of {len(LONG_PROMPT)} characters", values=values)


def _quantiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        f"{name}_p50_ms": 1e3 * statistics.median(ordered),
        f"{name}_p99_ms": 1e3 * ordered[math.ceil(0.99 * len(ordered)) - 1],
        f"{name}_max_ms": 1e3 * ordered[-1],
    }


def measure(options: argparse.Namespace) -> Iterator[Measured]:
    parts = options.only or PARTS
    if "streams" in parts:
        for route in options.routes:
            if options.tokens_per_s:
                num_tokens = max(40, int(options.tokens_per_s * options.seconds))
                yield measure_streams(
                    options, route, tokens_per_s=options.tokens_per_s, num_tokens=num_tokens
                )
            yield measure_streams(options, route, tokens_per_s=0.0, num_tokens=options.burst_tokens)
    if "latency" in parts:
        yield from measure_latency()
    if "requests" in parts:
        yield from measure_requests()
    if "tokenizing" in parts:
        yield measure_tokenizing()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens-per-s", type=float, default=40.0, help="per stream, of the paced run")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a paced run")
    parser.add_argument("--ping", action="store_true", help="ask /ping beside the streams")
    parser.add_argument("--burst-tokens", type=int, default=600, help="per stream, of the run without pause")
    parser.add_argument("--workers", type=int, default=1, help="gunicorn workers")
    parser.add_argument(
        "--routes",
        nargs="+",
        default=["/generate_stream", "/invocations", "/v1/chat/completions"],
    )
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument(
        "--output", type=Path, help="JSON file; by default a dated one, when everything is measured"
    )
    return parser


def main() -> int:
    options = _parser().parse_args()
    now = datetime.now(UTC)
    record = FrontRecord(
        date=now.isoformat(timespec="seconds"),
        commit=machine.commit(),
        command=[Path(part).name if Path(part).is_absolute() else part for part in sys.argv[1:]],
        machine=machine.describe(),
        load_average_1m=os.getloadavg()[0],
        measured=[],
    )
    output = options.output or (None if options.only else RESULTS / f"{now:%Y-%m-%d}-front.json")
    for measured in measure(options):
        record.measured.append(measured)
        values = " ".join(f"{name}={value:.4g}" for name, value in measured.values.items())
        print(f"{measured.what}: {values}", flush=True)
        if output is not None:  # what is stopped keeps what was measured
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
