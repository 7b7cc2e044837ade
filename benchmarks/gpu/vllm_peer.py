"""Our server and vLLM's on the same model with the same client: `python -m benchmarks.gpu.vllm_peer SHAPE FOLDER RECORD`.

    python3 -m benchmarks.gpu.vllm_peer qwen3-0.6b /tmp/model record.json --vllm-site SITE     # SITE: see vllm_parts

Not yet run on a GPU. One server at a time, each with the whole device: ours, vLLM, ours again (which shows drift). Streams
of token ids over `/v1/completions`: 1, 32 and 256 at once (1,024 prompt and 128 output tokens), a first token alone, and
nano-vllm's mix. The record has tokens per second, times to the first token and between tokens (p50, p99), the share of
the hardware floor, and the ratios.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import floor
from benchmarks.gpu.measures import Record, timed
from benchmarks.gpu.models import SHAPES, Shape, write_random_model
from benchmarks.gpu.options import add_place
from benchmarks.gpu.server import ours
from benchmarks.gpu.workloads import FULL, TINY, mix
from benchmarks.metrics import Metrics, steady
from benchmarks.peers.contracts import Request, Settings, Workload
from benchmarks.peers.dialects import OpenAICompletions
from benchmarks.peers.http_engine import Launch, RunningServer

_KEPT = ("tokens_per_s", "first_token_p50_s", "first_token_p99_s", "between_p50_s", "between_p99_s")


@dataclass(slots=True, frozen=True)
class Sizes:
    streams: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    prefill_tokens: int


_FULL = Sizes((1, 32, 256), 1024, 128, 1024)
_TINY = Sizes((1, 2), 32, 8, 64)


def main() -> None:
    options = _parse()
    shape, sizes = SHAPES[options.shape], _TINY if options.shape.startswith("tiny") else _FULL
    record = Record(options.record)
    timed(record, "write_model_s", lambda: write_random_model(shape, options.folder))
    launches: list[tuple[str, Callable[[Path, int, Settings], Launch]]] = [("ours", ours(options.device))]
    if not options.without_vllm:
        launches += [
            ("vllm", _vllm(options.vllm_python, options.vllm_site)),
            ("ours_again", ours(options.device)),
        ]
    rates = floor.Ceilings(options.bytes_per_s, options.flop_per_s)
    seen: dict[str, dict[str, float]] = {}
    for name, launch in launches:
        log = options.record.with_name(f"{options.record.stem}.{name}.log")
        settings = Settings(max_concurrency=256, max_context=2048)
        with RunningServer(launch, options.folder, settings, log=log) as server:
            record.add(f"{name}.start_s", server.first_token_s)
            seen[name] = _measure(server, name, shape, sizes, rates, record)
    if "vllm" in seen:
        for case, rate in seen["vllm"].items():
            record.add(f"ratio.{case}", (seen["ours"][case] + seen["ours_again"][case]) / 2 / rate)


def _measure(
    server: RunningServer, name: str, shape: Shape, sizes: Sizes, rates: floor.Ceilings, record: Record
) -> dict[str, float]:
    """Tokens per second by case; everything goes into the record."""
    server.run(_closed_loop(shape, sizes, max(sizes.streams), new_tokens=4, seed="warm"))
    one = Workload((Request(_ids(shape, sizes.prefill_tokens, f"prefill {name}"), 1),))
    first = _run(server, one)["first_token_p50_s"]
    record.add(f"{name}.prefill.{sizes.prefill_tokens}.ms", 1e3 * first)
    cases = {
        f"{count}": _closed_loop(shape, sizes, count, new_tokens=sizes.new_tokens, seed=name)
        for count in sizes.streams
    }
    found = {}
    for case, workload in {**cases, "mix": _mix(shape)}.items():
        numbers = _run(server, workload)
        for metric in _KEPT:
            record.add(f"{name}.{case}.{metric}", numbers[metric])
        jobs = [floor.Job(len(asked.prompt_ids), asked.num_output_tokens) for asked in workload.requests]
        floor_s = floor.jobs_s(shape, rates, jobs, concurrency=workload.concurrency)
        found[case] = numbers["tokens_per_s"]
        record.add(f"{name}.{case}.share_of_floor", found[case] * floor_s / sum(job.output for job in jobs))
    return found


def _run(server: RunningServer, workload: Workload) -> Metrics:
    measured = server.run(workload)
    if complaints := measured.complaints(workload):
        raise RuntimeError(f"{len(complaints)} requests failed: {complaints[0]}")
    nothing = dict.fromkeys(_KEPT, 0.0)  # one-token answers have no time between tokens
    return nothing | steady(workload, measured)


def _closed_loop(shape: Shape, sizes: Sizes, streams: int, *, new_tokens: int, seed: str) -> Workload:
    prompts = (
        _ids(shape, sizes.prompt_tokens, f"{seed} {streams} {index}") for index in range(max(4, streams))
    )
    return Workload(tuple(Request(ids, new_tokens) for ids in prompts), concurrency=streams)


def _mix(shape: Shape) -> Workload:
    prompts, outputs = mix(TINY if shape.max_positions < 2048 else FULL)
    pairs = zip(prompts, outputs, strict=True)
    return Workload(
        tuple(Request(tuple(one % shape.vocab_size for one in ids), output) for ids, output in pairs)
    )


def _ids(shape: Shape, count: int, seed: str) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(10, min(shape.vocab_size, 10_000)) for _ in range(count))


def _vllm(python: str, site: Path | None) -> Callable[[Path, int, Settings], Launch]:
    def launch(model: Path, port: int, settings: Settings) -> Launch:
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port)]
        command += [
            "--max-model-len",
            str(settings.max_context),
            "--max-num-seqs",
            str(settings.max_concurrency),
        ]
        command += ["--no-enable-prefix-caching", "--disable-log-stats", "--disable-uvicorn-access-log"]
        variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
        if site is not None:
            variables["PYTHONPATH"] = str(site)  # of this process alone: ours keeps its own packages
        return Launch(tuple(command), OpenAICompletions("model"), variables)

    return launch


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_place(parser)
    parser.add_argument("--vllm-python", default=sys.executable, help="interpreter that has vLLM (this one)")
    parser.add_argument("--vllm-site", type=Path, help="folder that vllm_parts unpacked to")
    parser.add_argument("--without-vllm", action="store_true", help="ours alone: does the path work?")
    defaults = floor.Ceilings()
    parser.add_argument(
        "--bytes-per-s", type=float, default=defaults.bytes_per_s, help="measured by the part `machine`"
    )
    parser.add_argument(
        "--flop-per-s", type=float, default=defaults.flop_per_s, help="measured by the part `machine`"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
