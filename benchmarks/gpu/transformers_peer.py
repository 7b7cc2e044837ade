"""transformers on the same model: `python -m benchmarks.gpu.transformers_peer SHAPE FOLDER RECORD`.

generate() for prefill and decode, continuous batching for the mixed workload: its defaults, told the sizes of the requests.
Written against 5.17 to 5.23.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

from benchmarks.gpu.measures import Record, measure_steady, timed
from benchmarks.gpu.models import SHAPES, write_random_model
from benchmarks.gpu.options import Options, parse
from benchmarks.gpu.workloads import mix

_NO_TOKEN = -1
_STOP_S = 5.0  # what the manager's thread gets to end


class _Generate:
    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], num_tokens: int) -> None:
        inputs = torch.tensor(prompts, device=self._device)
        output = self._model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        if output[:, inputs.shape[1] :].tolist() == []:
            raise RuntimeError("nothing was generated")


def main() -> None:
    started_s = time.perf_counter()
    options = parse(__doc__)
    record = Record(options.record)
    write_random_model(SHAPES[options.shape], options.folder)
    model = timed(record, "load_s", lambda: _load(options))
    measure_steady(_Generate(model, options.device), options.workload, record)
    if options.mix:
        _measure_mix(model, options, record, started_s + options.limit_s)


def _load(options: Options) -> Any:
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype, attn_implementation="sdpa")
    return model.to(options.device).eval()


def _measure_mix(model: Any, options: Options, record: Record, deadline_s: float) -> None:
    """Requests that end before the deadline count; start-up of the manager does not."""
    prompts, lengths = mix(options.workload)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max(lengths), eos_token_id=_NO_TOKEN, pad_token_id=0
    )
    num_finished = num_tokens = 0
    sizes = _cpu_cache() if options.device == "cpu" else None
    # What generate_batch() tells the manager of its requests, so that it is sized alike.
    hints = WorkloadHints(max(map(len, prompts)), max(lengths), len(prompts))
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=sizes, timeout=_STOP_S, workload_hints=hints
    ) as manager:
        started_s = time.perf_counter()
        for prompt, length in zip(prompts, lengths, strict=True):
            manager.add_request(prompt, max_new_tokens=length, eos_token_id=_NO_TOKEN)
        while num_finished < len(prompts) and time.perf_counter() < deadline_s:
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError("continuous batching stopped on its own")
            elif result.is_finished():
                if result.error:
                    raise RuntimeError(f"continuous batching failed a request: {result.error}")
                num_finished += 1
                num_tokens += len(result.generated_tokens)
        seconds = time.perf_counter() - started_s
        record.add("mix.num_finished", num_finished)
        if num_finished:
            record.add("mix.s", seconds)
            record.add("mix.tokens_per_s", num_tokens / seconds)


def _cpu_cache() -> Any:
    """Without it the cache is sized for a GPU's memory."""
    from transformers import ContinuousBatchingConfig

    return ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256)


if __name__ == "__main__":
    main()
