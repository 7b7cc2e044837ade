"""Rotation and KV write in one kernel against their reference twins, on GPUs and interpreted on a CPU."""

from __future__ import annotations

import torch

from serving.kernels import reference
from serving.kernels.reference.attention import write_kv
from tests.gpu.attention_cases import as_bits
from tests.gpu.pointwise_cases import UNITS

SHAPES = [(1, 4, 2, 64), (5, 7, 1, 80), (3, 3, 3, 32), (2, 40, 8, 128)]
"""Tokens, query heads, KV heads, head size."""
BLOCK_SIZE = 8
NUM_BLOCKS = 4


def faults(device: str = "cpu") -> dict[str, str]:
    """What is wrong, by case; nothing, if all is well. The key "cases" has their number."""
    torch.manual_seed(0)
    found = {}
    cases = [
        (shape, dtype, scales)
        for shape in SHAPES
        for dtype in (torch.float32, torch.bfloat16)
        for scales in ("", "one", "heads")
    ]
    for shape, dtype, scales in cases:
        fault = _fault(shape, dtype, scales, device)
        if fault:
            found[f"{shape}-{str(dtype)[6:]}-{scales}"] = fault
    return found | {"cases": str(len(cases))}


def _fault(shape: tuple[int, ...], dtype: torch.dtype, scales: str, device: str) -> str:
    from serving.kernels.triton.kv_write import rotate_and_cache

    num_tokens, num_heads, num_kv_heads, head_dim = shape
    fused = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim).clamp(-2, 2).to(dtype)
    query_key, value = fused[:, : num_heads + num_kv_heads], fused[:, num_heads + num_kv_heads :]
    table, positions = torch.randn(50, head_dim).to(dtype), torch.randint(50, (num_tokens,))
    slots = torch.randperm(BLOCK_SIZE * NUM_BLOCKS)[:num_tokens]
    slots[1::4] = -1
    num_scales = {"": 0, "one": 1, "heads": num_kv_heads}[scales]
    given = [torch.rand(num_scales) + 0.1 if scales else None for _ in range(2)]
    cache_shape = (NUM_BLOCKS, BLOCK_SIZE, num_kv_heads, head_dim)
    kind = torch.float8_e4m3fn if scales else dtype
    wanted = [torch.full(cache_shape, 77.0).to(kind) for _ in range(2)]
    caches = [cache.clone().to(device) for cache in wanted]

    rotated = reference.rotary(query_key, table, positions)
    write_kv(rotated[:, num_heads:], value, wanted[0], wanted[1], slots, given[0], given[1])
    query = rotate_and_cache(
        fused.to(device)[:, : num_heads + num_kv_heads], fused.to(device)[:, num_heads + num_kv_heads :],
        table.to(device), positions.to(device), caches[0], caches[1], slots.to(device),
        *(None if scale is None else scale.to(device) for scale in given),
    )  # fmt: skip

    unit = 4 * UNITS[dtype]
    if not torch.allclose(query.cpu().double(), rotated[:, :num_heads].double(), atol=unit, rtol=unit):
        return "queries"
    if not torch.equal(as_bits(caches[1].cpu()), as_bits(wanted[1])):
        return "values, or slots of others"
    untouched = torch.ones(BLOCK_SIZE * NUM_BLOCKS, dtype=torch.bool)
    untouched[slots[slots >= 0]] = False
    keys, wanted_keys = (cache.cpu().float().flatten(0, 1) for cache in (caches[0], wanted[0]))
    if not torch.equal(keys[untouched], wanted_keys[untouched]):
        return "keys of others"
    scale = 1.0 if given[0] is None else given[0].view(1, -1, 1)
    # What lies between two numbers of the cache's type may be rounded either way.
    same = torch.allclose(keys * scale, wanted_keys * scale, atol=unit, rtol=0.14 if scales else unit)
    return "" if same else "keys"
