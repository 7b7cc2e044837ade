"""When flash-attn 2 and 3 are used, and what they are asked: stand-ins with their signatures answer in torch."""

from __future__ import annotations

import sys
from importlib import metadata as distributions
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from serving.attention import flash_attn_3
from serving.attention.flash_attn import FlashAttention, fits
from serving.attention.flash_attn_3 import FlashAttention3
from serving.attention.registry import choose_attention
from serving.errors import ConfigError
from serving.kernels import reference
from serving.kernels.reference.attention import write_kv
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


def _decode_stand_in(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *, cache_seqlens: Tensor, block_table: Tensor, softmax_scale: float,
    causal: bool, window_size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Version 2's flash_attn_with_kvcache: q [B, queries, H, D]."""
    assert cache_seqlens.dtype == block_table.dtype == torch.int32
    starts = torch.arange(len(q) + 1, dtype=torch.int32) * q.shape[1]
    return _paged(
        q.flatten(0, 1), k_cache, v_cache, block_table, cache_seqlens, starts, softmax_scale, causal, window_size
    ).view(q.shape)  # fmt: skip


def _cached_stand_in_3(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *, cache_seqlens: Tensor, page_table: Tensor, cu_seqlens_q: Tensor,
    max_seqlen_q: int, softmax_scale: float, causal: bool, window_size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Version 3's flash_attn_with_kvcache: q [T, H, D] with cu_seqlens_q, blocks of any size."""
    assert cache_seqlens.dtype == page_table.dtype == cu_seqlens_q.dtype == torch.int32
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    return _paged(
        q, k_cache, v_cache, page_table, cache_seqlens, cu_seqlens_q, softmax_scale, causal, window_size
    )


def _packed_stand_in_3(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    softmax_scale: float, causal: bool, window_size: tuple[int, int],
) -> Tensor:  # fmt: skip
    return _stand_in(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q, block_table=None,
        max_seqlen_k=max_seqlen_k, softmax_scale=softmax_scale, causal=causal, window_size=window_size,
    )  # fmt: skip


def _paged(
    q: Tensor, k: Tensor, v: Tensor, tables: Tensor, lens: Tensor, starts: Tensor, scale: float, causal: bool,
    window_size: tuple[int, int],
) -> Tensor:  # fmt: skip
    assert causal and window_size[1] in (-1, 0)
    window = None if window_size[0] < 0 else window_size[0] + 1
    outputs = []
    for row, length in enumerate(lens.tolist()):
        query = q[starts[row] : starts[row + 1]]
        keys, values = (t[tables[row].long()].flatten(0, 1)[:length] for t in (k, v))
        outputs.append(dense(query, keys, values, scale=scale, window=window, softcap=0.0))
    return torch.cat(outputs).to(q.dtype)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FlashAttention:
    package: Any = ModuleType("flash_attn")
    package.flash_attn_varlen_func = _stand_in
    package.flash_attn_with_kvcache = _decode_stand_in
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


@pytest.mark.parametrize("window", [None, 9])
def test_decode_reads_its_lengths_on_the_device(backend: FlashAttention, window: int | None) -> None:
    problem = build(Case(rows=((1, 33), (1, 300), (1, 1)), num_heads=8, block_size=256, window=window))
    output = backend.forward(
        problem.query,
        problem.key,
        problem.value,
        cache=problem.cache,
        metadata=problem.metadata,
        scale=problem.scale,
        window=window,
    )
    assert relative_error(output, problem.expected) < 1e-6
    assert not problem.metadata.scratch, "a captured step would read what was derived for another"


def _rotate(
    query_key: Tensor, value: Tensor, table: Tensor, positions: Tensor, key_cache: Tensor, value_cache: Tensor,
    slots: Tensor,
) -> Tensor:  # fmt: skip
    rotated = reference.rotary(query_key, table, positions)
    num_heads = query_key.shape[1] - value.shape[1]
    write_kv(rotated[:, num_heads:], value, key_cache, value_cache, slots)
    return rotated[:, :num_heads]


@pytest.fixture
def version_3(monkeypatch: pytest.MonkeyPatch) -> FlashAttention3:
    package: Any = ModuleType("flash_attn_interface")
    package.flash_attn_varlen_func = _packed_stand_in_3
    package.flash_attn_with_kvcache = _cached_stand_in_3
    monkeypatch.setitem(sys.modules, "flash_attn_interface", package)
    return FlashAttention3(_rotate)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("cached", [True, False])
def test_version_3_is_asked_the_right_question(
    version_3: FlashAttention3, cached: bool, window: int | None
) -> None:
    rows = ((1, 33), (7, 7), (19, 300)) if cached else ((5, 5), (40, 40))
    problem = build(Case(rows=rows, num_heads=8, window=window))
    output = version_3.forward(
        problem.query,
        problem.key,
        problem.value,
        cache=problem.cache if cached else None,
        metadata=problem.metadata,
        scale=problem.scale,
        window=window,
    )
    assert relative_error(output, problem.expected) < 1e-6


def test_version_3_rotates_first(version_3: FlashAttention3) -> None:
    """Angles of 0 leave everything as it is; half a turn changes the sign of queries and keys, which cancels out."""
    problem = build(Case(rows=((4, 4), (3, 3)), num_heads=8))
    half = problem.query.shape[2] // 2
    table = torch.cat((torch.tensor([[1.0], [-1.0]]).expand(2, half), torch.zeros(2, half)), dim=1)
    for turn in (0, 1):
        problem.cache.key.fill_(torch.nan)
        output = version_3.forward_rotating(
            torch.cat((problem.query, problem.key), dim=1),
            problem.value,
            rotary_table=table,
            positions=torch.full((len(problem.query),), turn),
            cache=problem.cache,
            metadata=problem.metadata,
            scale=problem.scale,
            window=None,
        )
        assert relative_error(output, problem.expected) < 1e-6
        written = problem.cache.key.flatten(0, 1)[problem.metadata.slot_mapping]
        assert torch.equal(written, problem.key * (1 - 2 * turn))


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "installed", "reason"),
    [
        (torch.bfloat16, 128, (9, 0), True, None),
        (torch.bfloat16, 128, (8, 0), True, "8.0"),
        (torch.bfloat16, 128, (10, 0), True, "10.0"),
        (torch.float32, 128, (9, 0), True, "float32"),
        (torch.float16, 288, (9, 0), True, "288"),
        (torch.float16, 128, (9, 0), False, "not installed"),
    ],
)
def test_version_3_fits_or_says_why_not(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int],
    installed: bool,
    reason: str | None,
) -> None:
    monkeypatch.setattr(flash_attn_3, "find_spec", lambda name: object() if installed else None)
    answer = flash_attn_3.fits(dtype=dtype, head_dim=head_dim, capability=capability)
    assert answer is None if reason is None else answer is not None and reason in answer


