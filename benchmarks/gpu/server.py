"""Our container on a GPU, over HTTP: `python -m benchmarks.gpu.server SHAPE FOLDER RECORD`.

Milliseconds to the first token of a prompt, of long prompts and of the same ones again, and between the tokens of one
stream; then how long the container takes from its start to the first token, beside a process that does no more than import
torch and allocate once. The prefix cache is on, as it is by default.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import start
from benchmarks.gpu.measures import Record, timed
from benchmarks.gpu.models import SHAPES, write_random_model
from benchmarks.gpu.options import add_place, workload_of
from benchmarks.gpu.workloads import Workload as Numbers
from benchmarks.gpu.workloads import long_prompts, prompts
from benchmarks.metrics import gaps_s
from benchmarks.peers.contracts import Measured, Request, Settings, Workload
from benchmarks.peers.dialects import OpenAICompletions
from benchmarks.peers.http_engine import Launch, RunningServer

_ALLOCATE = """
import sys
import torch
torch.zeros(1, device=sys.argv[1])
if sys.argv[1] == "cuda":
    torch.cuda.synchronize()
print("allocated", flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_place(parser)
    parser.add_argument("--starts", type=int, default=3, help="how often the container is started (3)")
    options = parser.parse_args()
    record, numbers = Record(options.record), workload_of(options.shape)
    timed(record, "write_model_s", lambda: write_random_model(SHAPES[options.shape], options.folder))
    settings = Settings(max_concurrency=256, prefix_cache=True)
    log = options.record.with_suffix(".server.log")
    with RunningServer(ours(options.device), options.folder, settings, log=log) as server:
        record.add("first_start_s", server.first_token_s)
        _measure_first_tokens(server, numbers, record)
        _measure_stream(server, numbers, record)
    # The weights lie in the page cache now.
    _measure_starts(options.folder, options.device, options.starts, record)


def ours(device: str) -> Callable[[Path, int, Settings], Launch]:
    """How our container is started."""

    def launch(model: Path, port: int, settings: Settings) -> Launch:
        environment = {
            "MODEL_ID": str(model),
            "DEVICE": device,
            "PORT": str(port),
            "MAX_NUM_SEQS": str(settings.max_concurrency),
            "MAX_CONCURRENT_REQUESTS": str(2 * settings.max_concurrency),
            "PREFIX_CACHING": "true" if settings.prefix_cache else "false",
        }
        command = (sys.executable, "-m", "container.entrypoint", "serve")
        return Launch(command, OpenAICompletions(str(model)), environment, health_path="/ping")

    return launch


def _measure_first_tokens(server: RunningServer, numbers: Numbers, record: Record) -> None:
    length = numbers.first_token_prompt
    _first_tokens_s(server, prompts(3, length, numbers, seed=40))  # compiles what only such prompts need
    asked = prompts(numbers.first_token_requests, length, numbers, seed=41)
    for kind in ("cold", "warm"):
        record.add_samples(f"http.{length}.{kind}_ms", _milliseconds(_first_tokens_s(server, asked)))
    asked = long_prompts(numbers)
    for kind in ("cold", "warm"):
        record.add_samples(f"http.long.{kind}_ms", _milliseconds(_first_tokens_s(server, asked)))
    together = _first_tokens_s(server, asked, concurrency=len(asked))
    record.add("http.long.warm_all_at_once_ms", 1e3 * max(together))
    record.add("http.long.prompt_tokens", sum(map(len, asked)))


def _measure_stream(server: RunningServer, numbers: Numbers, record: Record) -> None:
    """One stream at a time, each with a prompt of its own; the mean, as several tokens may arrive together."""
    gaps_ms = []
    for repeat in range(numbers.repeats):
        [ids] = prompts(1, numbers.decode_prompt, numbers, seed=50 + repeat)
        count = numbers.decode_skip + numbers.decode_steps
        measured = _run(server, Workload((Request(tuple(ids), count),)))
        gaps_ms.append(1e3 * statistics.fmean(gaps_s(measured.requests[0])[numbers.decode_skip :]))
    record.add_samples("http.between_tokens_ms", gaps_ms)


def _first_tokens_s(
    server: RunningServer, asked: Sequence[Sequence[int]], *, concurrency: int = 1
) -> list[float]:
    """From before the connection is opened until the bytes of the first token are there."""
    requests = tuple(Request(tuple(ids), 1) for ids in asked)
    found = [
        one.first_token_s - one.start_s
        for one in _run(server, Workload(requests, concurrency=concurrency)).requests
        if one.first_token_s is not None
    ]
    if len(found) != len(asked):
        raise RuntimeError(f"{len(asked) - len(found)} of {len(asked)} answers held no token")
    return found


def _run(server: RunningServer, workload: Workload) -> Measured:
    measured = server.run(workload)
    if complaints := measured.complaints(workload):
        raise RuntimeError(f"{len(complaints)} requests failed: {complaints[0]}")
    return measured


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1e3 * one for one in seconds]


def _measure_starts(folder: Path, device: str, count: int, record: Record) -> None:
    """The container and the process beside it, alternately."""
    environment = {
        **os.environ,
        "MODEL_ID": str(folder),
        "DEVICE": device,
        "PORT": "0",
        "JSON_OUTPUT": "true",
    }
    whole_s: list[float] = []
    least_s: list[float] = []
    phases: dict[str, list[float]] = {}
    for _ in range(count):
        least_s.append(import_and_allocate_s(device))
        begun = start.measure_server(environment)
        whole_s.append(begun.milestones["first token"])
        for name, seconds in {**begun.milestones, **begun.phases}.items():
            phases.setdefault(name, []).append(seconds)
        record.add_samples("start.first_token_s", whole_s)
        record.add_samples("start.import_and_allocate_s", least_s)
        beyond_s = [whole - least for whole, least in zip(whole_s, least_s, strict=True)]
        record.add_samples("start.beyond_s", beyond_s)
    record.add("start.phases_s", {name: statistics.median(values) for name, values in phases.items()})


def import_and_allocate_s(device: str) -> float:
    """From the exec of a process until it has imported torch and allocated once on the device."""
    began_s = time.perf_counter()
    command = [sys.executable, "-c", _ALLOCATE, device]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline() if process.stdout else ""
        seconds = time.perf_counter() - began_s
    if line.strip() != "allocated":
        raise RuntimeError(f"the process that only allocates ended with status {process.returncode}")
    return seconds


if __name__ == "__main__":
    main()
