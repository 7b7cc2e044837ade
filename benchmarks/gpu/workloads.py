"""What is measured, in numbers; the same for every engine."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Workload:
    """Decode: `decode_batches` prompts of `decode_prompt` tokens, timed over `decode_steps` after `decode_skip`."""

    decode_batches: tuple[int, ...]
    decode_prompt: int
    decode_skip: int
    decode_steps: int
    prefill_lengths: tuple[int, ...]
    mix_requests: int
    mix_lengths: tuple[int, int]
    vocab_size: int
    repeats: int


FULL = Workload((1, 32, 256), 128, 8, 96, (1024, 8192), 256, (100, 1024), 10_000, 3)
TINY = Workload((1, 2, 4), 16, 2, 8, (32, 64), 6, (4, 16), 500, 2)


def prompts(count: int, length: int, workload: Workload, *, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(10, workload.vocab_size) for _ in range(length)] for _ in range(count)]


def mix(workload: Workload) -> tuple[list[list[int]], list[int]]:
    """Prompts and output lengths of nano-vllm's bench.py: its seed and order of draws, so the same token counts."""
    rng = random.Random(0)
    shortest, longest = workload.mix_lengths
    ids = [
        [rng.randint(0, workload.vocab_size) for _ in range(rng.randint(shortest, longest))]
        for _ in range(workload.mix_requests)
    ]
    return ids, [rng.randint(shortest, longest) for _ in range(workload.mix_requests)]