def _choose(preferred: str = "triton", **changes: Any) -> tuple[str, str]:
    facts: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "head_dim": 128,
        "block_size": 256,
        "deterministic": False,
        "capability": (9, 0),
    }
    return choose_attention(preferred, **facts | changes)


def test_the_fastest_that_fits_is_chosen_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, "2.8.3")
    monkeypatch.setattr(flash_attn_3, "find_spec", lambda name: object())
    assert _choose() == ("flash_attn_3", "installed and fits")
    assert _choose(capability=(8, 0)) == ("flash_attn", "installed and fits")
    name, reason = _choose(capability=(8, 0), block_size=16)
    assert name == "triton" and "8.0" in reason and "the cache has 16" in reason
    assert _choose(deterministic=True)[0] == "triton"
    assert _choose("native")[0] == "native"


def test_a_float8_cache_needs_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, "2.8.3")
    monkeypatch.setattr(flash_attn_3, "find_spec", lambda name: object())
    name, reason = _choose(kv_cache_dtype=torch.float8_e4m3fn)
    assert name == "triton" and "float8_e4m3fn" in reason
    for preferred in ("native", "sdpa"):
        with pytest.raises(ConfigError, match="KV_CACHE_DTYPE"):
            _choose(preferred, kv_cache_dtype=torch.float8_e4m3fn)
    assert _choose("sdpa", kv_cache_dtype=torch.bfloat16)[0] == "sdpa"
