"""`python -m benchmarks.peers`: install the other engines, list them, try one.

python -m benchmarks.peers list
python -m benchmarks.peers install --all                   # or names of environments, as `list` shows them
python -m benchmarks.peers try llama-server --concurrency 1 16 --repeats 3
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.model_fixture import SHAPES, write_model
from benchmarks.peers.environments import DEFAULT_FOLDER, environments, run_command
from benchmarks.peers.registry import engines
from benchmarks.peers.trial import try_engine


def main(arguments: Sequence[str] | None = None) -> int:
    # A time limit from outside ends this with SIGTERM; the engines must end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    options = _parser().parse_args(arguments)
    command = {"install": _install, "list": _list, "try": _try}[options.command]
    return command(options, Console())


def _install(options: argparse.Namespace, console: Console) -> int:
    known = environments(options.dir)
    if options.list:
        return _list(options, console)
    names = list(known) if options.all else options.names
    if not names or (unknown := set(names) - set(known)):
        console.print(f"name environments, or --all; there are {', '.join(known)}")
        if names:
            console.print(f"unknown: {', '.join(sorted(unknown))}")
        return 2
    failed = []
    for name in names:
        if (reason := known[name].why_not()) is None:
            console.print(f"{name}: {known[name].version()} is there")
            continue
        console.rule(f"{name}: {escape(reason)}")
        started_s = time.perf_counter()
        try:
            known[name].install(lambda line: _say_and_run(line, console))
        except (subprocess.CalledProcessError, OSError) as error:
            console.print(f"{name}: [red]failed[/]: {escape(str(error))}")
            failed.append(name)
        else:
            console.print(f"{name}: installed in {time.perf_counter() - started_s:.0f} s")
    return 1 if failed else 0


def _say_and_run(line: Sequence[str], console: Console) -> None:
    console.print(f"$ {shlex.join(line)}", style="dim", markup=False, highlight=False, soft_wrap=True)
    run_command(line)


def _list(options: argparse.Namespace, console: Console) -> int:
    table = Table("engine", "kind", "dtype", "state")
    for engine in engines(options.dir).values():
        state = engine.version() or escape(engine.why_not() or "")
        table.add_row(engine.name, engine.kind, engine.dtype, state)
    console.print(table)
    return 0


def _try(options: argparse.Namespace, console: Console) -> int:
    known = engines(options.dir)
    if options.name not in known:
        console.print(f"no engine {options.name!r}; there are {', '.join(known)}")
        return 2
    model = options.model_dir or write_model(options.model)
    return try_engine(known[options.name], model, options, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="make environments and builds; what is there is left alone")
    install.add_argument("names", nargs="*", metavar="NAME", help="an environment")
    install.add_argument("--all", action="store_true", help="every environment")
    install.add_argument("--list", action="store_true", help="only say what is there")
    trial = commands.add_parser("try", help="start one engine, run one closed loop, print what it reached")
    trial.add_argument("name", help="an engine")
    trial.add_argument("--model", choices=sorted(SHAPES), default="32m", help="shape of the random model")
    trial.add_argument("--model-dir", type=Path, help="a model that model_fixture wrote, instead")
    trial.add_argument("--concurrency", type=_positive, nargs="+", default=[1, 16])
    trial.add_argument("--repeats", type=_positive, default=2, help="measured rounds after one to warm up")
    trial.add_argument("--prompt-tokens", type=_positive, default=128)
    trial.add_argument("--new-tokens", type=_positive, default=128)
    trial.add_argument("--threads", type=_positive, default=2)
    trial.add_argument("--prepare-only", action="store_true", help="convert the weights and stop")
    for one in (install, trial, commands.add_parser("list", help="engines and what is missing")):
        one.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="folder of the environments")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
