"""Pruning takes what the rules name and nothing else, and keeps bytecode of what has a source."""

from __future__ import annotations

import importlib.util
import py_compile
import sys
from pathlib import Path

import pytest

from scripts.image_exercise import freeze_bytecode
from scripts.image_prune import main, size_bytes

GOES = (
    "torch/include/c10/macros.h", "torch/lib/libprotobuf.a", "torch/share/cmake/Torch/TorchConfig.cmake",
    "sympy/core/tests/test_basic.py", "numpy/_core/include/numpy/arrayobject.h", "numpy/__init__.pyi",
    "setuptools/__init__.py", "nvidia/cu13/include/cuda.h", "triton/backends/nvidia/bin/nvdisasm",
)  # fmt: skip
STAYS = (
    "torch/__init__.py", "torch/lib/libtorch_cpu.so", "torch/testing/__init__.py", "torch/bin/torch_shm_manager",
    "torch-2.13.0.dist-info/licenses/LICENSE", "sympy/core/basic.py", "triton/backends/nvidia/bin/ptxas",
    "serving/kernels/cpu/native/kernels.c", "nvidia/cu13/lib/libcudart.so.13",
)  # fmt: skip


def test_takes_what_no_server_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (*GOES, *STAYS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 1000)
    before = size_bytes(tmp_path)
    assert main([str(tmp_path)]) == 0
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(STAYS)
    assert before - size_bytes(tmp_path) == 1000 * len(GOES)
    assert "setuptools" in capsys.readouterr().out


def test_refuses_a_folder_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no torch in" in capsys.readouterr().err


def test_bytecode_is_valid_whatever_the_time_stamps(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("VALUE = 1\n")
    (tmp_path / "__pycache__").mkdir()
    py_compile.compile(str(source), doraise=True)
    stale = tmp_path / "__pycache__" / f"gone.{sys.implementation.cache_tag}.pyc"
    foreign = tmp_path / "__pycache__" / "module.cpython-311-pytest-8.pyc"
    stale.touch()
    foreign.touch()
    assert freeze_bytecode(tmp_path) == 1
    kept = Path(importlib.util.cache_from_source(str(source)))
    assert list((tmp_path / "__pycache__").iterdir()) == [kept]
    assert kept.read_bytes()[4:8] == b"\x01\x00\x00\x00", "not a hash that is never compared (PEP 552)"
