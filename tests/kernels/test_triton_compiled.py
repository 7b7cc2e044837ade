"""The Triton kernels compile for GPUs on a machine without one: they fit shared memory and registers, and the programs
that share a row's keys order what they leave for each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from serving.kernels.triton import attention_kernels, kv_write, tiles
from serving.kernels.triton.attention_kernels import MERGE_ELEMENTS

SHARED_MEMORY_BYTES = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227}
"""KiB of one program by compute capability (CUDA programming guide, technical specifications)."""

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_POINTERS = {
    "block_tables": "*i32", "seq_lens": "*i32", "query_start": "*i32", "counters": "*i32", "slot_mapping": "*i64",
    "partials": "*fp32", "partial_stats": "*fp32", "key_scale": "*fp32", "value_scale": "*fp32",
    "alibi_slopes": "*fp32", "sinks": "*fp32", "positions": "*i64",
}  # fmt: skip
_TENSORS = {"output", "query", "key", "value", "key_cache", "value_cache", "query_key", "table"}
_FLOATS = {"scale_log2", "softcap"}
_CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compile_for(
    kernel: Any, dtype: torch.dtype, constants: dict[str, Any], capability: int, *, fp8: bool = False, **options: int
) -> Any:  # fmt: skip
    """`constants` are the compile-time arguments, and the pointers that are None."""
    signature: dict[str, str] = {}
    aligned = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("key_cache", "value_cache") and fp8:
            signature[name] = "*u8"
        elif name in _TENSORS:
            signature[name] = f"*{_TYPES[dtype]}"
        elif name in _POINTERS:
            signature[name] = _POINTERS[name]
        else:
            signature[name] = "fp32" if name in _FLOATS else "i32"
        varying = kernel.params[index].do_not_specialize
        if signature[name].startswith("*") or ("stride" in name and not varying):
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_attention(
    capability: int, dtype: torch.dtype, head_dim: int, group: int, *, short: bool, window: int = 0, fp8: str = "",
    options: bool = False, segment: int = 0,
) -> Any:  # fmt: skip
    """As `paged_attention` launches it; `options` turns on soft cap, slopes and sinks."""
    tuning = tiles.tuning_for(
        divmod(capability, 10), head_dim=head_dim, group_size=group, itemsize=dtype.itemsize,
        cache_itemsize=1 if fp8 else dtype.itemsize,
    )  # fmt: skip
    heads, padded = tiles.heads_per_tile(group), tiles.padded(head_dim)
    tile = tuning.short if short and not segment else tuning.long
    constants: dict[str, Any] = {
        "HEAD_DIM": head_dim, "HEAD_DIM_PADDED": padded, "GROUP": group, "TILE_HEADS": heads, "TILE_KEYS": tile.keys,
        "SHORT_QUERIES": 1, "BLOCK_SIZE": 16, "WINDOW": window, "SOFTCAP": options, "SEGMENT": segment, "FP8": fp8,
        "KEY_SCALES": 1 if fp8 else 0, "VALUE_SCALES": 1 if fp8 else 0,
    }  # fmt: skip
    if not options:
        constants |= {"alibi_slopes": None, "sinks": None}
    if not fp8:
        constants |= {"key_scale": None, "value_scale": None}
    if short:
        merged = 1 if segment else max(1, MERGE_ELEMENTS // (heads * padded))
        constants |= {"ROWS": tile.rows, "MERGED": merged}
        kernel: Any = attention_kernels.short_rows_kernel
    else:
        constants |= {"TILE_QUERIES": tile.rows // heads}
        kernel = attention_kernels.long_rows_kernel
    return compile_for(
        kernel, dtype, constants, capability, fp8=bool(fp8), num_warps=tile.num_warps, num_stages=tile.num_stages
    )  # fmt: skip


def resources(compiled: Any, folder: Path) -> dict[str, int]:
    """What the compiler of the GPU says of the kernel: registers a thread, bytes of stack, of local memory."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    command = [str(_CUOBJDUMP), "-res-usage", str(binary)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", shown)}


