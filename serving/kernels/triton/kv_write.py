# Kernel bodies are Triton's language, not Python's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""Writing a step's keys and values into the paged cache, in Triton, on its own or together with the rotation of queries and
keys. Knows slots, not blocks or rows."""

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


def rotate_and_cache(
    query_key: Tensor,
    value: Tensor,
    table: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """query_key [T, Hq + Hkv, D], value [T, Hkv, D] -> rotated queries [T, Hq, D]; rotated keys and values go to the caches.

    The same as `pointwise.rotary` of queries and keys by `table` [P, D] and `positions` [T] int64, followed by
    `reshape_and_cache`. Queries of tokens with a negative slot are rotated all the same.
    """
    num_tokens, num_kv_heads, head_dim = value.shape
    num_heads = query_key.shape[1] - num_kv_heads
    query = torch.empty((num_tokens, num_heads, head_dim), dtype=query_key.dtype, device=query_key.device)
    if num_tokens == 0:
        return query
    key_cache, value_cache = as_stored(key_cache), as_stored(value_cache)
    group = num_heads // num_kv_heads
    _rotate_and_cache_kernel[(num_tokens, num_kv_heads)](
        query, query_key, value, table, positions, key_cache, value_cache, slot_mapping, key_scale, value_scale,
        query_key.stride(0), query_key.stride(1), query_key.stride(2), value.stride(0), value.stride(1), value.stride(2),
        key_cache.stride(0), key_cache.stride(1), key_cache.stride(2), key_cache.stride(3),
        value_cache.stride(0), value_cache.stride(1), value_cache.stride(2), value_cache.stride(3), table.stride(0),
        NUM_HEADS=num_heads,
        GROUP=group,
        GROUP_PADDED=triton.next_power_of_2(group),
        BLOCK_SIZE=key_cache.shape[1],
        HALF=head_dim // 2,
        HALF_PADDED=triton.next_power_of_2(head_dim // 2),
        KEY_SCALES=0 if key_scale is None else key_scale.numel(),
        VALUE_SCALES=0 if value_scale is None else value_scale.numel(),
        num_warps=4 if group * head_dim > 1024 else 1,
    )  # fmt: skip
    return query


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


@triton.jit
def _rotated(at, dims, stride_dim, cosine, sine, used, HALF: tl.constexpr):
    """Both halves, rounded to the type of what `at` points to."""
    first = tl.load(at + dims * stride_dim, mask=used, other=0.0).to(tl.float32)
    second = tl.load(at + (dims + HALF) * stride_dim, mask=used, other=0.0).to(tl.float32)
    kind = at.dtype.element_ty
    return (first * cosine - second * sine).to(kind), (second * cosine + first * sine).to(kind)


@triton.jit
def _rotate_and_cache_kernel(
    query, query_key, value, table, positions, key_cache, value_cache, slot_mapping, key_scale, value_scale,
    stride_token, stride_head, stride_dim,
    value_stride_token, value_stride_head, value_stride_dim,
    key_cache_stride_block, key_cache_stride_token, key_cache_stride_head, key_cache_stride_dim,
    value_cache_stride_block, value_cache_stride_token, value_cache_stride_head, value_cache_stride_dim, table_stride,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HALF: tl.constexpr, HALF_PADDED: tl.constexpr, KEY_SCALES: tl.constexpr, VALUE_SCALES: tl.constexpr,
):  # fmt: skip
    """Grid (T, Hkv): one KV head and the query heads that share it."""
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    dims = tl.arange(0, HALF_PADDED)
    there = dims < HALF
    angles = table + tl.load(positions + token) * table_stride + dims
    cosine = tl.load(angles, mask=there, other=0.0).to(tl.float32)
    sine = tl.load(angles + HALF, mask=there, other=0.0).to(tl.float32)

    members = tl.arange(0, GROUP_PADDED)[:, None]
    heads = kv_head * GROUP + members
    used = (members < GROUP) & there[None, :]
    own = query_key + token * stride_token
    first, second = _rotated(
        own + heads * stride_head, dims[None, :], stride_dim, cosine[None, :], sine[None, :], used, HALF
    )
    query_at = query + (token * NUM_HEADS + heads) * (2 * HALF) + dims[None, :]
    tl.store(query_at, first, mask=used)
    tl.store(query_at + HALF, second, mask=used)

    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    block = slot // BLOCK_SIZE
    offset = slot % BLOCK_SIZE
    first, second = _rotated(
        own + (NUM_HEADS + kv_head) * stride_head, dims, stride_dim, cosine, sine, there, HALF
    )
    key_to = key_cache + block * key_cache_stride_block + offset * key_cache_stride_token
    key_to += kv_head * key_cache_stride_head + dims * key_cache_stride_dim
    store_in_cache(key_to, first, key_scale, kv_head + dims * 0, there, KEY_SCALES)
    store_in_cache(
        key_to + HALF * key_cache_stride_dim, second, key_scale, kv_head + dims * 0, there, KEY_SCALES
    )
    value_from = value + token * value_stride_token + kv_head * value_stride_head + dims * value_stride_dim
    value_to = value_cache + block * value_cache_stride_block + offset * value_cache_stride_token
    value_to += kv_head * value_cache_stride_head + dims * value_cache_stride_dim
    for half in tl.static_range(2):
        held = tl.load(value_from + half * HALF * value_stride_dim, mask=there, other=0.0)
        store_in_cache(
            value_to + half * HALF * value_cache_stride_dim, held, value_scale, kv_head + dims * 0, there, VALUE_SCALES
        )  # fmt: skip
