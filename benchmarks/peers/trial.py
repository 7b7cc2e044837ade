"""One engine alone, to see that it works and about what it reaches; `benchmarks.compare` is what compares."""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.model_fixture import prompt_ids
from benchmarks.peers.contracts import Engine, EngineFailed, Measured, Request, Settings, Workload


def closed_loop(
    model: Path, *, concurrency: int, num_prompt_tokens: int, num_output_tokens: int, seed: int
) -> Workload:
    """As many requests as may be open at once, all with prompts of their own."""
    return Workload(
        tuple(
            Request(tuple(prompt_ids(model, num_prompt_tokens, 1000 * seed + index)), num_output_tokens)
            for index in range(concurrency)
        ),
        concurrency,
    )


def try_engine(engine: Engine, model: Path, options: argparse.Namespace, console: Console) -> int:
    """Exit status 1 when the engine fails, or gives another number of tokens than asked for."""
    settings = Settings(
        num_threads=options.threads,
        max_concurrency=max(options.concurrency),
        max_context=options.prompt_tokens + options.new_tokens + 16,
    )
    table = Table(
        "concurrent", "tok/s", "of rounds", "first token p50", "between tokens p50", "cpu engine", "client"
    )
    complaints: list[str] = []
    try:
        engine.prepare(model)
        if options.prepare_only:
            return 0
        with engine.start(model, settings) as running:
            console.print(
                f"{engine.name} {engine.version()} ({engine.kind}): ready {running.ready_s:.2f} s, "
                f"first token {running.first_token_s:.2f} s after its start"
            )
            for concurrency in options.concurrency:
                rounds: list[Measured] = []
                for seed in range(options.repeats + 1):
                    workload = closed_loop(
                        model,
                        concurrency=concurrency,
                        num_prompt_tokens=options.prompt_tokens,
                        num_output_tokens=options.new_tokens,
                        seed=1 + seed + 100 * concurrency,
                    )
                    rounds.append(running.run(workload))
                    complaints += rounds[-1].complaints(workload)
                table.add_row(*_row(concurrency, rounds[1:]))
                _print_ids(concurrency, rounds[0], console)
    except EngineFailed as error:
        console.print(f"[red]{engine.name} failed[/]: {escape(str(error))}")
        return 1
    console.print(table)
    for complaint in complaints[:8]:
        console.print(f"[red]{escape(complaint)}[/]")
    return 1 if complaints else 0


def _row(concurrency: int, rounds: list[Measured]) -> list[str]:
    speeds = [one.tokens_per_s for one in rounds]
    first_s = [got.first_token_s - got.start_s for one in rounds for got in one.requests if got.first_token_s]
    gaps_s = [
        after - before
        for one in rounds
        for got in one.requests
        for before, after in zip(got.token_s, got.token_s[1:], strict=False)
    ]
    cores = statistics.median(one.engine_cpu_s / one.wall_s for one in rounds)
    client_share = statistics.median(one.client_cpu_s / one.wall_s for one in rounds)
    return [
        str(concurrency),
        f"{statistics.median(speeds):.1f}",
        " ".join(f"{speed:.0f}" for speed in speeds),
        _ms(first_s),
        _ms(gaps_s),
        f"{cores:.2f} cores",
        f"{100 * client_share:.1f} %",
    ]


def _ms(seconds: Iterable[float]) -> str:
    values = list(seconds)
    return f"{1000 * statistics.median(values):.1f} ms" if values else "not told"


def _print_ids(concurrency: int, measured: Measured, console: Console) -> None:
    """Engines that tell ids can be compared by eye: same weights, same prompts, so the same greedy tokens."""
    ids = [got.token_ids for got in measured.requests]
    if all(ids):
        digest = hashlib.sha256(repr(ids).encode()).hexdigest()[:12]
        console.print(f"{concurrency} concurrent: tokens {digest}, first {ids[0][:8]}")
