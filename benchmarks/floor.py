"""The least time the hardware allows, from bytes that must be moved and operations that must be done.

Knows models by their dimensions and machines by two rates; knows no engine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Dimensions(Protocol):
    """What of a model decides its speed."""

    @property
    def body_parameters(self) -> int:
        """Matrices of all layers."""
        ...

    @property
    def head_parameters(self) -> int: ...

    @property
    def kv_bytes_per_token(self) -> int: ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of one parameter."""
        ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...


@dataclass(slots=True, frozen=True)
class Ceilings:
    """What a machine reaches: bytes moved per second and operations per second of a large product.

    The defaults are an H100's: a device copy (bytes read plus written) and a bfloat16 product.
    """

    bytes_per_s: float = 3.0e12
    flop_per_s: float = 8.0e14


@dataclass(slots=True, frozen=True)
class Job:
    """One request: prompt tokens, how many of them are already computed, and output tokens."""

    prompt: int
    output: int
    cached: int = 0


@dataclass(slots=True, frozen=True)
class Checkpoint:
    """Dimensions read from a Hugging Face `config.json` of the Llama kind."""

    body_parameters: int
    head_parameters: int
    kv_bytes_per_token: int
    weight_bytes: int
    num_layers: int
    num_heads: int
    head_dim: int

    @classmethod
    def read(cls, folder: Path, *, weight_bytes: int = 4) -> Checkpoint:
        """`weight_bytes`: of one parameter as the engines compute it, 4 for float32."""
        config = json.loads((folder / "config.json").read_text())
        hidden, num_heads = config["hidden_size"], config["num_attention_heads"]
        num_kv_heads = config.get("num_key_value_heads", num_heads)
        head_dim = config.get("head_dim") or hidden // num_heads
        attention = hidden * head_dim * 2 * (num_heads + num_kv_heads)
        layers = config["num_hidden_layers"]
        return cls(
            body_parameters=layers * (attention + 3 * hidden * config["intermediate_size"]),
            head_parameters=config["vocab_size"] * hidden,
            kv_bytes_per_token=2 * layers * num_kv_heads * head_dim * weight_bytes,
            weight_bytes=weight_bytes,
            num_layers=layers,
            num_heads=num_heads,
            head_dim=head_dim,
        )


def decode_step_s(model: Dimensions, ceilings: Ceilings, *, batch: int, context: float) -> float:
    """One token for each of `batch` sequences: all weights and all their keys and values are read once."""
    parameters = model.body_parameters + model.head_parameters
    moved = model.weight_bytes * parameters + batch * context * model.kv_bytes_per_token
    attention = 4 * model.num_layers * model.num_heads * model.head_dim * context
    return max(moved / ceilings.bytes_per_s, batch * (2 * parameters + attention) / ceilings.flop_per_s)


def prefill_s(model: Dimensions, ceilings: Ceilings, *, tokens: int, cached: int = 0) -> float:
    """A prompt of `tokens`, of which `cached` are computed already, up to its first token.

    Causal attention counts half of the square.
    """
    flop = 2.0 * model.body_parameters * (tokens - cached) + 2.0 * model.head_parameters
    flop += 2.0 * model.num_layers * model.num_heads * model.head_dim * (tokens**2 - cached**2)
    weights = model.weight_bytes * (model.body_parameters + model.head_parameters)
    return max(flop / ceilings.flop_per_s, weights / ceilings.bytes_per_s)


def jobs_s(
    model: Dimensions, ceilings: Ceilings, jobs: Sequence[Job], *, concurrency: int | None = None
) -> float:
    """All jobs from first to last, at most `concurrency` at a time (None: all at once).

    Each is prefilled the moment that it begins and then decoded with those that run beside it.
    """
    # Prompts share their steps, so each does not read the weights alone.
    compute_only = Ceilings(bytes_per_s=float("inf"), flop_per_s=ceilings.flop_per_s)
    waiting = list(reversed(jobs))
    running: list[list[int]] = []  # context so far, tokens to come
    seconds = 0.0
    while waiting or running:
        while waiting and (concurrency is None or len(running) < concurrency):
            job = waiting.pop()
            seconds += prefill_s(model, compute_only, tokens=job.prompt, cached=job.cached)
            if job.output > 1:
                running.append([job.prompt + 1, job.output - 1])
        if running:
            context = sum(one[0] for one in running) / len(running)
            seconds += decode_step_s(model, ceilings, batch=len(running), context=context)
        for one in running:
            one[0] += 1
            one[1] -= 1
        running = [one for one in running if one[1]]
    return seconds
