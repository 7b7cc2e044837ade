"""The front alone, over an engine stand-in: many slow streams at once through one gunicorn worker, with `/ping` asked
all the while; then unary requests as fast as they go.

    python -m benchmarks.front                  # 1,000 streams at 10 tokens/s each
    python -m benchmarks.front --streams 200 --tokens 50
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

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
APPLICATION = "serving.api.wsgi:build"
PROMPT = "Once upon a time there was a small red fox"
_START_LIMIT_S = 60.0


@dataclass(slots=True)
class Streams:
    """What the clients saw. Times are seconds; `ended` counts streams whose last event carries the whole text."""

    ended: int = 0
    errors: list[str] = field(default_factory=list)
    num_tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    pings_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0


@contextmanager
def front(tokens_per_s: float, max_concurrent_requests: int) -> Iterator[tuple[int, int]]:
    """A gunicorn with one worker and the stand-in behind it; yields its port and the master's pid."""
    config = ServerConfig(
        model=ModelConfig(model_id="stand-in"),
        limits=LimitsConfig(max_concurrent_requests=max_concurrent_requests),
        http=HttpConfig(api_workers=1),
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
            ),
        ]
        try:
            port = listener.getsockname()[1]
            asyncio.run(_wait_ready(port))
            yield port, processes[1].pid
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


async def run_streams(port: int, *, num_streams: int, num_tokens: int, ramp_s: float) -> Streams:
    """Open the streams evenly over `ramp_s`, ping until all have ended."""
    seen = Streams()
    pinger = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.pinger", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    started_s = time.perf_counter()
    delays_s = [ramp_s * index / num_streams for index in range(num_streams)]
    await asyncio.gather(*(_stream(port, num_tokens, seen, delay_s) for delay_s in delays_s))
    seen.wall_s = time.perf_counter() - started_s
    pings, _ = pinger.communicate()
    if pinger.returncode:
        raise SystemExit("/ping did not answer 200 throughout")
    seen.pings_s = json.loads(pings)
    return seen


async def _stream(port: int, num_tokens: int, seen: Streams, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    body = json.dumps({"inputs": PROMPT, "parameters": {"max_new_tokens": num_tokens}}).encode()
    head = "POST /generate_stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent_s = previous_s = time.perf_counter()
    writer.write(head.encode() + body)
    count, tail = 0, b""
    try:
        while b"\r\n0\r\n\r\n" not in tail:
            data = await reader.read(65536)
            if not data:
                break
            now_s = time.perf_counter()
            new = data.count(b'"index":')
            if new:
                (seen.gaps_s if count else seen.first_token_s).append(
                    now_s - (previous_s if count else sent_s)
                )
                previous_s, count = now_s, count + new
            tail = (tail + data)[-4096:]
    except ConnectionError as error:
        seen.errors.append(str(error))
    finally:
        writer.close()
    seen.num_tokens += count
    if count == num_tokens and b'"generated_text":"' in tail:
        seen.ended += 1
    else:
        seen.errors.append(f"{count} tokens, {tail[-200:]!r}")


async def _get_ping(port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return int(line.split()[1]) if line else 0


async def _wait_ready(port: int) -> None:
    async def ready() -> None:
        while await _get_ping(port) != 200:
            await asyncio.sleep(0.05)

    try:
        await asyncio.wait_for(ready(), _START_LIMIT_S)
    except TimeoutError:
        raise SystemExit(f"the front did not become ready within {_START_LIMIT_S:g} s") from None


def _worker_cpu_s(master_pid: int) -> float:
    """CPU seconds of the gunicorn worker so far."""
    children = Path(f"/proc/{master_pid}/task/{master_pid}/children").read_text().split()
    ticks = 0
    for pid in children:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def report(seen: Streams, *, num_streams: int, num_tokens: int, cpu_s: float) -> str:
    gaps = sorted(seen.gaps_s) or [0.0]
    return (
        f"streams={num_streams} ended={seen.ended} errors={len(seen.errors)} wall_s={seen.wall_s:.1f} "
        f"tokens_per_s={seen.num_tokens / seen.wall_s:.0f} front_us_per_token={1e6 * cpu_s / max(1, seen.num_tokens):.0f} "
        f"first_token_p50_s={statistics.median(seen.first_token_s or [0]):.3f} "
        f"gap_p50_s={gaps[len(gaps) // 2]:.3f} gap_p99_s={gaps[int(len(gaps) * 0.99)]:.3f} gap_max_s={gaps[-1]:.3f} "
        f"ping_p50_s={statistics.median(seen.pings_s):.4f} ping_max_s={max(seen.pings_s):.4f} pings={len(seen.pings_s)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=100, help="tokens per stream")
    parser.add_argument("--tokens-per-s", type=float, default=10.0, help="per stream; 0 = without pause")
    parser.add_argument("--ramp-s", type=float, default=4.0, help="time over which the streams are opened")
    options = parser.parse_args()
    with front(options.tokens_per_s, max_concurrent_requests=options.streams + 8) as (port, pid):
        before_s = _worker_cpu_s(pid)
        seen = asyncio.run(
            run_streams(port, num_streams=options.streams, num_tokens=options.tokens, ramp_s=options.ramp_s)
        )
        cpu_s = _worker_cpu_s(pid) - before_s
    print(report(seen, num_streams=options.streams, num_tokens=options.tokens, cpu_s=cpu_s))
    for error in seen.errors[:3]:
        print(error)
    return 0 if seen.ended == options.streams else 1


if __name__ == "__main__":
    sys.exit(main())
