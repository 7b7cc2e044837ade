"""Every kernel is launched as on a GPU, up to the moment where one is needed: Triton binds and types the arguments that the
launching code gives, which its interpreter does not do, and (full) compiles what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import jit

from serving.contracts import SamplerSteps
from serving.kernels.small_sums import MAX_PROGRAMS
from serving.kernels.triton import kv_write, one_shot, paged_attention, pointwise
from serving.kernels.triton.sampler_launch import TritonSampler, token_logprobs

TARGET = GPUTarget("cuda", 90, 32)
CPU = torch.device("cpu")
BLOCK_SIZE = 16
STEPS = [
    SamplerSteps(),
    SamplerSteps(likeliest=True),
    SamplerSteps(draws=True, top_k=True, top_p=True),
    SamplerSteps(draws=True, top_k=True, top_p=True, raw=True, likeliest=True),
]


@dataclass
class Launches:
    """What Triton's `run` is replaced by. `builds` are the variants that it would compile, by kernel."""

    compiles: bool = False
    builds: dict[str, set[str]] = field(default_factory=dict)

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        backend = make_backend(TARGET)
        options |= {"debug": False}
        bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, _ = bind(*args, **options)
        parsed, signature, constants, attributes = kernel._pack_args(
            backend, options, bound, specialization, options
        )
        assert set(signature.values()) <= {
            "constexpr", "i32", "i64", "fp32", "*fp32", "*fp64", "*bf16", "*u8", "*i32", "*i64",
        }  # fmt: skip
        build = str((specialization, sorted(parsed.__dict__.items(), key=lambda item: item[0])))
        known = self.builds.setdefault(kernel.__name__, set())
        if build not in known and self.compiles:
            source = ASTSource(kernel, signature, constants, attributes)
            assert triton.compile(source, target=TARGET, options=parsed.__dict__).asm["cubin"]
        known.add(build)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    found = Launches()
    monkeypatch.setattr(
        jit.JITFunction, "run", lambda kernel, *args, **options: found.run(kernel, *args, **options)
    )
    monkeypatch.setattr(paged_attention, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(paged_attention, "_num_multiprocessors", lambda device: 132)
    return found


def step(num_rows: int, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    """A layer's kernels: heads of 64, four of queries and two of keys."""
    width, heads, kv_heads, dim = 256, 4, 2, 64
    x = torch.zeros(num_rows, width, dtype=dtype)
    pointwise.rms_norm(x, x[0], 1e-5)
    pointwise.add_rms_norm(x, x.clone(), x[0], 1e-5)
    fused = torch.zeros(num_rows, heads + 2 * kv_heads, dim, dtype=dtype)
    rotated, value = fused[:, : heads + kv_heads], fused[:, heads + kv_heads :]
    rotated = pointwise.rms_norm(rotated, torch.zeros(heads + kv_heads, dim, dtype=dtype), 1e-6)
    table, positions = torch.zeros(64, dim, dtype=dtype), torch.zeros(num_rows, dtype=torch.int64)
    caches = [torch.zeros(4, BLOCK_SIZE, kv_heads, dim).to(cache_dtype) for _ in range(2)]
    pointwise.rotary(rotated, table, positions)
    query = kv_write.rotate_and_cache(rotated, value, table, positions, *caches, positions)
    kv_write.reshape_and_cache(rotated[:, heads:], value, *caches, positions)
    pointwise.silu_mul(torch.zeros(num_rows, 512, dtype=dtype))
    addresses, turns = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(MAX_PROGRAMS, dtype=torch.int64)
    one_shot.one_shot_sum(x, *addresses, turns, rank=1, num_ranks=2)
    for deterministic in (False, True):
        launch = paged_attention.Launch(
            counters=paged_attention.new_counters(CPU), deterministic=deterministic
        )
        for lens in ([1] * num_rows, [num_rows]):
            paged_attention.paged_attention(
                query,
                *caches,
                block_tables=torch.zeros(len(lens), 8, dtype=torch.int32),
                seq_lens=torch.tensor(lens, dtype=torch.int32),
                query_start=torch.tensor([0, *lens], dtype=torch.int32).cumsum(0, dtype=torch.int32),
                max_query_len=max(lens),
                scale=0.125,
                launch=launch,
            )


def choose(logits: Tensor, *, max_rows: int = 4) -> None:
    """Everything the sampler can be asked for."""
    count, vocab = logits.shape
    sampler = TritonSampler(max_rows, vocab, CPU)
    for steps in STEPS:
        for bits in (None, torch.zeros(3, vocab // 32 + 1, dtype=torch.int32)):
            sampler.launch(logits, torch.zeros(count, 9, dtype=torch.int64), steps, bits=bits)


def launch_all() -> None:
    for num_rows in (1, 2, 48):
        step(num_rows, torch.bfloat16, torch.bfloat16)
        step(num_rows, torch.bfloat16, torch.float8_e4m3fn)
    choose(torch.zeros(2, 5000))
    token_logprobs(torch.zeros(2, 5000), torch.zeros(2, dtype=torch.int64))


def test_arguments_are_bound_and_typed(launches: Launches) -> None:
    launch_all()
    assert len(launches.builds) == 16


def test_a_lone_row_needs_no_builds_of_its_own(launches: Launches) -> None:
    """Logits without the padding of the vocabulary: torch keeps the stride of the padded rows for one, not for several."""
    padded = torch.zeros(4, 5008, dtype=torch.bfloat16)
    choose(padded[:, :5001].float())
    before = {name: set(builds) for name, builds in launches.builds.items()}
    lone = padded[:1, :5001].float()
    assert lone.stride(0) == 5008
    choose(lone)
    assert launches.builds == before


@pytest.mark.full
def test_what_is_launched_compiles(
    launches: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches.compiles = True
    launch_all()
