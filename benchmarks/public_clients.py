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
import os
import resource
import shlex
import signal
import statistics
import sys
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import machine
from benchmarks.load_generators import GUIDELLM, ClientFailed, Load, PublicClient, public_clients
from benchmarks.metrics import steady
from benchmarks.model_fixture import SHAPES, prompt_ids, write_model
from benchmarks.peers.contracts import Settings
from benchmarks.peers.environments import run_command
from benchmarks.peers.http_engine import RunningServer
from benchmarks.peers.registry import engines
from benchmarks.workloads import Case, Sizes, batch

_OWN = "ours"


class ClientRun(msgspec.Struct, kw_only=True):
    client: str
    streams: int
    round: int
    num_requests: int
    load_average_before: float
    tokens_per_s: float = 0.0
    first_token_p50_ms: float = 0.0
    between_p50_ms: float = 0.0
    client_cpu_s: float = 0.0
    command: str = ""
    error: str = ""
    """Why this is no measurement; its numbers are 0."""


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


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _clients(console: Console, names: Sequence[str]) -> list[PublicClient]:
    there = []
    for client in public_clients():
        reason = client.environment.why_not()
        if client.name.split()[0] not in names:
            continue
        if reason is None:
            there.append(client)
        elif client.environment is GUIDELLM:
            console.print("[yellow]guidellm does not take part:[/] `--install` installs it", highlight=False)
        else:
            console.print(f"[yellow]{client.name} does not take part:[/] {reason}", highlight=False)
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
            for run in _alternate(running, model, streams, clients, options):
                record.runs.append(run)
                target.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
                _say(run, console)
    _show(record, console)
    console.print(f"written: {target}", soft_wrap=True)
    return 1 if any(run.error for run in record.runs) else 0


def _alternate(
    running: RunningServer,
    model: Path,
    streams: int,
    clients: Sequence[PublicClient],
    options: argparse.Namespace,
) -> Iterator[ClientRun]:
    sizes = Sizes(
        ids=lambda count, seed: tuple(prompt_ids(model, count, zlib.crc32(seed.encode()))),
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        min_requests=options.requests_per_stream * streams,
    )
    [case] = batch(sizes, [streams]).cases
    running.run(case.make(0))
    load = Load(
        port=running.port,
        model=model,
        served_name="model" if options.engine == "vllm-cpu" else str(model),
        streams=streams,
        num_requests=len(case.make(0).requests),
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
    )
    for number in range(1, options.rounds + 1):
        yield _run_own(running, case, load, number)
        yield from (run_public(client, load, number) for client in clients)


def _say(run: ClientRun, console: Console) -> None:
    if run.command and run.round == 1:
        console.print(f"$ {run.command}", soft_wrap=True, highlight=False)
    outcome = escape(run.error) or f"{run.tokens_per_s:.1f} tok/s"
    console.print(f"{run.client}, {run.streams} streams, round {run.round}: {outcome}", soft_wrap=True)


def _run_own(running: RunningServer, case: Case, load: Load, number: int) -> ClientRun:
    workload, load_average = case.make(number), os.getloadavg()[0]
    measured = running.run(workload)
    if complaints := measured.complaints(workload):
        raise SystemExit(f"our own client: {complaints[0]}")
    numbers = steady(workload, measured)
    return ClientRun(
        client=_OWN,
        streams=load.streams,
        round=number,
        num_requests=load.num_requests,
        tokens_per_s=numbers["tokens_per_s"],
        first_token_p50_ms=1e3 * numbers["first_token_p50_s"],
        between_p50_ms=1e3 * numbers["between_p50_s"],
        client_cpu_s=measured.client_cpu_s,
        load_average_before=load_average,
    )


def run_public(client: PublicClient, load: Load, number: int) -> ClientRun:
    """Round `number` of a client that others wrote; what went wrong is in the result."""
    run = ClientRun(
        client=client.name,
        streams=load.streams,
        round=number,
        num_requests=load.num_requests,
        load_average_before=os.getloadavg()[0],
    )
    before_s = _children_cpu_s()
    try:
        command, seen = client.run(load)
    except ClientFailed as error:
        run.error = str(error)
        return run
    run.client_cpu_s = _children_cpu_s() - before_s
    run.command = shlex.join(command).replace(str(Path.home()), "$HOME")  # for anyone's machine
    run.tokens_per_s = seen.tokens_per_s
    run.first_token_p50_ms, run.between_p50_ms = seen.first_token_p50_ms, seen.between_p50_ms
    return run


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
    good = [run for run in record.runs if not run.error]
    keys = list(dict.fromkeys((run.streams, run.client) for run in good))
    for streams, client in keys:

        def median(name: str, who: str, streams: int = streams) -> float:
            found = [run for run in good if (run.streams, run.client) == (streams, who)]
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
