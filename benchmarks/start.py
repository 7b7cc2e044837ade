"""How long a start takes: from the exec of PID 1 to the first token of a stream, and what the time goes into.

    python -m benchmarks.start                        # the 32M shape, five starts
    python -m benchmarks.start --model FOLDER --repeats 5 --ranks 2
    python -m benchmarks.start --in-process           # `LLM(...)` and its first token instead of the server
    python -m benchmarks.start --imports              # the modules that cost a process most

Between two starts `import torch` is timed in a process of its own: on a machine whose speed drifts, the floor drifts
along. The page cache is warm: the files are read before every start.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import into_page_cache
from benchmarks.model_fixture import SHAPES, write_model
from local_mode.server_process import ServerProcess

_POLL_S = 0.01
_LIMIT_S = 120.0
_CALL = {"inputs": "one two three", "parameters": {"max_new_tokens": 1}}
_PROCESSES = {
    "container (PID 1)": "container.entrypoint",
    "api, master": "gunicorn.app.wsgiapp, container.api_worker",
    "api, worker": "container.api_worker, serving.api.wsgi",
    "engine": "serving.engine.process, serving.engine.boot, serving.worker.worker",
    "torch alone": "torch",
}
_IN_PROCESS = """
import json, sys, time
started_s = time.perf_counter()
from serving.llm import LLM
from serving.sampling_params import SamplingParams
imported_s = time.perf_counter()
with LLM(sys.argv[1], device="cpu") as llm:
    ready_s = time.perf_counter()
    llm.generate(["one two three"], SamplingParams(temperature=0, max_new_tokens=1))
    print(json.dumps({"imported": imported_s - started_s, "ready": ready_s - started_s}))
