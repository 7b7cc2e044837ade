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
]
PACKED_CASES = [
    Case(rows=((5, 5), (1, 1), (40, 40))),
    Case(rows=((30, 30),), dtype=torch.float16, num_heads=6, window=7),
]
BACKEND_CASES = [
    Case(rows=((1, 33), (7, 7), (3, 40), (19, 50)), num_heads=8),
    Case(rows=((1, 33), (1, 5)), window=16),
]
_CHILD = """
import json, sys
from tests.gpu.attention_cases import run_backends, run_kernels, run_packed, written_slots
from tests.kernels.test_triton_interpreted import BACKEND_CASES, KERNEL_CASES, PACKED_CASES
errors = {str(case): run_kernels(case) for case in KERNEL_CASES}
errors |= {f"packed-{case}": run_packed(case) for case in PACKED_CASES}
errors |= {f"backend-{case}": max(run_backends(case)) for case in BACKEND_CASES}
json.dump({"errors": errors, "written": written_slots()}, sys.stdout)
"""


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


@pytest.mark.parametrize("case", PACKED_CASES, ids=str)
def test_without_a_cache(case: Case, errors: dict[str, float]) -> None:
    assert errors[f"packed-{case}"] < _tolerance(case)


@pytest.mark.parametrize("case", BACKEND_CASES, ids=str)
def test_backend_agrees_with_torch(case: Case, errors: dict[str, float]) -> None:
    assert errors[f"backend-{case}"] < _tolerance(case)


def test_a_negative_slot_is_not_written(results: dict[str, Any]) -> None:
    assert results["written"] == [17, 40]
