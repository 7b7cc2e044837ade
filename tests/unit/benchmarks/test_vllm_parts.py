"""Taking vLLM's wheel apart and putting it together again, without a network and without vLLM."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.gpu import vllm_parts


def test_what_travels_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = random.Random(0).randbytes(5000)
    asked: list[str] = []

    def download(requirements: Sequence[str], folder: Path, python_version: str) -> None:
        asked.extend(requirements)
        folder.mkdir(exist_ok=True)
        if requirements == [vllm_parts.VLLM]:
            with zipfile.ZipFile(folder / "vllm-0.26.0-cp38-abi3-manylinux_2_28_x86_64.whl", "w") as wheel:
                wheel.writestr("vllm/__init__.py", "version = 1")
                wheel.writestr("vllm/_C.abi3.so", kernel)
                wheel.writestr("vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", b"large")

    ran: list[list[str]] = []
    monkeypatch.setattr(vllm_parts, "_download", download)
    monkeypatch.setattr(vllm_parts, "PART_BYTES", 1000)
    monkeypatch.setattr(vllm_parts.subprocess, "run", lambda command, check: ran.append(command))
    vllm_parts.pack(tmp_path / "parts", "3.12")
    assert len(sorted((tmp_path / "parts").glob("vllm.tar.xz.*"))) > 5
    assert {"fastapi", "pyzmq", "xgrammar"} <= set(asked)
    vllm_parts.unpack(tmp_path / "parts", tmp_path / "site")
    assert (tmp_path / "site" / "vllm" / "_C.abi3.so").read_bytes() == kernel
    assert not (tmp_path / "site" / "vllm" / "vllm_flash_attn").exists()
    assert "--no-deps" in ran[0]


@pytest.mark.parametrize(
    ("name", "travels"),
    [
        ("vllm/third_party/cutlass/include/cute/layout.hpp", False),
        ("vllm/third_party/deep_gemm/_C.cpython-312-x86_64-linux-gnu.so", True),
        ("vllm/third_party/deep_gemm/_C.cpython-311-x86_64-linux-gnu.so", False),
        ("vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so", True),
    ],
)
def test_what_other_machines_need_stays(name: str, travels: bool) -> None:
    assert vllm_parts.kept(name) is travels
