"""Our engine in process: `python -m benchmarks.gpu.engine SHAPE FOLDER RECORD`."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.gpu.measures import Record, measure_steady, timed
from benchmarks.gpu.models import SHAPES, write_random_model
from benchmarks.gpu.options import Options, parse
from benchmarks.gpu.workloads import Workload, mix
from serving import LLM, SamplingParams

_STEP_TOKENS = 8192


class _Ours:
    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def run(self, prompts: list[list[int]], num_tokens: int) -> None:
        params = SamplingParams(temperature=0.0, max_new_tokens=num_tokens, ignore_eos=True)
        outputs = self._llm.generate(prompts, params, progress=False)
        if any(len(output.token_ids) != num_tokens for output in outputs):
            raise RuntimeError("a sequence ended early")


def main() -> None:
    options = parse(__doc__)
    record = Record(options.record)
    timed(record, "write_model_s", lambda: write_random_model(SHAPES[options.shape], options.folder))
    llm = timed(record, "load_s", lambda: _load(options.folder, options))
    with llm:
        record.add("kv_tokens", (llm.ready.num_blocks - 1) * llm.ready.block_size)
        record.add("dtype", llm.ready.dtype)
        measure_steady(_Ours(llm), options.workload, record)
        if options.mix:
            _measure_mix(llm, options.workload, record)


def _load(folder: Path, options: Options) -> LLM:
    # Every timed prompt must be computed, so nothing is taken from a prefix cache.
    return LLM(
        folder,
        device=options.device,
        dtype="float32" if options.device == "cpu" else "bfloat16",
        prefix_caching=False,
        async_scheduling=options.async_scheduling,
        kv_cache_dtype=options.kv_cache_dtype,
        num_threads=1 if options.device == "cpu" else None,
        max_batch_prefill_tokens=None if options.device == "cpu" else _STEP_TOKENS,
    )


def _measure_mix(llm: LLM, workload: Workload, record: Record) -> None:
    prompts, lengths = mix(workload)
    params = [
        SamplingParams(temperature=0.6, seed=index, max_new_tokens=length, ignore_eos=True)
        for index, length in enumerate(lengths)
    ]
    before, started_s = llm.stats(), time.perf_counter()
    llm.generate(prompts, params, progress=False)
    seconds, after = time.perf_counter() - started_s, llm.stats()
    record.add("mix.s", seconds)
    record.add("mix.tokens_per_s", sum(lengths) / seconds)
    record.add("mix.num_steps", after.num_steps - before.num_steps)
    record.add("mix.worker_s", after.forward_s - before.forward_s)
    record.add("mix.num_preemptions", after.num_preemptions - before.num_preemptions)


if __name__ == "__main__":
    main()
