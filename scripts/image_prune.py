"""Remove from an installed environment what the server never opens, and say how much each rule is worth.

    python image_prune.py /opt/venv/lib/python3.11/site-packages

Licences, metadata and anything that a running server could import stay. The build serves a request from what is left,
so a rule that takes too much fails the build. Standard library only.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Rule:
    """Files and folders below site-packages that go, and why nobody misses them."""

    reason: str
    patterns: tuple[str, ...]


RULES = (
    Rule("headers and build files, for compiling extensions: images have no compiler",
         ("torch/include", "torch/share/cmake", "numpy/_core/include", "numpy/_core/lib", "nvidia/**/include",
          "triton/backends/*/include", "greenlet/*.h", "**/*.pxd", "**/*.pyx")),
    Rule("static libraries and C sources, for linking and debugging extensions",
         ("torch/lib/*.a", "nvidia/**/*.a", "gevent/**/*.c", "gevent/**/*.h", "zope/**/*.c", "greenlet/*.cpp",
          "greenlet/*.hpp")),
    Rule("build tools of torch, which no library calls",
         ("torch/bin/protoc*", "torch/bin/test_*", "torch/bin/*_test")),
    Rule("libraries that only torch's own tests load",
         ("torch/test", "torch/lib/libtorchbind_test.so", "torch/lib/libjitbackend_test.so",
          "torch/lib/libbackend_with_compiler.so", "torch/lib/libaoti_custom_ops.so")),
    Rule("tests of packages", ("sympy/**/tests", "sympy/**/benchmarks", "networkx/**/tests", "numpy/**/tests",
          "mpmath/tests", "gevent/tests", "gevent/testing", "greenlet/tests", "zope/**/tests")),
    Rule("type stubs, which are for checkers", ("**/*.pyi",)),
    Rule("setuptools, which torch names for compiling extensions",
         ("setuptools", "setuptools-*.dist-info", "pkg_resources", "_distutils_hack", "distutils-precedence.pth")),
    Rule("backends of Triton for other makers' GPUs, and disassemblers",
         ("triton/backends/amd/lib", "triton/backends/nvidia/bin/nvdisasm",
          "triton/backends/nvidia/bin/cuobjdump")),
)  # fmt: skip


def size_bytes(path: Path) -> int:
    """Of a file, or of all files below a folder; a link counts as itself."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_bytes(entry) for entry in path.iterdir())
    return path.lstat().st_size


def found(rule: Rule, site_packages: Path) -> Iterator[Path]:
    for pattern in rule.patterns:
        yield from sorted(site_packages.glob(pattern))


def prune(site_packages: Path) -> list[tuple[str, int]]:
    """Remove what the rules name; (reason, bytes) of each rule."""
    freed = []
    for rule in RULES:
        total = 0
        for path in found(rule, site_packages):
            if not path.exists():  # inside a folder that has just gone
                continue
            total += size_bytes(path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        freed.append((rule.reason, total))
    return freed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site_packages", type=Path)
    options = parser.parse_args(arguments)
    if not (options.site_packages / "torch").is_dir():
        print(f"error: no torch in {options.site_packages}; name a site-packages folder", file=sys.stderr)
        return 1
    for reason, total in prune(options.site_packages):
        print(f"{total / MIB:8.1f} MiB  {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
