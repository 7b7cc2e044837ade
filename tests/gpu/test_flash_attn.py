"""When flash-attn is used, and what it is asked: a stand-in with its signature computes the answer in torch."""

from __future__ import annotations

import sys
from importlib import metadata as distributions
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from serving.attention.flash_attn import FlashAttention, fits
from tests.gpu.attention_cases import Case, build, dense, relative_error


def _installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def answer(name: str) -> str:
        if version is None:
            raise distributions.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(distributions, "version", answer)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "block_size", "version", "reason"),
    [
        (torch.bfloat16, 128, 256, "2.8.3", None),
        (torch.float16, 256, 512, "2.5.0.post1", None),
        (torch.float32, 128, 256, "2.8.3", "float32"),
        (torch.bfloat16, 288, 256, "2.8.3", "288"),
        (torch.bfloat16, 128, 16, "2.8.3", "the cache has 16"),
        (torch.bfloat16, 128, 256, None, "not installed"),
        (torch.bfloat16, 128, 256, "2.4.9", "2.4.9"),
    ],
)
def test_it_fits_or_says_why_not(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    head_dim: int,
    block_size: int,
    version: str | None,
    reason: str | None,
) -> None:
    _installed(monkeypatch, version)
    answer = fits(dtype=dtype, head_dim=head_dim, block_size=block_size)
    assert answer is None if reason is None else answer is not None and reason in answer


def _stand_in(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, softmax_scale: float, causal: bool, window_size: tuple[int, int], block_table: Tensor | None,
) -> Tensor:  # fmt: skip
    """flash_attn_varlen_func by the definitions of its documentation; the mask is aligned to the last key."""
    assert causal and window_size[1] in (-1, 0)
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    outputs = []
    for row in range(len(cu_seqlens_q) - 1):
        query = q[cu_seqlens_q[row] : cu_seqlens_q[row + 1]]
        length = int(cu_seqlens_k[row + 1] - cu_seqlens_k[row])
        assert len(query) <= max_seqlen_q and length <= max_seqlen_k
        if block_table is None:
            keys, values = (t[cu_seqlens_k[row] : cu_seqlens_k[row + 1]] for t in (k, v))
        else:
            keys, values = (t[block_table[row].long()].flatten(0, 1)[:length] for t in (k, v))
        window = None if window_size[0] < 0 else window_size[0] + 1
        outputs.append(dense(query, keys, values, scale=softmax_scale, window=window, softcap=0.0))
    return torch.cat(outputs).to(q.dtype)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FlashAttention:
    package: Any = ModuleType("flash_attn")
    package.flash_attn_varlen_func = _stand_in
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    return FlashAttention()


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("cached", [True, False])
def test_it_is_asked_the_right_question(backend: FlashAttention, cached: bool, window: int | None) -> None:
    rows = ((1, 33), (7, 7), (19, 300)) if cached else ((5, 5), (40, 40))
    problem = build(Case(rows=rows, num_heads=8, block_size=256, window=window))
    output = backend.forward(
        problem.query,
        problem.key,
        problem.value,
        cache=problem.cache if cached else None,
        metadata=problem.metadata,
        scale=problem.scale,
        window=window,
    )
    assert relative_error(output, problem.expected) < 1e-6
