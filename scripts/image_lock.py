"""Write the locks that the images install from: every package of the run time and of the build, pinned with its hashes.

`make lock` runs it with uv, which resolves for the images' platform whatever this machine is. The CPU build of torch is
on its own index: TORCH_INDEX_URL names another one, and set to nothing it leaves UV_FIND_LINKS as the only place.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "container" / "locks"
TORCH_INDEX_URL = "https://download.pytorch.org/whl/cpu"
PYTHON_VERSION = "3.11"
PLATFORM = "x86_64-manylinux_2_28"
_WRITTEN = "# Written by `make lock`.\n"
_HEADERS = {
    "cpu": _WRITTEN
    + "# Everything in the CPU image but torch, which has an index and a file of its own: torch-cpu.txt.\n",
    "torch-cpu": _WRITTEN
    + "# torch for the CPU image. The hash is the one that PyTorch's index of CPU builds gives for Python 3.11, x86-64.\n",
    "cuda": _WRITTEN + "# Everything in the CUDA image, the user space of CUDA included, from PyPI.\n",
    "build": _WRITTEN + "# Tools of the build stage. Nothing of it is in an image.\n",
}
_ENTRY = re.compile(r"^[A-Za-z0-9].*(?:\n[ \t].*)*\n?", re.MULTILINE)


def entries(lock: str) -> list[str]:
    """The requirements of a lock, each with its hashes and its comments."""
    return [found[0] for found in _ENTRY.finditer(lock)]


def split_torch(lock: str) -> tuple[str, str]:
    """The lock without torch, and torch's own. Raises `ValueError` when it is not there exactly once."""
    torch = [entry for entry in entries(lock) if re.match(r"torch==", entry)]
    if len(torch) != 1:
        raise ValueError(f"torch is in the resolution {len(torch)} times, not once")
    pinned = "".join(line for line in torch[0].splitlines(keepends=True) if not line.lstrip().startswith("#"))
    return lock.replace(torch[0], ""), pinned


def _resolve(uv: str, output: Path, *arguments: str, find_links: bool = False) -> str:
    command = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--python-version", PYTHON_VERSION]
    command += [
        "--python-platform",
        PLATFORM,
        "--custom-compile-command",
        "make lock",
        "--no-emit-find-links",
    ]
    command += ["--no-emit-index-url", "--no-header", "--output-file", str(output), *arguments]
    # A folder of wheels is for the CPU build of torch; the others take what PyPI has.
    environment = {k: v for k, v in os.environ.items() if find_links or k != "UV_FIND_LINKS"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return output.read_text()


def _torch_version() -> str:
    found = re.search(r"^torch==([\w.]+)$", (ROOT / "constraints-cpu.txt").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError("constraints-cpu.txt has no line torch==VERSION")
    return found[1]


def lock(uv: str, *, torch_index_url: str, upgrade: bool) -> None:
    """Write all locks. A pinned version stays while it fits, unless `upgrade`."""
    product = ["pyproject.toml", "--constraint", "constraints-cpu.txt"]
    index = ["--index", torch_index_url, "--index-strategy", "unsafe-best-match"] if torch_index_url else []
    with tempfile.TemporaryDirectory() as scratch:
        override = Path(scratch) / "override.txt"
        override.write_text(f"torch=={_torch_version()}+cpu\n")

        def before(name: str, *more: str) -> Path:
            """A file that uv prefers the versions of, and writes."""
            present = [LOCKS / lock for lock in (name, *more) if (LOCKS / lock).exists() and not upgrade]
            (Path(scratch) / name).write_text("".join(path.read_text() for path in present))
            return Path(scratch) / name

        cuda = _resolve(uv, before("cuda.txt"), *product, "--extra", "cuda")
        both = before("cpu.txt", "torch-cpu.txt")
        cpu = _resolve(uv, both, "pyproject.toml", "--override", str(override), *index, find_links=True)
        tools = _resolve(uv, before("build.txt"), "container/locks/build.in")
    others, torch = split_torch(cpu)
    for name, text in (("cuda", cuda), ("cpu", others), ("torch-cpu", torch), ("build", tools)):
        (LOCKS / f"{name}.txt").write_text(_HEADERS[name] + text)
        print(f"{LOCKS.relative_to(ROOT)}/{name}.txt: {len(entries(text))} packages")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    options = parser.parse_args(arguments)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if uv is None:
        print("error: uv is not installed; `make lock` installs it into .venv", file=sys.stderr)
        return 1
    try:
        lock(uv, torch_index_url=os.environ.get("TORCH_INDEX_URL", TORCH_INDEX_URL), upgrade=options.upgrade)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
