"""The engine with all of its Triton kernels, without a GPU: overlapped steps whose tokens are chosen on the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e4m3"])
@pytest.mark.parametrize("model", ["qwen3", "qwen2_mixed"])
def test_tokens_are_those_of_the_cpu(model: str, kv_cache_dtype: str) -> None:
    result = _compare(model, "1", kv_cache_dtype)
    assert result["tokens"] and result["logprobs"] < 1e-4
    assert result["first_logprobs"] < (1e-4 if kv_cache_dtype == "auto" else 0.5)


def _compare(*arguments: str) -> dict[str, Any]:
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, sys\n"
            "from tests.kernels.interpreted_engine import compare\n"
            "json.dump(compare(sys.argv[1], int(sys.argv[2]), sys.argv[3]), sys.stdout)",
            *arguments,
        ],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    result: dict[str, Any] = json.loads(child.stdout)
    return result
