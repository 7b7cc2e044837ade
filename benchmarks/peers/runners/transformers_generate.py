"""`transformers` generate() on whole batches. Run by its own environment: see `protocol`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers.runners.protocol import Answer, Job, Prompt, run_waves, serve


class StepClock(BaseStreamer):
    """Tells each step and looks at nothing. generate() hands it the prompt first, and allows it one sequence."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._has_prompt:
            self._told()
        self._has_prompt = True

    def end(self) -> None:
        """The last step was told already."""


class Generation:
    def __init__(self, weights: Path, settings: Job) -> None:
        torch.set_num_threads(settings["num_threads"])
        self._model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()

    def generate(
        self, prompts: list[Prompt], num_output_tokens: int, told: Callable[[], None]
    ) -> list[list[int]]:
        inputs = torch.tensor([list(prompt) for prompt in prompts])
        with torch.inference_mode():
            output = self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=num_output_tokens,
                min_new_tokens=num_output_tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=StepClock(told),
            )
        tokens: list[list[int]] = output[:, inputs.shape[1] :].tolist()
        return tokens


def _make_run(weights: Path, settings: Job) -> Callable[[Job], Answer]:
    if settings["prefix_cache"]:
        raise ValueError("transformers' generate() has no prefix cache")
    generation = Generation(weights, settings)
    return lambda workload: run_waves(generation, workload)


if __name__ == "__main__":
    serve(_make_run)
