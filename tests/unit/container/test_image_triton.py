"""Triton's C module comes from the image where there is no compiler; a stand-in of the driver takes the place of a GPU's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.kernels.cpu.native.prebuilt import find_compiler
from tests.house_rules import ROOT

BUILD = """
import sys; from pathlib import Path
from serving.kernels.triton import prebuilt
folder = Path(sys.argv[1])
print(prebuilt.build(folder / "prebuilt").name)
(folder / "driver").mkdir()
prebuilt.driver_stand_in(folder / "driver", prebuilt.find_compiler())
"""
LOAD = """
import ctypes, sys; from pathlib import Path
ctypes.CDLL(sys.argv[1] + "/driver/libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
from serving.kernels.triton import prebuilt
prebuilt.FOLDER = Path(sys.argv[1]) / "prebuilt"
from triton.backends.nvidia import driver
print(callable(driver.CudaUtils().load_binary))
"""
MANAGER = "serving.kernels.triton.prebuilt:PrebuiltModules"


def _python(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT, env={"HOME": str(folder), **environment}, check=False, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    find_compiler()
    folder = tmp_path_factory.mktemp("triton")
    built = _python(BUILD, folder, PATH=os.environ["PATH"])
    assert built.returncode == 0, built.stderr
    assert built.stdout.startswith("cuda_utils.")
    return folder


def test_is_found_without_a_compiler(folder: Path, tmp_path: Path) -> None:
    without = {"PATH": str(tmp_path), "TRITON_LIBCUDA_PATH": str(folder / "driver")}
    shipped = sorted((folder / "prebuilt").rglob("*"))
    loaded = _python(
        LOAD, folder, **without, TRITON_CACHE_DIR=str(tmp_path / "a"), TRITON_CACHE_MANAGER=MANAGER
    )
    assert loaded.stdout == "True\n", loaded.stderr
    assert sorted((folder / "prebuilt").rglob("*")) == shipped, (
        "what came with the installation was written to"
    )
    # The same without it: the compiler is asked for, so the module above was the shipped one.
    failed = _python(LOAD, folder, **without, TRITON_CACHE_DIR=str(tmp_path / "b"))
    assert "Failed to find C compiler" in failed.stderr


def test_is_not_loaded_without_the_driver(folder: Path, tmp_path: Path) -> None:
    """It got as far as the loader, which looks for the driver's library: on a GPU machine that is there."""
    program = LOAD.replace("ctypes.CDLL", "str")
    program = program.replace(", mode=ctypes.RTLD_GLOBAL", "")
    failed = _python(
        program, folder, PATH=str(tmp_path), TRITON_CACHE_DIR=str(tmp_path / "c"), TRITON_CACHE_MANAGER=MANAGER,
        TRITON_LIBCUDA_PATH=str(folder / "driver"),
    )  # fmt: skip
    assert "compiled module cuda_utils.so could not be loaded" in failed.stderr
    assert failed.returncode != 0


def test_says_that_a_compiler_is_needed_to_make_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "serving", tmp_path / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    made = subprocess.run(
        [sys.executable, "-P", "-m", "serving.kernels.triton.prebuilt"],
        cwd=tmp_path, env={"PATH": str(tmp_path), "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 1
    assert made.stderr.splitlines()[-1].startswith("error: no C compiler")
