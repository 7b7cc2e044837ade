"""The wheel brings the compiled CPU kernels for machines that have no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from serving.kernels.cpu.native import prebuilt

ROOT = Path(__file__).parents[2]
SOURCES = (
    "pyproject.toml", "setup.py", "README.md", "LICENSE", "serving", "container", "local_mode", "sagemaker_sdk_ext",
)  # fmt: skip


def build(folder: Path, *, path: str) -> tuple[Path, str]:
    """The wheel, made in a copy of the sources, and what the build said."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "prebuilt")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)], env=os.environ | {"PATH": path},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stdout + done.stderr


def kernels_of(wheel: Path) -> set[str]:
    return {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")}


def test_a_wheel_has_kernels_for_every_family_and_they_load_without_a_compiler(tmp_path: Path) -> None:
    wheel, _ = build(tmp_path, path=os.environ["PATH"])
    machine = os.uname().machine
    assert wheel.name.endswith(f"-py3-none-linux_{machine}.whl")
    assert kernels_of(wheel) == {one.file_name for one in prebuilt.FAMILIES if one.machine == machine}
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = "from serving.kernels.cpu.native import library; assert library.load(); print(library.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=installed, capture_output=True, text=True, timeout=120, check=False,
        env={"PATH": "", "PYTHONPATH": str(installed), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))


def test_a_wheel_is_built_without_a_compiler_too_and_says_what_it_lacks(tmp_path: Path) -> None:
    wheel, said = build(tmp_path, path="")
    assert kernels_of(wheel) == set()
    assert "the wheel has no compiled CPU kernels: no C compiler" in said
