"""The Triton kernels compile for GPUs on a machine without one; tile shapes stay inside shared memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from serving.kernels.triton import kv_write
from serving.kernels.triton import paged_attention as attention

SHARED_MEMORY_BYTES = 99 * 1024
_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_INDEX_POINTERS = {"block_tables": "*i32", "seq_lens": "*i32", "query_start": "*i32", "slot_mapping": "*i64"}
_TENSORS = {"output", "query", "key", "value", "key_cache", "value_cache"}
_FLOATS = {"scale_log2", "softcap"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def _compile(
    kernel: Any, dtype: torch.dtype, constants: dict[str, Any], capability: int, **options: int
) -> Any:
    signature: dict[str, str] = {}
    aligned = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in _TENSORS:
            signature[name] = f"*{_TYPES[dtype]}"
        elif name in _INDEX_POINTERS:
            signature[name] = _INDEX_POINTERS[name]
        else:
            signature[name] = "fp32" if name in _FLOATS else "i32"
        if signature[name].startswith("*") or ("stride" in name and name != "table_stride"):
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _compile_attention(
    capability: int, dtype: torch.dtype, head_dim: int, group: int, max_query_len: int, window: int = 0
) -> Any:
    tile = attention.tile_shape(
        head_dim=head_dim, group_size=group, itemsize=dtype.itemsize, max_query_len=max_query_len
    )
    heads = attention.heads_per_tile(group)
    constants = {
        "HEAD_DIM": head_dim,
        "HEAD_DIM_PADDED": triton.next_power_of_2(head_dim),
        "GROUP": group,
        "TILE_HEADS": heads,
        "TILE_QUERIES": tile.rows // heads,
        "TILE_KEYS": tile.keys,
        "BLOCK_SIZE": 16,
        "WINDOW": window,
        "SOFTCAP": False,
    }
    kernel = attention._paged_attention_kernel
    return _compile(
        kernel, dtype, constants, capability, num_warps=tile.num_warps, num_stages=tile.num_stages
    )


def _assert_fits(compiled: Any) -> None:
    assert compiled.metadata.shared <= SHARED_MEMORY_BYTES
    assert ".local" not in compiled.asm["ptx"], "an array went to local memory"
    assert compiled.asm["cubin"]


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "group", "max_query_len"),
    [
        (90, torch.bfloat16, 128, 4, 1),
        (90, torch.bfloat16, 256, 4, 512),
        (80, torch.float16, 80, 7, 512),
        (80, torch.float32, 256, 1, 1),
        (90, torch.float32, 128, 4, 512),
    ],
)
def test_attention(
    capability: int, dtype: torch.dtype, head_dim: int, group: int, max_query_len: int
) -> None:
    _assert_fits(_compile_attention(capability, dtype, head_dim, group, max_query_len, window=64))


@pytest.mark.full
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100])
@pytest.mark.parametrize("dtype", list(_TYPES), ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
@pytest.mark.parametrize(("group", "max_query_len"), [(1, 1), (8, 1), (4, 2048), (128, 1)])
def test_attention_grid(
    capability: int, dtype: torch.dtype, head_dim: int, group: int, max_query_len: int
) -> None:
    _assert_fits(_compile_attention(capability, dtype, head_dim, group, max_query_len))


def test_no_variant_is_compiled_while_serving() -> None:
    """Triton compiles again for an integer that turns 1 or a multiple of 16, unless told not to."""
    kernel: Any = attention._paged_attention_kernel
    varying = {"num_rows", "table_stride"}
    assert varying <= {parameter.name for parameter in kernel.params if parameter.do_not_specialize}


@pytest.mark.parametrize("dtype", list(_TYPES), ids=str)
def test_kv_write(dtype: torch.dtype) -> None:
    constants = {"BLOCK_SIZE": 16, "HEAD_DIM": 128, "NUM_ELEMENTS": 1024, "NUM_ELEMENTS_PADDED": 1024}
    _assert_fits(_compile(kv_write._reshape_and_cache_kernel, dtype, constants, 90))
