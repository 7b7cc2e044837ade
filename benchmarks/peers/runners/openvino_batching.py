"""OpenVINO GenAI's ContinuousBatchingPipeline. Run by its own environment: see `protocol`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import openvino
import openvino_genai

from benchmarks.peers.runners.protocol import Answer, Job, Prompt, run_batcher, serve

_KV_GIB = 2


class Pipeline:
    """Steps run in this thread, between `add` and `step`."""

    def __init__(self, weights: Path, settings: Job) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = _KV_GIB
        scheduler.max_num_seqs = settings["max_concurrency"]
        scheduler.enable_prefix_caching = settings["prefix_cache"]
        options = {
            "INFERENCE_NUM_THREADS": settings["num_threads"],
            # Left to itself the plugin computes attention in a lower precision where the CPU has one.
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(weights, scheduler, "CPU", options)
        self._open: dict[int, openvino_genai.GenerationHandle] = {}

    def add(self, index: int, prompt: Prompt, num_output_tokens: int) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = num_output_tokens
        config.ignore_eos = True
        config.set_eos_token_id(0)  # the model names none, and -1 is refused
        config.do_sample = False
        tensor = openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
        self._open[index] = self._pipeline.add_request(index, tensor, config)

    def step(self) -> list[tuple[int, list[int], bool]]:
        self._pipeline.step()
        news = []
        for index, handle in list(self._open.items()):
            tokens: list[int] = []
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
            has_ended = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
            if has_ended:
                del self._open[index]
            if tokens or has_ended:
                news.append((index, tokens, has_ended))
        return news


def _make_run(weights: Path, settings: Job) -> Callable[[Job], Answer]:
    pipeline = Pipeline(weights, settings)
    return lambda workload: run_batcher(pipeline, workload)


if __name__ == "__main__":
    serve(_make_run)