"""


@dataclass(slots=True)
class Start:
    """Seconds since the process was started, by milestone, in their order; the phases that the processes report."""

    milestones: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0


def measure_server(environment: Mapping[str, str]) -> Start:
    """Start the container once, call it as soon as `/ping` is 200, and stop it."""
    start = Start()
    began_s = time.perf_counter()
    with ServerProcess(environment) as server:
        port = server.port
        start.milestones["port bound"] = time.perf_counter() - began_s
        watch = threading.Thread(target=_watch_log, args=(server, start, began_s), daemon=True)
        watch.start()
        _wait_healthy(server, start, began_s)
        _first_token(port)
        start.milestones["first token"] = time.perf_counter() - began_s
        start.peak_rss_bytes = _peak_rss_bytes(server.pid)
        watch.join()
        start.phases = _phases(server.log)
    return start


def _wait_healthy(server: ServerProcess, start: Start, began_s: float) -> None:
    """`/ping` as the platform asks it, on one connection after the other."""
    status = 0
    while status != 200:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_LIMIT_S)
        try:
            connection.request("GET", "/ping")
            status = connection.getresponse().status
        except OSError as error:
            raise RuntimeError(f"the server ended:\n{server.log[-4000:]}") from error
        finally:
            connection.close()
        passed_s = time.perf_counter() - began_s
        start.milestones.setdefault("first answer", passed_s)
        if passed_s > _LIMIT_S:
            raise RuntimeError(f"/ping is not 200 after {_LIMIT_S:g} s:\n{server.log[-4000:]}")
        if status != 200:
            time.sleep(_POLL_S)
    start.milestones["/ping 200"] = passed_s


def _first_token(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LIMIT_S)
    try:
        connection.request(
            "POST", "/generate_stream", json.dumps(_CALL), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        while line := response.readline():
            if line.startswith(b"data:"):
                if b'"token"' not in line:
                    raise RuntimeError(f"the first event holds no token: {line!r}")
                return
        raise RuntimeError(f"no token came: {response.status}")
    finally:
        connection.close()


def _watch_log(server: ServerProcess, start: Start, began_s: float) -> None:
    """When the engine said that it is ready; the front may know it later."""
    server.wait_log(r'"process": ?"engine", "message": ?"ready"', limit_s=_LIMIT_S)
    start.milestones["engine ready"] = time.perf_counter() - began_s


def _phases(log: str) -> dict[str, float]:
    """Every field in seconds of the events `start` and `weights`, with the process before its name."""
    phases: dict[str, float] = {}
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("message") in ("start", "weights"):
            for name, value in entry.items():
                if name.endswith("_s") and isinstance(value, float):
                    phases[f"{entry['process']} {name.removesuffix('_s')}"] = value
    return phases


def _peak_rss_bytes(pid: int) -> int:
    """Of the largest process below `pid`, which is the engine."""
    peak = 0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        for line in Path(f"/proc/{child}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = max(peak, int(line.split()[1]) * 1024)
    return peak


def measure_in_process(model_dir: Path) -> Start:
    """`LLM` from the start of the interpreter to the first token."""
    began_s = time.perf_counter()
    command = [sys.executable, "-c", _IN_PROCESS, str(model_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if process.stdout is None:
        raise RuntimeError("no output to read")
    milestones = json.loads(process.stdout.readline())
    milestones["first token"] = time.perf_counter() - began_s
    if process.wait() != 0:
        raise RuntimeError(f"the process ended with {process.returncode}")
    return Start(milestones=milestones)


def import_seconds(modules: str = "torch") -> float:
    """A new interpreter until the modules are there."""
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}, os; os._exit(0)"], check=True)
    return time.perf_counter() - began_s


def _import_table(console: Console) -> None:
    for process, modules in _PROCESSES.items():
        command = [sys.executable, "-X", "importtime", "-c", f"import {modules}, os; os._exit(0)"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
        rows = [line.removeprefix("import time:").split("|") for line in lines if line.count("|") == 2]
        costs = [(int(own), int(total), name) for own, total, name in rows if own.strip().isdigit()]
        table = Table(title=f"{process}: {import_seconds(modules):.2f} s, {len(costs)} modules")
        for column in ("module", "own ms", "with what it imports, ms"):
            table.add_column(column, justify="left" if column == "module" else "right")
        for own, total, name in sorted(costs, key=lambda cost: -cost[1])[:25]:
            table.add_row(name.rstrip(), f"{own / 1000:.1f}", f"{total / 1000:.1f}")
        console.print(table)


def summarize(starts: list[Start], torch_s: list[float]) -> dict[str, object]:
    """Median and worst of every milestone and phase; JSON."""
    table: dict[str, dict[str, float]] = {}
    for kind in ("milestones", "phases"):
        for name in {name: None for start in starts for name in getattr(start, kind)}:
            values = [getattr(start, kind)[name] for start in starts if name in getattr(start, kind)]
            table[name] = {"median_s": round(statistics.median(values), 3), "worst_s": round(max(values), 3)}
    table["import torch alone"] = {
        "median_s": round(statistics.median(torch_s), 3), "worst_s": round(max(torch_s), 3)
    }  # fmt: skip
    return {
        "starts": len(starts),
        "seconds": table,
        "peak_rss_bytes": max(start.peak_rss_bytes for start in starts),
    }


def main() -> int:
    options = _parse()
    console = Console()
    if options.imports:
        _import_table(console)
        return 0
    model_dir: Path = options.model or write_model(
        options.shape, Path(tempfile.gettempdir()) / f"textgen-bench-{options.shape}"
    )
    environment = {
        **os.environ,
        "MODEL_ID": str(model_dir),
        "DEVICE": options.device,
        "PORT": "0",
        "JSON_OUTPUT": "true",
    }
    environment |= {"SM_NUM_GPUS": str(options.ranks)} if options.ranks > 1 else {}
    starts: list[Start] = []
    torch_s: list[float] = []
    for _ in range(options.repeats):
        into_page_cache(model_dir)
        starts.append(measure_in_process(model_dir) if options.in_process else measure_server(environment))
        torch_s.append(import_seconds())
    summary = {"model": str(model_dir), "ranks": options.ranks, **summarize(starts, torch_s)}
    if options.json:
        print(json.dumps(summary))
    else:
        _show(summary, console)
    return 0


def _show(summary: dict[str, object], console: Console) -> None:
    table = Table(title=f"{summary['model']}, {summary['starts']} starts, ranks {summary['ranks']}: seconds")
    for column in ("", "median", "worst"):
        table.add_column(column, justify="right" if column else "left")
    seconds = summary["seconds"]
    if isinstance(seconds, dict):
        for name, value in seconds.items():
            table.add_row(name, f"{value['median_s']:.2f}", f"{value['worst_s']:.2f}")
    console.print(table)
    console.print(f"peak memory of the largest process: {int(str(summary['peak_rss_bytes'])) >> 20} MiB")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model folder, instead of one that is made")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="32m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=1, help="tensor-parallel ranks")
    parser.add_argument("--in-process", action="store_true", help="`LLM` instead of the server")
    parser.add_argument("--imports", action="store_true", help="only the cost of imports, process by process")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
