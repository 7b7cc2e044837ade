"""The least time the hardware allows, from bytes that must be moved and operations that must be done (16-bit)."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu.models import Shape


@dataclass(slots=True, frozen=True)
class Ceilings:
    """What a machine reaches: device copy (bytes read plus written per second) and large 16-bit products."""

    bytes_per_s: float = 3.0e12
    flop_per_s: float = 8.0e14


def decode_step_s(shape: Shape, ceilings: Ceilings, *, batch: int, context: float) -> float:
    """One token for each of `batch` sequences: all weights and all their keys and values are read once."""
    parameters = shape.body_parameters + shape.head_parameters
    moved = 2 * parameters + batch * context * shape.kv_bytes_per_token
    attention = 4 * shape.num_layers * shape.num_heads * shape.head_dim * context
    return max(moved / ceilings.bytes_per_s, batch * (2 * parameters + attention) / ceilings.flop_per_s)


def prefill_s(shape: Shape, ceilings: Ceilings, *, tokens: int) -> float:
    """A prompt up to its first token; causal attention counts half of the square."""
    flop = 2.0 * shape.body_parameters * tokens + 2.0 * shape.head_parameters
    flop += 2.0 * shape.num_layers * shape.num_heads * shape.head_dim * tokens**2
    weights = 2 * (shape.body_parameters + shape.head_parameters)
    return max(flop / ceilings.flop_per_s, weights / ceilings.bytes_per_s)


def mix_s(shape: Shape, ceilings: Ceilings, lengths: list[tuple[int, int]]) -> float:
    """All (prompt, output) lengths resident at once: every prefill, then a shrinking batch of decode steps."""
    seconds = sum(prefill_s(shape, _compute_only(ceilings), tokens=prompt) for prompt, _ in lengths)
    for step in range(1, max(output for _, output in lengths)):
        running = [prompt + step for prompt, output in lengths if output > step]
        context = sum(running) / len(running)
        seconds += decode_step_s(shape, ceilings, batch=len(running), context=context)
    return seconds


def _compute_only(ceilings: Ceilings) -> Ceilings:
    """Prompts share their steps, so each does not read the weights alone."""
    return Ceilings(bytes_per_s=float("inf"), flop_per_s=ceilings.flop_per_s)
