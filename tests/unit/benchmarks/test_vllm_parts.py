"""Taking vLLM's wheel apart and putting it together again, without a network and without vLLM."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.gpu import vllm_parts


def test_what_travels_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, wheel_bytes = random.Random(0).randbytes(5000), random.Random(1).randbytes(3000)
    asked: list[str] = []

    def download(requirements: Sequence[str], folder: Path, python_version: str) -> None:
        asked.extend(requirements)
        folder.mkdir(exist_ok=True)
        if requirements != [vllm_parts.VLLM]:
            (folder / "fastapi-1-py3-none-any.whl").write_bytes(wheel_bytes)
            return
        with zipfile.ZipFile(folder / "vllm-0.26.0-cp38-abi3-manylinux_2_28_x86_64.whl", "w") as wheel:
            wheel.writestr("vllm/__init__.py", "version = 1")
            wheel.writestr("vllm/_C.abi3.so", kernel)
            wheel.writestr("vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", b"large")
            wheel.writestr("vllm-0.26.0.dist-info/METADATA", "Name: vllm")

    installed: dict[str, bytes] = {}

    def run(command: list[str], check: bool) -> None:
        assert "--no-deps" in command
        installed.update(
            {Path(name).name: Path(name).read_bytes() for name in command if name.endswith(".whl")}
        )

    monkeypatch.setattr(vllm_parts, "_download", download)
    monkeypatch.setattr(vllm_parts, "PART_BYTES", 1000)
    monkeypatch.setattr(vllm_parts.subprocess, "run", run)
    parts, site = tmp_path / "parts", tmp_path / "site"
    parts.mkdir()
    (parts / "vllm.tar.xz.77").write_bytes(b"of an earlier, longer one")
    vllm_parts.pack(parts, "3.12")
    assert len(sorted(parts.glob("vllm.tar.xz.*"))) > 5
    assert {"fastapi", "pyzmq", "xgrammar"} <= {one.partition("==")[0] for one in asked}
    vllm_parts.unpack(parts, site)
    assert (site / "vllm" / "_C.abi3.so").read_bytes() == kernel
    assert (site / "vllm-0.26.0.dist-info" / "METADATA").read_text() == "Name: vllm"
    assert not (site / "vllm" / "vllm_flash_attn").exists()
    assert installed == {"fastapi-1-py3-none-any.whl": wheel_bytes}


def test_every_need_has_one_version() -> None:
    names = [need.split("==") for need in vllm_parts.needs()]
    assert {len(name) for name in names} == {2}
    assert len({name[0] for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "travels"),
    [
        ("vllm/third_party/cutlass/include/cute/layout.hpp", False),
        ("vllm/third_party/deep_gemm/_C.cpython-312-x86_64-linux-gnu.so", True),
        ("vllm/third_party/deep_gemm/_C.cpython-311-x86_64-linux-gnu.so", False),
        ("vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so", True),
        ("vllm/_C_stable_libtorch.abi3.so", True),
        ("vllm/_moe_C_stable_libtorch.abi3.so", False),
    ],
)
def test_what_other_machines_need_stays(name: str, travels: bool) -> None:
    assert vllm_parts.kept(name) is travels
