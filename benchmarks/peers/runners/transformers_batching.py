"""transformers' continuous batching with one manager that is kept. Run by its own environment: see `protocol`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.peers.runners.protocol import Answer, Job, Prompt, run_batcher, serve

_POLL_S = 0.5
_BLOCK_TOKENS = 32
_ROOM = 2  # times the cache that the workload needs


class Manager:
    """A thread of the library runs the steps; `step` waits for what comes out of it."""

    def __init__(self, weights: Path, settings: Job) -> None:
        torch.set_num_threads(settings["num_threads"])
        model = AutoModelForCausalLM.from_pretrained(
            weights, dtype=torch.float32, attn_implementation="paged|sdpa"
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        tokens = _ROOM * settings["max_concurrency"] * settings["max_context"]
        batching = ContinuousBatchingConfig(
            num_blocks=-(-tokens // _BLOCK_TOKENS),
            page_size=_BLOCK_TOKENS,
            max_batch_tokens=2048,
            allow_block_sharing=settings["prefix_cache"],
        )
        self._manager = model.eval().init_continuous_batching(generation, batching)
        self._manager.start()
        self._seen: dict[int, int] = {}

    def add(self, index: int, prompt: Prompt, num_output_tokens: int) -> None:
        self._seen[index] = 0
        self._manager.add_request(
            list(prompt), request_id=str(index), max_new_tokens=num_output_tokens, streaming=True
        )

    def step(self) -> list[tuple[int, list[int], bool]]:
        output = self._manager.get_result(timeout=_POLL_S)
        if output is None:
            if not self._manager.is_running():
                raise RuntimeError("the manager's thread has ended")
            return []
        if output.error:
            raise RuntimeError(f"request {output.request_id}: {output.error}")
        index = int(output.request_id)
        # Each output has all tokens so far.
        news = list(output.generated_tokens[self._seen[index] :])
        self._seen[index] += len(news)
        return [(index, news, output.is_finished())]


def _make_run(weights: Path, settings: Job) -> Callable[[Job], Answer]:
    manager = Manager(weights, settings)
    return lambda workload: run_batcher(manager, workload)


if __name__ == "__main__":
    serve(_make_run)
