"""Sums over the ranks in one launch: processes that map each other's memory, with Triton's interpreter as the GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from serving.kernels.small_sums import HALF_BYTES, MAX_PROGRAMS, TILE_BYTES
from serving.kernels.triton import one_shot

ROOT = Path(__file__).parents[2]


def run_ranks(
    size: int, folder: Path, device: str, num_turns: int, environment: dict[str, str]
) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.kernels.one_shot_peer"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder), device, str(num_turns)],
            cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.parametrize(
    ("size", "num_turns"),
    [(2, 20), pytest.param(2, 300, marks=pytest.mark.full), pytest.param(5, 60, marks=pytest.mark.full)],
)
def test_every_rank_has_the_sum_in_the_order_of_ranks(size: int, num_turns: int, tmp_path: Path) -> None:
    """Turns of many shapes and types, by ranks of which now one is ahead, now another."""
    for result in run_ranks(size, tmp_path, "cpu", num_turns, {"TRITON_INTERPRET": "1"}):
        assert result["wrong"] == []
        assert result["refused"], "one rank cannot map the others' memory, so no rank may wait for it"
        # With more than four ranks half of what there is room for.
        assert result["accepts"] == {"whole": size <= 4, "longer": False, "odd": False, "integers": False}
        assert result["longest"] == size


@pytest.mark.parametrize(
    "capability", [pytest.param(80, marks=pytest.mark.full), 90, pytest.param(100, marks=pytest.mark.full)]
)
@pytest.mark.parametrize(("kind", "itemsize"), [("bf16", 2), ("fp32", 4)])
def test_what_the_others_read_is_ordered(
    capability: int, kind: str, itemsize: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As compiled: the part is written, all threads have come, the others are told; nothing of theirs is read before they
    told us. Reads and writes are 16 bytes wide."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel: Any = one_shot._one_shot_kernel
    constants = {
        "RANK": 1, "NUM_RANKS": 3, "NUM_RANKS_PADDED": 4, "TILE": TILE_BYTES // itemsize,
        "HALF": HALF_BYTES // itemsize, "MAX_PROGRAMS": MAX_PROGRAMS,
    }  # fmt: skip
    signature = {name: "constexpr" for name in constants} | {"x": f"*{kind}", "num_elements": "i32"}
    signature |= {name: "*i64" for name in ("parts", "signals", "turns")}
    ordered = {name: signature[name] for name in kernel.arg_names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(ordered) if name not in constants}
    source = ASTSource(fn=kernel, signature=ordered, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    code = compiled.asm["ptx"]

    told, heard = (
        code.index("atom.global.sys.release.exch.b64"),
        code.rindex("atom.global.sys.acquire.add.u64"),
    )
    assert code.index("st.global.v4.b32") < code.index("bar.sync") < told < heard
    first_read = code.index("ld.volatile.global.v4.b32")
    assert heard < code.index("bar.sync", heard) < first_read
    assert code.count("ld.volatile.global.v4.b32") == 3
    assert code.rindex("st.global.v4.b32") > code.rindex("ld.volatile.global")
