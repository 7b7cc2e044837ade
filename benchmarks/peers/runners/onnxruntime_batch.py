"""onnxruntime-genai's Generator on whole batches. Run by its own environment: see `protocol`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import onnxruntime_genai

from benchmarks.peers.runners.protocol import Answer, Job, Prompt, run_waves, serve


class BatchGenerator:
    """One generator for each batch. Its key-value caches have the size of that batch's longest text."""

    def __init__(self, weights: Path, settings: Job) -> None:
        config = onnxruntime_genai.Config(str(weights))
        options = {"intra_op_num_threads": settings["num_threads"], "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)

    def generate(
        self, prompts: list[Prompt], num_output_tokens: int, told: Callable[[], None]
    ) -> list[list[int]]:
        num_prompt_tokens = len(prompts[0])
        params = onnxruntime_genai.GeneratorParams(self._model)
        length = num_prompt_tokens + num_output_tokens
        # The least length is what ignores the end of sequence.
        params.set_search_options(
            batch_size=len(prompts), min_length=length, max_length=length, do_sample=False
        )
        generator = onnxruntime_genai.Generator(self._model, params)
        generator.append_tokens(numpy.array(prompts, dtype=numpy.int32))
        for _ in range(num_output_tokens):
            if generator.is_done():
                break
            generator.generate_next_token()
            told()
        return [generator.get_sequence(row)[num_prompt_tokens:].tolist() for row in range(len(prompts))]


def _make_run(weights: Path, settings: Job) -> Callable[[Job], Answer]:
    if settings["prefix_cache"]:
        raise ValueError("onnxruntime-genai's batches have no prefix cache")
    generator = BatchGenerator(weights, settings)
    return lambda workload: run_waves(generator, workload)


if __name__ == "__main__":
    serve(_make_run)
