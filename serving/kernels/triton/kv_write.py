# Kernel bodies are Triton's language, not Python's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""Writing a step's keys and values into the paged cache, in Triton. Knows slots, not blocks or rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> None:
    """Copy key/value [T, Hkv, D] to `slot_mapping` [T] int64 of caches [num_blocks, block_size, Hkv, D].

    A slot is block * block_size + offset. Tokens with a negative slot are skipped. The cache's dtype wins; float8_e4m3fn
    receives key / key_scale and value / value_scale (float32 [1] or [Hkv]), to nearest even, limited to +-448.
    """
    num_tokens, num_kv_heads, head_dim = key.shape
    if num_tokens == 0:
        return
    key_cache, value_cache = as_stored(key_cache), as_stored(value_cache)
    _reshape_and_cache_kernel[(num_tokens,)](
        key, value, key_cache, value_cache, slot_mapping, key_scale, value_scale,
        key.stride(0), key.stride(1), key.stride(2), value.stride(0), value.stride(1), value.stride(2),
        key_cache.stride(0), key_cache.stride(1), key_cache.stride(2), key_cache.stride(3),
        value_cache.stride(0), value_cache.stride(1), value_cache.stride(2), value_cache.stride(3),
        BLOCK_SIZE=key_cache.shape[1],
        HEAD_DIM=head_dim,
        NUM_ELEMENTS=num_kv_heads * head_dim,
        NUM_ELEMENTS_PADDED=triton.next_power_of_2(num_kv_heads * head_dim),
        KEY_SCALES=0 if key_scale is None else key_scale.numel(),
        VALUE_SCALES=0 if value_scale is None else value_scale.numel(),
    )  # fmt: skip


def as_stored(cache: Tensor) -> Tensor:
    """float8 as bytes: not every GPU that Triton knows has the type."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


@triton.jit
def float8_bits(x):
    """float8_e4m3fn of float32 `x`: to nearest even, limited to +-448, NaN stays NaN."""
    magnitude = tl.minimum(tl.abs(x), 448.0)
    bits = magnitude.to(tl.uint32, bitcast=True)
    # 20 of 23 mantissa bits are rounded away; the exponent's bias changes from 127 to 7.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 steps are 2^-9 wide, which is what float32 keeps of a number near 2^14.
    subnormal = (magnitude + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0.015625, subnormal, normal)
    code = tl.where(x != x, 0x7F, code)
    sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
    return (code | sign).to(tl.uint8)


@triton.jit
def store_in_cache(at, x, scale, head, used, SCALES: tl.constexpr):
    """Store `x` in the cache's type; `head` is the KV head of each element."""
    if SCALES > 0:
        x = x.to(tl.float32) / tl.load(scale + head % SCALES, mask=used, other=1.0)
    if at.dtype.element_ty == tl.uint8:
        tl.store(at, float8_bits(x.to(tl.float32)), mask=used)
    else:
        tl.store(at, x.to(at.dtype.element_ty), mask=used)


@triton.jit
def _reshape_and_cache_kernel(
    key, value, key_cache, value_cache, slot_mapping, key_scale, value_scale,
    key_stride_token, key_stride_head, key_stride_dim,
    value_stride_token, value_stride_head, value_stride_dim,
    key_cache_stride_block, key_cache_stride_token, key_cache_stride_head, key_cache_stride_dim,
    value_cache_stride_block, value_cache_stride_token, value_cache_stride_head, value_cache_stride_dim,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    NUM_ELEMENTS: tl.constexpr, NUM_ELEMENTS_PADDED: tl.constexpr,
    KEY_SCALES: tl.constexpr, VALUE_SCALES: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    block = slot // BLOCK_SIZE
    offset = slot % BLOCK_SIZE
    elements = tl.arange(0, NUM_ELEMENTS_PADDED)
    used = elements < NUM_ELEMENTS
    head = elements // HEAD_DIM
    dim = elements % HEAD_DIM
    key_from = key + token * key_stride_token + head * key_stride_head + dim * key_stride_dim
    value_from = value + token * value_stride_token + head * value_stride_head + dim * value_stride_dim
    key_to = key_cache + block * key_cache_stride_block + offset * key_cache_stride_token
    key_to += head * key_cache_stride_head + dim * key_cache_stride_dim
    value_to = value_cache + block * value_cache_stride_block + offset * value_cache_stride_token
    value_to += head * value_cache_stride_head + dim * value_cache_stride_dim
    store_in_cache(key_to, tl.load(key_from, mask=used), key_scale, head, used, KEY_SCALES)
    store_in_cache(value_to, tl.load(value_from, mask=used), value_scale, head, used, VALUE_SCALES)
