"""The Triton kernels' logic without a GPU: Triton's interpreter runs them on CPU tensors.

In a process of its own, because Triton makes that choice when a kernel is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.attention_cases import Case

ROOT = Path(__file__).parents[2]
FLOAT32_TOLERANCE = 2e-6
FLOAT16_TOLERANCE = 2e-3

KERNEL_CASES = [
    Case(rows=((1, 5), (1, 16), (1, 70))),
    Case(rows=((1, 33), (7, 7), (0, 12), (3, 40), (19, 50)), num_heads=8),
    Case(rows=((1, 1),), head_dim=32, num_heads=3, num_kv_heads=3),
    Case(rows=((1, 60), (35, 70)), head_dim=80, num_heads=7, num_kv_heads=1, window=20),
    Case(rows=((40, 90), (1, 90)), window=9, block_size=8),
    Case(rows=((1, 5), (33, 70)), block_size=24, softcap=3.0),
    Case(rows=((1, 5), (20, 44)), head_dim=256, num_heads=2, num_kv_heads=1, block_size=32),
    Case(rows=((1, 20), (70, 100)), dtype=torch.float16, head_dim=128, num_heads=8, window=50),
    Case(rows=((1, 20), (3, 30)), head_dim=32, num_heads=142, num_kv_heads=2),
    Case(rows=((1, 130), (1, 65)), dtype=torch.float16, num_heads=32, num_kv_heads=1),
    Case(rows=((1, 20), (9, 30)), head_dim=96, num_heads=6, alibi=True, sinks=True, softcap=5.0),
]
SPLIT_CASES = [
    Case(rows=((1, 5), (1, 16), (1, 170), (1, 33)), splits=4),
    Case(rows=((1, 200), (20, 60), (0, 12), (1, 47)), splits=64, block_size=32),
    Case(rows=((1, 150), (1, 50)), head_dim=80, num_heads=7, num_kv_heads=1, window=70, splits=3),
    Case(rows=((1, 90), (1, 17)), head_dim=96, num_heads=6, splits=5, alibi=True, sinks=True, softcap=5.0),
    Case(rows=((3, 90), (4, 20), (1, 70), (5, 70)), splits=4, short_queries=4, window=30, num_heads=6),
    Case(rows=((1, 130),), dtype=torch.float16, head_dim=128, num_heads=40, num_kv_heads=1, splits=8),
]
FP8_CASES = [
    Case(rows=((1, 100), (12, 40)), fp8_scales=1, splits=4),
    Case(rows=((1, 100), (12, 40)), dtype=torch.float16, fp8_scales=2, head_dim=80, sinks=True),
]
PACKED_CASES = [
    Case(rows=((5, 5), (1, 1), (40, 40))),
    Case(rows=((30, 30),), dtype=torch.float16, num_heads=6, window=7),
]
BACKEND_CASES = [
    Case(rows=((1, 33), (7, 7), (3, 40), (19, 50)), num_heads=8),
    Case(rows=((1, 33), (1, 5)), window=16),
]
DETERMINISTIC_CASES = [
    Case(rows=((200, 200), (1, 40)), head_dim=16, num_heads=2, num_kv_heads=1),
    Case(rows=((120, 200), (9, 150)), window=80, head_dim=16, num_heads=3, num_kv_heads=1),
]
_CHILD = """
import json, sys
from serving.kernels.triton import paged_attention
from tests.gpu.attention_cases import deterministic_differences, run_backends, run_kernels, run_packed, written_slots
from tests.gpu.pointwise_cases import errors as pointwise_errors
from tests.gpu.rotation_cases import faults
from tests.kernels.test_triton_interpreted import *
errors = {str(case): run_kernels(case) for case in [*KERNEL_CASES, *SPLIT_CASES, *FP8_CASES]}
paged_attention._NATIVE_FP8_CAPABILITY = (0, 0)
errors |= {f"packed-{case}": run_packed(case) for case in PACKED_CASES}
errors |= {f"backend-{case}": max(run_backends(case)) for case in BACKEND_CASES}
errors |= {f"native-{case}": run_kernels(case) for case in FP8_CASES}
pointwise = pointwise_errors()
paged_attention.DETERMINISTIC_SEGMENT = 64
multiply_rows_alike()
bits = {str(case): deterministic_differences(case) for case in DETERMINISTIC_CASES}
json.dump({"errors": errors, "bits": bits, "pointwise": pointwise, "written": written_slots(), "rotation": faults()},
    sys.stdout)
"""


def multiply_rows_alike() -> None:
    """On a CPU the bits of a row depend on its place in the product, unlike in the matrix units of a GPU."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, left: Any, right: Any, added: Any, *_options: Any) -> Any:
        product = np.einsum("mk,kn->mn", left.data, right.data, dtype=added.data.dtype)
        return TensorHandle(product + added.data, added.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot


def _tolerance(case: Case) -> float:
    return FLOAT32_TOLERANCE if case.dtype is torch.float32 else FLOAT16_TOLERANCE


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-c", _CHILD],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.fixture(scope="module")
def errors(results: dict[str, Any]) -> dict[str, float]:
    return results["errors"]


@pytest.mark.parametrize("case", KERNEL_CASES, ids=str)
def test_write_then_attend(case: Case, errors: dict[str, float]) -> None:
    assert errors[str(case)] < _tolerance(case)


@pytest.mark.parametrize("case", SPLIT_CASES, ids=str)
def test_a_row_in_parts(case: Case, errors: dict[str, float]) -> None:
    assert errors[str(case)] < _tolerance(case)


@pytest.mark.parametrize("conversion", ["", "native-"], ids=["bits", "native"])
@pytest.mark.parametrize("case", FP8_CASES, ids=str)
def test_float8_cache(case: Case, conversion: str, errors: dict[str, float]) -> None:
    assert errors[conversion + str(case)] < _tolerance(case)


@pytest.mark.parametrize("case", PACKED_CASES, ids=str)
def test_without_a_cache(case: Case, errors: dict[str, float]) -> None:
    assert errors[f"packed-{case}"] < _tolerance(case)


@pytest.mark.parametrize("case", BACKEND_CASES, ids=str)
def test_backend_agrees_with_torch(case: Case, errors: dict[str, float]) -> None:
    assert errors[f"backend-{case}"] < _tolerance(case)


@pytest.mark.parametrize("case", DETERMINISTIC_CASES, ids=str)
def test_deterministic_bits_do_not_depend_on_chunks_or_neighbours(
    case: Case, results: dict[str, Any]
) -> None:
    """In parts of 64 keys here; a position is computed in its chunk and again as a decode step alone."""
    assert results["bits"][str(case)] == {"different": 0, "compared": 4}


def test_pointwise_kernels(results: dict[str, Any]) -> None:
    found = results["pointwise"]
    assert len(found) == 54
    assert {name: error for name, error in found.items() if not error < 1} == {}


def test_a_negative_slot_is_not_written(results: dict[str, Any]) -> None:
    assert results["written"] == [17, 40]


def test_rotation_with_the_kv_write(results: dict[str, Any]) -> None:
    assert results["rotation"] == {"cases": "24"}
