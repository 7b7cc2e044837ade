# Kernel bodies are Triton's language, not Python's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""Writing a step's keys and values into the paged cache, in Triton. Knows slots, not blocks or rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def reshape_and_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """Copy key/value [T, Hkv, D] to `slot_mapping` [T] int64 of caches [num_blocks, block_size, Hkv, D].

    A slot is block * block_size + offset. Tokens with a negative slot are skipped. The cache's dtype wins.
    """
    num_tokens, num_kv_heads, head_dim = key.shape
    if num_tokens == 0:
        return
    _reshape_and_cache_kernel[(num_tokens,)](
        key, value, key_cache, value_cache, slot_mapping,
        key.stride(0), key.stride(1), key.stride(2), value.stride(0), value.stride(1), value.stride(2),
        key_cache.stride(0), key_cache.stride(1), key_cache.stride(2), key_cache.stride(3),
        value_cache.stride(0), value_cache.stride(1), value_cache.stride(2), value_cache.stride(3),
        BLOCK_SIZE=key_cache.shape[1],
        HEAD_DIM=head_dim,
        NUM_ELEMENTS=num_kv_heads * head_dim,
        NUM_ELEMENTS_PADDED=triton.next_power_of_2(num_kv_heads * head_dim),
    )  # fmt: skip


@triton.jit
def _reshape_and_cache_kernel(
    key, value, key_cache, value_cache, slot_mapping,
    key_stride_token, key_stride_head, key_stride_dim,
    value_stride_token, value_stride_head, value_stride_dim,
    key_cache_stride_block, key_cache_stride_token, key_cache_stride_head, key_cache_stride_dim,
    value_cache_stride_block, value_cache_stride_token, value_cache_stride_head, value_cache_stride_dim,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    NUM_ELEMENTS: tl.constexpr, NUM_ELEMENTS_PADDED: tl.constexpr,
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
    tl.store(key_to, tl.load(key_from, mask=used), mask=used)
    tl.store(value_to, tl.load(value_from, mask=used), mask=used)
