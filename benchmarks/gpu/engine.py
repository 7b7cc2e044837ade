"""Our engine in process: `python -m benchmarks.gpu.engine SHAPE FOLDER RECORD`.

Prefill, decode steps, how long the device waits for the host between them, and with `--mix` nano-vllm's mix.
"""

from __future__ import annotations

import time

from benchmarks.gpu.idle import measure_idle
from benchmarks.gpu.measures import Record, measure_steady, timed
from benchmarks.gpu.models import SHAPES, write_random_model
from benchmarks.gpu.options import Options, parse
from benchmarks.gpu.workloads import mix
from serving import LLM, SamplingParams

_STEP_TOKENS = 8192


class Ours:
    """Prompts that were seen before are taken from the prefix cache: a figure of prefill needs new ones."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def run(self, prompts: list[list[int]], num_tokens: int) -> None:
        params = SamplingParams(temperature=0.0, max_new_tokens=num_tokens, ignore_eos=True)
        outputs = self._llm.generate(prompts, params, progress=False)
        if any(len(output.token_ids) != num_tokens for output in outputs):
            raise RuntimeError("a sequence ended early")


def main() -> None:
    started_s = time.perf_counter()
    options = parse(__doc__)
    record = Record(options.record)
    timed(record, "write_model_s", lambda: write_random_model(SHAPES[options.shape], options.folder))
    with timed(record, "load_s", lambda: load(options)) as llm:
        record.add("kv_tokens", (llm.ready.num_blocks - 1) * llm.ready.block_size)
        record.add("dtype", llm.ready.dtype)
        record.add("max_step_tokens", llm.ready.max_step_tokens)
        measure_steady(Ours(llm), options.workload, record, long=True)
        if options.mix:
            _measure_mix(llm, options, record, started_s + options.limit_s)
        measure_idle(Ours(llm), options.workload, record, on_device=options.device == "cuda")


def load(options: Options, *, max_num_seqs: int = 256) -> LLM:
    return LLM(
        options.folder,
        device=options.device,
        dtype="float32" if options.device == "cpu" else "bfloat16",
        async_scheduling=options.async_scheduling,
        kv_cache_dtype=options.kv_cache_dtype,
        max_num_seqs=max_num_seqs,
        num_threads=1 if options.device == "cpu" else None,
        max_batch_prefill_tokens=None if options.device == "cpu" else _STEP_TOKENS,
    )


def run_jobs(
    llm: LLM, jobs: tuple[list[list[int]], list[int]], record: Record, name: str, *, keep: bool = True
) -> float:
    """Output tokens per second of all requests at once, drawn at temperature 0.6 as nano-vllm does. With `keep` what the
    engine did for them is recorded. Raises `RuntimeError` if a prompt was seen before."""
    prompts, lengths = jobs
    params = [
        SamplingParams(temperature=0.6, seed=index, max_new_tokens=length, ignore_eos=True)
        for index, length in enumerate(lengths)
    ]
    before, started_s = llm.stats(), time.perf_counter()
    llm.generate(prompts, params, progress=False)
    seconds, after = time.perf_counter() - started_s, llm.stats()
    if after.num_cached_tokens != before.num_cached_tokens:
        raise RuntimeError(f"{name}: part of the prompts was in the prefix cache")
    if after.num_generated_tokens - before.num_generated_tokens != sum(lengths):
        raise RuntimeError(f"{name}: a sequence ended early")
    if keep:
        record.add(f"{name}.s", seconds)
        record.add(f"{name}.num_steps", after.num_steps - before.num_steps)
        record.add(f"{name}.worker_s", after.forward_s - before.forward_s)
        record.add(f"{name}.num_preemptions", after.num_preemptions - before.num_preemptions)
    return sum(lengths) / seconds


def _measure_mix(llm: LLM, options: Options, record: Record, deadline_s: float) -> None:
    """Repeats have prompts of their own; the first is nano-vllm's. No repeat is begun after the deadline."""
    rates: list[float] = []
    for repeat in range(options.workload.repeats):
        if rates and time.perf_counter() > deadline_s:
            break
        prompts, lengths = mix(options.workload)
        moved = [[(one + repeat) % options.workload.vocab_size for one in prompt] for prompt in prompts]
        rates.append(run_jobs(llm, (moved, lengths), record, "mix"))
        record.add_samples("mix.tokens_per_s", rates)


if __name__ == "__main__":
    main()