def assert_fits(compiled: Any, capability: int, folder: Path, stack_bytes: int = 0) -> None:
    assert compiled.metadata.shared <= 1024 * SHARED_MEMORY_BYTES[capability]
    used = resources(compiled, folder)
    assert used["STACK"] <= stack_bytes and used["LOCAL"] == 0, f"registers were spilled: {used}"


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "group", "options"),
    [
        (90, torch.bfloat16, 128, 4, {}),
        (86, torch.float16, 80, 7, {"window": 64, "options": True}),
        (80, torch.bfloat16, 128, 8, {"fp8": "bits"}),
        (89, torch.bfloat16, 64, 1, {"fp8": "native"}),
    ],
)
@pytest.mark.parametrize("short", [True, False], ids=["short", "long"])
def test_attention(
    capability: int, dtype: torch.dtype, head_dim: int, group: int, options: Any, short: bool, tmp_path: Path
) -> None:
    compiled = compile_attention(capability, dtype, head_dim, group, short=short, **options)
    # Four registers more than there are, while float8 is converted.
    assert_fits(compiled, capability, tmp_path, stack_bytes=16 if "fp8" in options else 0)
    if short:
        _assert_parts_are_ordered(compiled.asm["ptx"])


def _assert_parts_are_ordered(code: str) -> None:
    """Store the part, wait for the whole program, then tell at device scope; only then read other programs' parts."""
    told = code.index("atom.global.gpu.acq_rel.add")
    before, after = code[:told], code[told:]
    assert before.rindex("st.global") < before.rindex("bar.sync")
    assert "ld.global.cg" in after and "ld.global.cg" not in before


@pytest.mark.full
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 256])
@pytest.mark.parametrize(("group", "short"), [(1, True), (8, True), (4, False), (128, True)])
def test_attention_grid(
    capability: int, dtype: torch.dtype, head_dim: int, group: int, short: bool, tmp_path: Path
) -> None:
    assert_fits(compile_attention(capability, dtype, head_dim, group, short=short), capability, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("short", [True, False], ids=["short", "long"])
def test_attention_in_full_precision(head_dim: int, short: bool, tmp_path: Path) -> None:
    """Registers may spill here: products of float32 are unrolled, and speed is not what this type is chosen for."""
    compiled = compile_attention(86, torch.float32, head_dim, 4, short=short)
    assert_fits(compiled, 86, tmp_path, stack_bytes=1024)


def test_no_variant_is_compiled_while_serving() -> None:
    """Triton compiles again for an integer that turns 1 or a multiple of 16, unless told not to."""
    varying = {"num_rows", "table_stride", "num_splits", "min_segment"}
    for kernel in (attention_kernels.short_rows_kernel, attention_kernels.long_rows_kernel):
        parameters: Any = kernel.params
        told = {parameter.name for parameter in parameters if parameter.do_not_specialize}
        assert told == varying & {parameter.name for parameter in parameters}


@pytest.mark.parametrize(
    ("dtype", "fp8"), [(torch.bfloat16, ""), (torch.float32, ""), (torch.bfloat16, "bits")]
)
def test_kv_write(dtype: torch.dtype, fp8: str, tmp_path: Path) -> None:
    constants = {"BLOCK_SIZE": 16, "HEAD_DIM": 128, "NUM_ELEMENTS": 1024, "NUM_ELEMENTS_PADDED": 1024}
    constants |= {"KEY_SCALES": 1, "VALUE_SCALES": 1} if fp8 else {"KEY_SCALES": 0, "VALUE_SCALES": 0}
    constants |= {} if fp8 else {"key_scale": None, "value_scale": None}
    compiled = compile_for(kv_write._reshape_and_cache_kernel, dtype, constants, 80, fp8=bool(fp8))
    assert_fits(compiled, 80, tmp_path)


@pytest.mark.parametrize(("dtype", "fp8"), [(torch.bfloat16, ""), (torch.bfloat16, "bits")])
def test_rotation_with_the_kv_write(dtype: torch.dtype, fp8: str, tmp_path: Path) -> None:
    constants = {
        "NUM_HEADS": 32,
        "GROUP": 4,
        "GROUP_PADDED": 4,
        "BLOCK_SIZE": 16,
        "HALF": 64,
        "HALF_PADDED": 64,
    }
    constants |= {"KEY_SCALES": 1, "VALUE_SCALES": 1} if fp8 else {"KEY_SCALES": 0, "VALUE_SCALES": 0}
    none = {} if fp8 else {"key_scale": None, "value_scale": None}
    kernel = kv_write._rotate_and_cache_kernel
    compiled = compile_for(kernel, dtype, constants | none, 90, fp8=bool(fp8), num_warps=1)
    assert_fits(compiled, 90, tmp_path)
