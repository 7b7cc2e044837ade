"""The first `import torch` of an engine process, without the part that only compilers need.

`torch/__init__.py` imports `torch._meta_registrations`: hundreds of shape functions in Python, and behind them `_decomp`,
`_prims` and `_refs` with a hundred operators of their own. They answer tensors that have a shape and no memory
(`device="meta"`, and the fake tensors of `torch.compile` and `torch.export`), which an engine never makes; a quarter of the
import goes into them. They are left for the first who asks: for an attribute of the module, or for one of the compilers.

Knows torch's modules by name and imports none of them.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

LEFT_OUT = "torch._meta_registrations"
_COMPILERS = frozenset({"torch._dynamo", "torch._inductor"})
"""They count on the registrations and never name the module. Whoever compiles or exports a model imports one of them."""

_ACCELERATOR = re.compile(r"^(?:cuda|hip|rocm|xpu)\b[^=]*= *['\"]", re.MULTILINE)
_once = threading.RLock()


def leave_out_meta_kernels() -> bool:
    """Let the coming `import torch` pass over the meta kernels. True if it will: torch is not imported yet, and a build for
    the host alone. The packages that serve accelerators may use any part of torch, and wait longer for the device anyway."""
    if "torch" in sys.modules or not _is_host_build():
        return False
    sys.meta_path.insert(0, _Finder())
    return True


def load_meta_kernels() -> None:
    """Import what was left out, if it was."""
    module = sys.modules.get(LEFT_OUT)
    with _once:
        if isinstance(module, _LeftOut):
            module.load()


class _LeftOut(ModuleType):
    """Stands where the module will be. The import system and `inspect`, which asks every module for its file, get answers
    without it; any other name loads it."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        load_meta_kernels()
        return getattr(self, name)

    def load(self) -> None:
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec = PathFinder.find_spec(self.__name__, sys.modules["torch"].__path__)
        if spec is None or spec.loader is None:
            raise ImportError(f"{self.__name__} was found before, and now it is not", name=self.__name__)
        self.__spec__, self.__loader__ = spec, spec.loader
        spec.loader.exec_module(self)


class _Finder(MetaPathFinder, Loader):
    """The first finder of all: makes the stand-in, and has it loaded when a compiler comes."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in _COMPILERS:
            load_meta_kernels()
        found = PathFinder.find_spec(name, path) if name == LEFT_OUT else None
        return found and importlib.util.spec_from_file_location(name, found.origin, loader=self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LeftOut(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing yet."""


def _is_host_build() -> bool:
    """As torch's own `version.py` says, read as text: to import it would be to import torch."""
    package = importlib.util.find_spec("torch")
    if package is None or package.origin is None:
        return False
    version = Path(package.origin).with_name("version.py")
    return version.exists() and _ACCELERATOR.search(version.read_text(encoding="utf-8")) is None
