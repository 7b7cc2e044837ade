"""vLLM for a GPU machine without network, in parts that travel: `vllm` 0.26.0, the newest for torch 2.11 and CUDA 13.

    python -m benchmarks.gpu.vllm_parts pack PARTS            # where there is a network; no GPU and no torch are needed
    python3 -m benchmarks.gpu.vllm_parts unpack PARTS SITE    # on the GPU machine: then PYTHONPATH=SITE

Not yet run on a GPU. What is left out of the wheel: FlashAttention 2 (compute capability 9.0 takes FlashAttention 3), the
Rust front end, the kernels of mixtures of experts, CUTLASS headers, extensions for other Pythons. What is left out of the
dependencies is imported only behind a guard: kernels for other GPUs, media decoders, exporters of traces, the compiler that
the machine has. Needs pip, nothing else.
"""

from __future__ import annotations

import argparse
import fnmatch
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

VLLM = "vllm==0.26.0"
PART_BYTES = 40 * 2**20
_WHEELS = "wheels"
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (31, 28, 27, 24, 17, 12, 5)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
_LEFT_OUT = (
    "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
    "vllm/vllm-rs",
    "vllm/_moe_C_stable_libtorch.abi3.so",
    "vllm/third_party/*/include/*",
    "vllm/third_party/deep_gemm/_C.cpython-310*",
    "vllm/third_party/deep_gemm/_C.cpython-311*",
    "vllm/third_party/deep_gemm/_C.cpython-313*",
    "vllm/third_party/deep_gemm/_C.cpython-314*",
)
_NEEDS = Path(__file__).with_name("vllm_needs.txt")


def pack(parts: Path, python_version: str) -> None:
    """Writes `vllm.tar.xz.00`, `.01`, …, the wheels of the dependencies included. Raises `subprocess.CalledProcessError`."""
    parts.mkdir(parents=True, exist_ok=True)
    for old in parts.glob("vllm.tar.xz.*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _download(needs(), folder / _WHEELS, python_version)
        _download([VLLM], folder, python_version)
        [wheel] = folder.glob("vllm-*.whl")
        archive = folder / "vllm.tar.xz"
        _repack(wheel, folder / _WHEELS, archive)
        for index, piece in enumerate(_pieces(archive)):
            (parts / f"vllm.tar.xz.{index:02}").write_bytes(piece)
            print(f"{index:02}: {len(piece) / 2**20:.1f} MiB")


def unpack(parts: Path, site: Path) -> None:
    """Raises `tarfile.ReadError` or `lzma.LZMAError` for parts that are not all there."""
    site.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = folder / "vllm.tar.xz"
        with whole.open("wb") as file:
            for part in sorted(parts.glob("vllm.tar.xz.*")):
                file.write(part.read_bytes())
        with tarfile.open(whole) as archive:
            archive.extractall(folder, filter="data")
        shutil.move(folder / "vllm", site / "vllm")
        for information in folder.glob("vllm-*.dist-info"):
            shutil.move(information, site / information.name)
        wheels = sorted(map(str, (folder / _WHEELS).glob("*.whl")))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--target", str(site), *wheels], check=True)


def needs() -> list[str]:
    """Packages that travel beside vLLM, with their versions."""
    return [line for line in _NEEDS.read_text().splitlines() if line and not line.startswith("#")]


def kept(name: str) -> bool:
    """Whether this file of the wheel travels."""
    return not any(fnmatch.fnmatch(name, pattern) for pattern in _LEFT_OUT)


def _download(requirements: Sequence[str], folder: Path, python_version: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python_version, "--implementation", "cp", "-d", str(folder)]
    platforms = [option for platform in _PLATFORMS for option in ("--platform", platform)]
    subprocess.run([*command, *platforms, *requirements], check=True)


def _repack(wheel: Path, wheels: Path, archive: Path) -> None:
    with (
        zipfile.ZipFile(wheel) as source,
        lzma.open(archive, "wb", preset=6) as packed,
        tarfile.open(fileobj=packed, mode="w|") as target,
    ):
        for info in source.infolist():
            if info.is_dir() or not kept(info.filename):
                continue
            member = tarfile.TarInfo(info.filename)
            member.size, member.mode = info.file_size, 0o755 if info.filename.endswith(".so") else 0o644
            with source.open(info) as content:
                target.addfile(member, content)
        for path in sorted(wheels.glob("*.whl")):
            target.add(path, arcname=f"{wheels.name}/{path.name}")


def _pieces(archive: Path) -> Iterator[bytes]:
    with archive.open("rb") as source:
        while piece := source.read(PART_BYTES):
            yield piece


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    packing = steps.add_parser("pack", help="download, trim and split")
    packing.add_argument("parts", type=Path)
    packing.add_argument("--python-version", default="3.12", help="of the GPU machine (3.12)")
    unpacking = steps.add_parser("unpack", help="put together on the GPU machine")
    unpacking.add_argument("parts", type=Path)
    unpacking.add_argument("site", type=Path)
    options = parser.parse_args()
    if options.step == "pack":
        pack(options.parts, options.python_version)
    else:
        unpack(options.parts, options.site)


if __name__ == "__main__":
    main()
