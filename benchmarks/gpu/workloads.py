"""What is measured, in numbers; the same for every engine."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Workload:
    """Decode: sequences of `decode_prompt` tokens, timed over `decode_steps` after `decode_skip`; `long_prompt` is for ours
    alone. Lengths are ranges, both ends included. `repeats`: of every figure, whose median counts."""

    decode_batches: tuple[int, ...]
    decode_prompt: int
    long_prompt: int
    decode_skip: int
    decode_steps: int
    prefill_lengths: tuple[int, ...]
    mix_requests: int
    mix_lengths: tuple[int, int]
    saturated_requests: int
    saturated_lengths: tuple[int, int]
    saturated_rows: tuple[int, ...]
    """How many sequences may run at once."""
    first_token_prompt: int
    first_token_requests: int
    prefix_requests: int
    prefix_lengths: tuple[int, int]
    vocab_size: int
    repeats: int

    def decode_context(self, prompt: int) -> float:
        """Tokens that a sequence has on average while its steps are timed."""
        return prompt + self.decode_skip + self.decode_steps / 2


FULL = Workload(
    decode_batches=(1, 32, 256),
    decode_prompt=128,
    long_prompt=1024,
    decode_skip=8,
    decode_steps=128,
    prefill_lengths=(1024, 8192),
    mix_requests=256,
    mix_lengths=(100, 1024),
    saturated_requests=1024,
    saturated_lengths=(64, 192),
    saturated_rows=(256, 512),
    first_token_prompt=1024,
    first_token_requests=12,
    prefix_requests=20,
    prefix_lengths=(8192, 10_240),
    vocab_size=10_000,
    repeats=3,
)
TINY = Workload(
    decode_batches=(1, 2, 4),
    decode_prompt=16,
    long_prompt=48,
    decode_skip=2,
    decode_steps=8,
    prefill_lengths=(32, 64),
    mix_requests=6,
    mix_lengths=(4, 16),
    saturated_requests=12,
    saturated_lengths=(4, 12),
    saturated_rows=(4, 8),
    first_token_prompt=64,
    first_token_requests=3,
    prefix_requests=4,
    prefix_lengths=(200, 256),
    vocab_size=500,
    repeats=2,
)


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


def saturated(workload: Workload, *, seed: int) -> tuple[list[list[int]], list[int]]:
    """Prompts and output lengths of a crowd of short requests; each `seed` has other prompts and the same lengths."""
    rng, lengths = random.Random(seed), random.Random(0)
    count, (shortest, longest) = workload.saturated_requests, workload.saturated_lengths
    prompt_lengths = [lengths.randint(shortest, longest) for _ in range(count)]
    ids = [[rng.randrange(10, workload.vocab_size) for _ in range(length)] for length in prompt_lengths]
    return ids, [lengths.randint(shortest, longest) for _ in range(count)]


def long_prompts(workload: Workload) -> list[list[int]]:
    """Prompts that are worth keeping."""
    rng = random.Random(7)
    return [
        [rng.randrange(10, workload.vocab_size) for _ in range(rng.randint(*workload.prefix_lengths))]
        for _ in range(workload.prefix_requests)
    ]
