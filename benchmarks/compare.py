"""Engines side by side on the same model files, in turns (A B A B), each a process of its own.

    python -m benchmarks.compare                                       # ours and all others: 1 and 16 streams, 3 rounds
    python -m benchmarks.compare --engines ours llama-server --concurrency 1 16 64
    python -m benchmarks.compare --model 507m --min-requests 1         # a model that reads its memory
    python -m benchmarks.compare --workload prefix                     # with and without the prefix cache
    python -m benchmarks.compare --resume FILE --limit-s 160           # in pieces: say it again until it exits with 0

Workloads
    batch     equal prompts and outputs, --concurrency streams at once (closed loop)
    mix       nano-vllm's: 256 requests at once, lengths uniform in 100..1024; on a CPU take --scale 0.1
    prefix    64 requests that share 2,048 tokens; ENGINE:nocache is that engine without its prefix cache
    long      50 streams, then the same beside one prompt of 30,000 tokens: time between their tokens
    arrivals  Poisson arrivals at --loads times the capacity: what is answered within the limits, what is refused
    start     process start to the first token

What is written: one dated JSON file with every repeat (load before it, what others used of the machine while it ran, CPU
time of client and engine), the machine, versions and commit; and pictures beside it. Ratios are of medians; "share of the
floor" is what the machine's own two rates would allow, measured in the same run (benchmarks/floor.py has the formulas).

Exit status: 0 complete, 75 time was up and there is more to do, 1 nothing could be measured.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.comparison import Comparison, prepare
from benchmarks.model_fixture import SHAPES
from benchmarks.peers.contracts import Engine
from benchmarks.peers.registry import engines
from benchmarks.plots import draw
from benchmarks.record import load
from benchmarks.results import show

UNFINISHED = os.EX_TEMPFAIL
OURS = "ours"
_FAMILIES = ("batch", "mix", "prefix", "long", "arrivals", "start")


_OF_THIS_CALL = ("--resume", "--limit-s")


def _lasting(arguments: list[str]) -> list[str]:
    """Without what is about this call and not about the comparison; a path of this machine has no place in a record."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        name, is_whole, _ = word.partition("=")
        if name not in _OF_THIS_CALL:
            kept.append(word)
        elif not is_whole:
            next(words, None)
    return kept


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    # A log file has no width of its own, and a table needs some.
    console = Console(width=None if sys.stdout.isatty() else 140)
    # A time limit's SIGTERM must end the engines too, which the way out of their context managers does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.prepare:
        console.print(f"ready: {prepare(options, _chosen(options), console)}", soft_wrap=True)
        return 0
    if options.resume and options.resume.exists():
        limit_s, path = options.limit_s, options.resume
        record = load(path)
        options = parse(record.command)
        options.limit_s, options.resume = limit_s, path
        comparison = Comparison(options, _chosen(options), console, record=record)
    else:
        comparison = Comparison(options, _chosen(options), console, command=_lasting(given))
    finished = comparison.run()
    record, path = comparison.record, comparison.path
    if not any(not run.error for run in record.runs):
        show(record, console)
        return 1 if finished else UNFINISHED
    show(record, console)
    console.print(f"written: {path}", soft_wrap=True, highlight=False)
    if not finished:
        again = shlex.join(["python", "-m", "benchmarks.compare", "--resume", str(path)])
        console.print(
            f"time is up, {comparison.num_left} repeats are left; go on with: {again}", soft_wrap=True
        )
        return UNFINISHED
    for picture in draw(record, path.with_suffix("")):
        console.print(f"written: {picture}", soft_wrap=True, highlight=False)
    return 0


def _chosen(options: argparse.Namespace) -> dict[str, Engine]:
    """Engines by the names they were asked for with, ours first. Raises SystemExit for a name there is not."""
    there = engines()
    names = options.engines
    if not names:
        alone = options.workload in ("long", "arrivals")
        both = [OURS, f"{OURS}:nocache"]
        names = (
            both if options.workload == "prefix" else [OURS] if alone else [OURS, *(there.keys() - {OURS})]
        )
    unknown = [name for name in names if name.removesuffix(":nocache") not in there]
    if unknown:
        raise SystemExit(f"there is no engine {', '.join(unknown)}; there are: {', '.join(there)}")
    return {name: there[name.removesuffix(":nocache")] for name in names}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=sorted(SHAPES), default="32m", help="shape of the random-weight model (32m)")
    add("--workload", choices=_FAMILIES, default="batch", help="what is asked, see above (batch)")
    add(
        "--engines",
        nargs="+",
        metavar="ENGINE",
        help="ours and peers; the first is the one that ratios are of",
    )
    add("--rounds", type=int, default=3, help="alternations (3)")
    add(
        "--concurrency",
        type=int,
        nargs="+",
        default=[1, 16],
        metavar="N",
        help="batch: streams at once (1 16)",
    )
    add("--prompt-tokens", type=int, default=128, help="batch, arrivals (128)")
    add("--new-tokens", type=int, help="output tokens of a stream (128; long: 256)")
    add("--min-requests", type=int, default=4, help="batch: requests of a repeat, at least (4)")
    add("--scale", type=float, default=1.0, help="mix: lengths; prefix: requests; long: the prompt (1)")
    add(
        "--loads", type=float, nargs="+", default=[0.5, 0.75, 1.0, 1.5, 2.0], metavar="SHARE", help="arrivals"
    )
    add("--duration-s", type=float, default=10.0, help="arrivals: how long requests come (10)")
    add(
        "--capacity",
        type=float,
        help="arrivals: requests per second; without it the first engine's is measured",
    )
    add("--running", type=int, default=64, help="arrivals: sequences that run at once (64)")
    add("--limit-first-token-s", type=float, default=2.0, help="arrivals: a good answer begins within (2)")
    add("--limit-per-token-s", type=float, default=0.1, help="arrivals: and goes on at this pace (0.1)")
    add(
        "--threads", type=int, default=os.cpu_count() or 1, help="compute threads of every engine (all cores)"
    )
    add("--limit-s", type=float, help="begin no repeat that would end later than this; exit with 75")
    add("--resume", type=Path, metavar="FILE", help="record to go on with; begun when it is not there")
    add("--prepare", action="store_true", help="write and convert the model, measure nothing")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder of new records")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or min(options.concurrency) < 1:
        parser.error("--rounds and --concurrency must be at least 1")
    if options.new_tokens is None:
        options.new_tokens = 256 if options.workload == "long" else 128
    return options


if __name__ == "__main__":
    sys.exit(main())
