"""An engine whose kernels are all Triton's, run by its interpreter; started with TRITON_INTERPRET=1 by its test."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from serving.kernels import dispatch
from serving.kernels.triton import sampler
from serving.sampling_params import SamplingParams
from tests.models.checkpoints import VOCAB_SIZE, write_checkpoint
from tests.unit.worker.runner_engine import ApartDevice, Generated, RunAgainBackend, generate, make_core

WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 5, "top_k": 30, "top_p": 0.95},
    {"temperature": 0.0, "top_n_tokens": 3},
]


class InterpretedDevice(ApartDevice):
    default_attention_backend = "triton"


def compare(model: str, num_tokens: int, kv_cache_dtype: str) -> dict[str, Any]:
    """What overlapped and captured steps generate with these kernels. With a cache of the model's type beside the CPU's own
    engine, with a float8 cache beside steps one by one: are all tokens the same, and the largest difference of
    log-probabilities; and that of the first tokens beside the CPU's."""
    rng = random.Random(1)
    requests = {
        str(index): (
            [rng.randrange(VOCAB_SIZE) for _ in range(length)],
            SamplingParams(max_new_tokens=num_tokens + index, **WAYS[index % len(WAYS)]),
        )
        for index, length in enumerate([3, 19, 6])
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(model, folder)
        on_cpu = generate(make_core(folder), requests)
        use_triton_kernels()
        changes = {"kv_cache_dtype": kv_cache_dtype}
        got = _generate(folder, requests, async_scheduling=True, **changes)
        alike = (
            on_cpu
            if kv_cache_dtype == "auto"
            else _generate(folder, requests, async_scheduling=False, **changes)
        )
    first = {key: (ids[:1], logprobs[:1]) for key, (ids, logprobs) in got.items()}
    return {
        "tokens": all(got[key][0] == ids for key, (ids, _) in alike.items()),
        "logprobs": _largest(got, alike),
        "first_logprobs": _largest(first, on_cpu),
    }


def use_triton_kernels() -> None:
    sampler.TILE = 256  # the interpreter computes what lies beyond a small vocabulary too
    known = dispatch.triton_kernels()
    dispatch.select_kernels = lambda device, *, deterministic: known  # type: ignore[assignment]
    from serving.models import registry

    registry.select_kernels = dispatch.select_kernels  # type: ignore[attr-defined]


def _generate(folder: Path, requests: Any, *, async_scheduling: bool, **changes: Any) -> Generated:
    graphs = RunAgainBackend(step=2) if async_scheduling else None
    core = make_core(
        folder, device=InterpretedDevice(), kernels=dispatch.triton_kernels(), graphs=graphs, max_num_seqs=4,
        num_blocks=60, async_scheduling=async_scheduling, **changes,
    )  # fmt: skip
    return generate(core, requests)


def _largest(got: Generated, wanted: Generated) -> float:
    return max(
        abs(a - b)
        for key in got
        for a, b in zip(got[key][1], wanted[key][1][: len(got[key][1])], strict=True)
    )
