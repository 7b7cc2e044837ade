"""Output tokens per second: our HTTP server with SSE against `transformers` generate() in process, alternating.

python -m benchmarks.against_transformers            # 3 alternations, 1 and 16 concurrent
python -m benchmarks.against_transformers --help
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.load import run_streams
from benchmarks.model_fixture import SHAPES, words, write_model
from local_mode.server_process import ServerProcess
from serving.version import VERSION

_RESULTS = Path(__file__).parent / "results"


def main() -> int:
    options = _parse()
    model_dir = write_model(options.model, Path(tempfile.gettempdir()) / f"textgen-bench-{options.model}")
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    console = Console()
    rows = []
    peer = _Peer(model_dir, options.threads)
    settings = {"MODEL_ID": str(model_dir), "DEVICE": "cpu", "PORT": "0", "NUM_THREADS": str(options.threads)}
    with peer, ServerProcess({**os.environ, **settings}) as server:
        server.wait_ready()
        for concurrency in options.concurrency:
            rows.append(_compare(concurrency, options, tokenizer, server.port, peer, console))
    _show(rows, console)
    _RESULTS.mkdir(exist_ok=True)
    record = _record(options, rows)
    target = _RESULTS / f"{record['date'][:10]}-against-transformers-{options.model}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written: {target}")
    return 0


def _compare(
    concurrency: int,
    options: argparse.Namespace,
    tokenizer: Tokenizer,
    port: int,
    peer: _Peer,
    console: Console,
) -> dict[str, object]:
    """One warm-up round, then `repeats` alternations, each with prompts of its own: no round meets a warm prefix cache."""
    ours: list[float] = []
    theirs: list[float] = []
    first_token_s: list[float] = []
    num_tokens = concurrency * options.new_tokens
    parameters = {"max_new_tokens": options.new_tokens, "truncate": options.prompt_tokens}
    for repeat in range(options.repeats + 1):
        with console.status(f"{concurrency} concurrent, round {repeat} of {options.repeats}"):
            seeds = range(1000 * concurrency + 100 * repeat, 1000 * concurrency + 100 * repeat + concurrency)
            texts = [" ".join(words(options.prompt_tokens, seed)) for seed in seeds]
            seconds, streams = run_streams(
                port, [{"inputs": text, "parameters": parameters} for text in texts]
            )
            if failed := [
                one.error for one in streams if one.error or len(one.token_ids) != options.new_tokens
            ]:
                raise RuntimeError(f"{len(failed)} streams failed or ended early: {failed[0]}")
            ids = [tokenizer.encode(text).ids[-options.prompt_tokens :] for text in texts]
            peer_s = peer.run(ids, options.new_tokens)
        if repeat > 0:
            ours.append(num_tokens / seconds)
            theirs.append(num_tokens / peer_s)
            first_token_s += [stream.token_s[0] for stream in streams]
    return {
        "concurrency": concurrency,
        "ours_tokens_per_s": ours,
        "transformers_tokens_per_s": theirs,
        "ours_median": statistics.median(ours),
        "transformers_median": statistics.median(theirs),
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "first_token_p50_s": statistics.median(first_token_s),
    }


class _Peer:
    """transformers in a process of its own."""

    def __init__(self, model_dir: Path, num_threads: int) -> None:
        command = [
            sys.executable,
            "-m",
            "benchmarks.peers.transformers_generate",
            str(model_dir),
            str(num_threads),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> _Peer:
        self._answer()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, prompts: list[list[int]], max_new_tokens: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "max_new_tokens": max_new_tokens}) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))


def _show(rows: list[dict[str, object]], console: Console) -> None:
    table = Table(title="output tokens per second, medians")
    for column in ("concurrent", "ours (HTTP, SSE)", "transformers generate()", "ratio", "first token p50"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["concurrency"]),
            f"{row['ours_median']:.1f}",
            f"{row['transformers_median']:.1f}",
            f"{row['ratio']:.2f}x",
            f"{1000 * float(str(row['first_token_p50_s'])):.0f} ms",
        )
    console.print(table)


def _record(options: argparse.Namespace, rows: list[dict[str, object]]) -> dict[str, object]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    cpu = models[0].partition(":")[2].strip() if models else platform.processor()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("torch", "transformers")}
        | {"textgen-endpoint": VERSION},
        "workload": {**vars(options), "shape": SHAPES[options.model], "dtype": "float32"},
        "load_average_1m": os.getloadavg()[0],
        "rows": rows,
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", choices=sorted(SHAPES), default="32m", help="shape of the random-weight model"
    )
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[1, 16], help="requests at the same time"
    )
    parser.add_argument("--repeats", type=int, default=3, help="alternations after one warm-up round")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="compute threads of each engine"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
