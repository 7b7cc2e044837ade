"""The first `import torch` of an engine process, with a part of it put off until the engine has answered.

`torch/__init__.py` imports `torch._meta_registrations`: hundreds of shape functions in Python, and behind them `_decomp`,
`_prims` and `_refs` with a hundred operators of their own. They answer tensors that have a shape and no memory
(`device="meta"`, and the fake tensors of `torch.compile` and `torch.export`), which an engine never makes; a quarter of the
import goes into them. They are put off, not left out: other parts of torch count on them without naming them (in 2.13
`torch.Generator`). The engine loads them beside its work when the first requests are done; whoever needs them earlier asks
for an attribute of the module, for a compiler, or calls `load_meta_kernels`.

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

PUT_OFF = "torch._meta_registrations"
TRIED_WITH = ("2.13.",)
"""Versions of torch with which the whole suite passed. Others are imported whole."""
_COMPILERS = frozenset({"torch._dynamo", "torch._inductor"})
"""They count on the registrations and never name the module. Whoever compiles or exports a model imports one of them."""

_VERSION = re.compile(r"^__version__ *= *['\"]([^'\"]+)", re.MULTILINE)
_ACCELERATOR = re.compile(r"^(?:cuda|hip|rocm|xpu)\b[^=]*= *['\"]", re.MULTILINE)
_once = threading.RLock()


def put_off_meta_kernels() -> bool:
    """Let the coming `import torch` pass over the meta kernels. True if it will: torch is not imported yet, of a version
    that was tried, and a build for the host alone. The packages that serve accelerators may use any part of torch, and wait
    longer for the device anyway."""
    if "torch" in sys.modules or not _is_tried():
        return False
    sys.meta_path.insert(0, _Finder())
    return True


def is_host_build() -> bool:
    """Is the torch that would be imported one without any accelerator?"""
    text = _version_file()
    return bool(text) and _ACCELERATOR.search(text) is None


def load_meta_kernels() -> None:
    """Import what was put off, if it was; returns when it is there."""
    module = sys.modules.get(PUT_OFF)
    with _once:
        if isinstance(module, _PutOff):
            module.load()


class _PutOff(ModuleType):
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
        found = PathFinder.find_spec(name, path) if name == PUT_OFF else None
        return found and importlib.util.spec_from_file_location(name, found.origin, loader=self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _PutOff(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing yet."""


def _is_tried() -> bool:
    version = _VERSION.search(_version_file())
    return version is not None and version[1].startswith(TRIED_WITH) and is_host_build()


def _version_file() -> str:
    """What torch says of itself, read as text: to import it would be to import torch. Empty without torch."""
    package = importlib.util.find_spec("torch")
    if package is None or package.origin is None:
        return ""
    path = Path(package.origin).with_name("version.py")
    return path.read_text(encoding="utf-8") if path.exists() else ""
