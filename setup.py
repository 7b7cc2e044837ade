"""Builds the wheel with the compiled CPU kernels in it, where there is a C compiler: installed where there is none, they are
fast all the same. Everything else about the distribution is in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path("serving", "kernels", "cpu", "native")
sys.path.append(str(Path(__file__).parent / NATIVE))
import prebuilt  # noqa: E402  alone: its package would want what only an installed server has


class WithKernels(build_py):
    """An installation to edit has no builds: its server compiles for the machine at hand when it starts."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        try:
            for built in prebuilt.build_all(Path(self.build_lib) / NATIVE / prebuilt.FOLDER.name):
                print(f"compiled {built}")
        except prebuilt.Unavailable as reason:
            print(f"warning: the wheel has no compiled CPU kernels: {reason}", file=sys.stderr)


class ForOneSystem(Distribution):
    def has_ext_modules(self) -> bool:
        return True


class ForAnyPython(bdist_wheel):
    """`ctypes` loads the kernels, whatever the version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_py": WithKernels, "bdist_wheel": ForAnyPython}, distclass=ForOneSystem)
