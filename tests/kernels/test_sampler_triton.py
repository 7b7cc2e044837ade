"""The GPU's sampler without a GPU: Triton's interpreter runs its kernels on CPU tensors, and they compile for GPUs.

The interpreter in a process of its own, because Triton makes that choice when a kernel is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from serving.kernels.triton import sampler
from serving.sampling.device_params import DeviceParams
from serving.sampling_params import SamplingParams
from tests.gpu.sampler_cases import Case

ROOT = Path(__file__).parents[2]
CASES = [Case(300, 2, greedy=True), Case(300, 2, seed=5, coarse=True), Case(2500, 2, seed=1, ties=True)]
MORE_CASES = [Case(300, 24, seed=2), Case(2500, 16, seed=3), Case(5003, 12, seed=4, ties=True, spread=12.0)]
_CHILD = """
import json, sys
from tests.gpu import sampler_cases
from tests.gpu.sampler_cases import Case
from serving.kernels.triton import sampler
sampler.TILE = 512
cases = [Case(**fields) for fields in json.loads(sys.argv[1])]
found = {str(case): sampler_cases.run(case, "cpu") for case in cases}
json.dump({"differences": found, "score": sampler_cases.worst_score(5003, "cpu")}, sys.stdout)
"""
_INTEGERS = {
    "lines": "*i64", "bits": "*i32", "best_id": "*i32", "ties": "*i64", "ids": "*i64", "packed": "*i64",
    "num_found": "*i32", "top_ids": "*i64", "targets": "*i64", "keys": "*i64", "keys_out": "*i64", "found": "*i64",
    "kept_key": "*i64", "limits": "*i64", "least": "*i64", "top_k_key": "*i64", "top_p_key": "*i64", "last_key": "*i64",
}  # fmt: skip
_DOUBLES = {"partials", "partials_out", "whole", "mass", "normalizers", "tied_left"}
_NUMBERS = {"stride", "vocab_size", "num_words", "num_tiles", "shift", "shift_before"}
_SHAPE = {
    "TILE": sampler.TILE,
    "CHUNK": sampler.CHUNK,
    "FAN": sampler.FAN,
    "TILES_PADDED": 64,
    "CAPACITY": 64,
}
_FLAGS = {"HAS_MASK": True, "WANTS_RAW": True, "DRAWS": True}


def _differences(cases: list[Case]) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps([asdict(case) for case in cases])],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    result: dict[str, Any] = json.loads(child.stdout)
    assert len(result["differences"]) == len(cases)
    return result


def test_choices_are_those_of_the_torch_sampler() -> None:
    result = _differences(CASES)
    assert not any(result["differences"].values()), result["differences"]
    assert result["score"] < 3e-6


@pytest.mark.full
def test_more_choices_are_those_of_the_torch_sampler() -> None:
    result = _differences(MORE_CASES)
    assert not any(result["differences"].values()), result["differences"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        (sampler.peaks_kernel, {}),
        (sampler.search_kernel, {"MODE": sampler.TOP_P, "LEVEL": 1}),
        (sampler.search_kernel, {"MODE": sampler.TOP_N, "LEVEL": sampler.LATER}),
        (sampler.finish_kernel, {"MODE": sampler.TOP_K}),
        (sampler.mass_kernel, {}),
        (sampler.draw_kernel, {}),
        (sampler.collect_kernel, {}),
        (sampler.order_kernel, {}),
        (sampler.score_kernel, {"TILE": 4096}),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "-".join(map(str, value.values())),
)
def test_kernels_compile_and_keep_to_registers(
    kernel: Any, constants: dict[str, int], capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    known: dict[str, Any] = {**_SHAPE, **_FLAGS, **constants}
    constexprs = {name: known[name] for name in kernel.arg_names if name in known}
    signature = {}
    for name in kernel.arg_names:
        if name in constexprs:
            signature[name] = "constexpr"
        elif name in _NUMBERS:
            signature[name] = "i32"
        else:
            signature[name] = _INTEGERS.get(name, "*fp64" if name in _DOUBLES else "*fp32")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert compiled.metadata.shared <= 99 * 1024
    assert compiled.asm["cubin"]
    assert ".local" not in compiled.asm["ptx"], "an array went to local memory"


def test_a_seed_beyond_a_signed_integer_keeps_its_bits() -> None:
    params = DeviceParams(3)
    params.write(2, SamplingParams(temperature=0.5, top_k=7), 2**64 - 3)
    lines = params.lines(np.array([0, 2]), [4, 9], {1: 0})
    assert lines[1, [3, 4, 5, 7]].tolist() == [7, -3, 9, 0]
    assert lines[0, 5] == 4 and lines[1, 8] == 0
    assert params.lines(np.array([2]), [10])[0, [5, 7]].tolist() == [10, -1], "a mask is for one step"
