"""Which torch gets installed, from where, and what is said before; and that the Makefile installs nothing twice.

pip is the real one, in a bare environment; the indexes and the wheels it sees are made here.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pip
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "install_torch.py"
VERSION = "2.13.0"
DEADLINE_S = 60.0


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install_torch = _load_script()


# ------------------------------------------------------------------------------------------------- a world for pip


def _write_wheel(folder: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> Path:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    path.with_name(path.name + ".metadata").write_text(metadata, encoding="utf-8")
    return path


@dataclass
class Indexes:
    """An HTTP server with two simple indexes: `/pypi` (CUDA builds) and `/cpu`. Wheels wait for `may_download`."""

    folder: Path
    may_download: threading.Event = field(default_factory=threading.Event)
    downloads: list[str] = field(default_factory=list)
    url: str = ""

    def page(self, path: str) -> bytes | None:
        """The reply to a GET, None for 404."""
        parts = path.strip("/").split("/")
        target = self.folder.joinpath(*parts)
        if target.is_file():
            if target.suffix == ".whl":
                self.downloads.append(target.name)
                self.may_download.wait(DEADLINE_S)
            return target.read_bytes()
        wheels = sorted(self.folder.glob(f"{parts[0]}/{parts[-1].replace('-', '_')}-*.whl"))
        anchors = (
            f'<a href="/{parts[0]}/{wheel.name.replace("+", "%2B")}" data-core-metadata="true">{wheel.name}</a>'
            for wheel in wheels
        )
        return "\n".join(anchors).encode() if len(parts) == 2 and wheels else None


class _Handler(BaseHTTPRequestHandler):
    indexes: Indexes

    def do_GET(self) -> None:
        body = self.indexes.page(self.path.replace("%2B", "+"))
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silence: the test names what it looks at."""


@pytest.fixture
def indexes(tmp_path: Path) -> Iterator[Indexes]:
    served = Indexes(tmp_path / "indexes")
    for name in ("pypi", "cpu"):
        (served.folder / name).mkdir(parents=True)
    _write_wheel(served.folder / "pypi", "torch", VERSION, requires=("nvidia-cudnn-cu13",))
    _write_wheel(served.folder / "pypi", "nvidia_cudnn_cu13", "9.0")
    _write_wheel(served.folder / "pypi", "setuptools", "99.0")
    _write_wheel(served.folder / "cpu", "torch", f"{VERSION}+cpu")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"indexes": served}))
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    served.may_download.set()
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Environment:
    """A virtual environment that holds pip and nothing else, and the settings pip runs with."""

    python: Path
    settings: dict[str, str]

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        command = [self.python, "-u", SCRIPT, "--constraints", ROOT / "constraints-cpu.txt", *arguments]
        return subprocess.Popen(
            command, env=self.settings | settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def install(self, *arguments: str, **settings: str) -> tuple[int, str]:
        with self.start(*arguments, **settings) as process:
            output, _ = process.communicate(timeout=DEADLINE_S)
        return process.returncode, output

    def torch(self) -> str | None:
        found = list(self.python.parent.parent.glob("lib/*/site-packages/torch-*.dist-info"))
        return found[0].name.removeprefix("torch-").removesuffix(".dist-info") if found else None


@pytest.fixture
def environment(tmp_path: Path, indexes: Indexes) -> Environment:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    only_pip = tmp_path / "only_pip"
    only_pip.mkdir()
    installed = Path(pip.__file__).parent
    for entry in (installed, *installed.parent.glob("pip-*.dist-info")):
        (only_pip / entry.name).symlink_to(entry)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH_"))}
    settings = {
        "PYTHONPATH": str(only_pip),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{indexes.url}/pypi",
        "PIP_CACHE_DIR": str(tmp_path / "cache"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TORCH_INDEX_URL": f"{indexes.url}/cpu",
    }
    return Environment(tmp_path / "venv" / "bin" / "python", inherited | settings)


def _closed_port_url() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/cpu"


# --------------------------------------------------------------------------------------------------- installing


def test_cpu_index_is_preferred(environment: Environment, indexes: Indexes) -> None:
    indexes.may_download.set()
    status, output = environment.install()
    assert status == 0, output
    assert environment.torch() == f"{VERSION}+cpu"
    assert "CUDA" not in output
    status, output = environment.install(TORCH_INDEX_URL=_closed_port_url(), PIP_INDEX_URL=_closed_port_url())
    assert (status, output) == (0, f"torch: {VERSION}+cpu is installed\n")


def test_cuda_build_is_announced_before_it_is_downloaded(environment: Environment, indexes: Indexes) -> None:
    with environment.start(TORCH_INDEX_URL=_closed_port_url()) as process:
        assert process.stdout is not None
        said = [process.stdout.readline(), process.stdout.readline()]
        assert "unreachable" in said[0]
        assert f"{VERSION} is a CUDA build" in said[1] and "several GB" in said[1]
        assert [name for name in indexes.downloads if name.startswith(("torch", "nvidia"))] == []
        indexes.may_download.set()
        rest, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, rest
    assert "CUDA" not in rest
    assert environment.torch() == VERSION


def test_index_without_the_version_is_passed_over(environment: Environment, indexes: Indexes) -> None:
    (indexes.folder / "cpu" / f"torch-{VERSION}+cpu-py3-none-any.whl").unlink()
    _write_wheel(indexes.folder / "cpu", "torch", "2.12.0+cpu")
    indexes.may_download.set()
    status, output = environment.install()
    assert status == 0, output
    assert f"lacks torch {VERSION}+cpu" in output
    assert environment.torch() == VERSION


def test_a_local_wheel_is_enough(environment: Environment, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    _write_wheel(wheels, "torch", f"{VERSION}+cpu")
    _write_wheel(wheels, "setuptools", "99.0")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "TORCH_INDEX_URL": _closed_port_url()}
    status, output = environment.install(**settings)
    assert status == 0, output
    assert environment.torch() == f"{VERSION}+cpu"
    assert "CUDA" not in output


def test_cuda_is_asked_for_deliberately(environment: Environment, indexes: Indexes) -> None:
    indexes.may_download.set()
    assert environment.install()[0] == 0
    status, output = environment.install("--cuda")
    assert status == 0, output
    assert environment.torch() == VERSION
    assert "is a CUDA build" in output


def test_cuda_that_nobody_has_is_refused(environment: Environment, indexes: Indexes) -> None:
    status, output = environment.install("--cuda", PIP_INDEX_URL=f"{indexes.url}/cpu")
    assert status == 1
    assert "CUDA=1 asks for a CUDA build" in output
    assert environment.torch() is None


def test_nothing_to_install_names_the_settings(environment: Environment) -> None:
    status, output = environment.install(PIP_NO_INDEX="1", TORCH_INDEX_URL=_closed_port_url())
    assert status == 1
    assert f"found no torch=={VERSION}" in output and "TORCH_INDEX_URL" in output


# ------------------------------------------------------------------------------------------------------ the parts


def test_probe_gives_up_in_time_on_an_index_that_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        reason = install_torch.probe(f"http://127.0.0.1:{silent.getsockname()[1]}", VERSION, limit_s=0.2)
        assert reason == "no answer within 0.2 s"
        assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("torch-2.13.0%2Bcpu-cp{tag}-cp{tag}-manylinux_2_28_x86_64.whl", True),
        ("torch-2.13.0+cpu-cp{tag}-cp{tag}-linux_x86_64.whl", True),
        ("torch-2.13.0+cpu-cp39-cp39-linux_x86_64.whl", False),
        ("torch-2.13.01+cpu-cp{tag}-cp{tag}-linux_x86_64.whl", False),
        ("torch-2x13.0+cpu-cp{tag}-cp{tag}-linux_x86_64.whl", False),
        ("torch-2.13.0-cp{tag}-cp{tag}-manylinux_2_28_x86_64.whl", False),
    ],
)
def test_cpu_build_on_page(line: str, found: bool) -> None:
    page = line.format(tag=f"{sys.version_info.major}{sys.version_info.minor}")
    assert install_torch.cpu_build_on_page(page, VERSION) is found


@pytest.mark.parametrize(
    ("packages", "system", "build"),
    [
        ({"torch": "2.13.0+cpu", "numpy": "2.4"}, "Linux", None),
        ({"torch": "2.13.0"}, "Linux", "2.13.0"),
        ({"torch": "2.13.0"}, "Darwin", None),
        ({"torch": "2.13.0+cu130"}, "Linux", "2.13.0+cu130"),
        ({"torch": "2.13.0", "nvidia-nccl-cu13": "2.28"}, "Linux", "2.13.0"),
        ({"numpy": "2.4"}, "Linux", None),
    ],
)
def test_cuda_build(packages: dict[str, str], system: str, build: str | None) -> None:
    report = {"install": [{"metadata": {"name": n, "version": v}} for n, v in packages.items()]}
    assert install_torch.cuda_build(report, system=system) == build


def test_pinned_version() -> None:
    assert install_torch.pinned_version((ROOT / "constraints-cpu.txt").read_text(encoding="utf-8")) == VERSION
    with pytest.raises(ValueError, match="torch==VERSION"):
        install_torch.pinned_version("numpy==2.0\n")


# --------------------------------------------------------------------------------------------------- the Makefile


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the environment depends on, with every stamp in place as after `make test`."""
    folder = tmp_path / "checkout"
    (folder / ".venv").mkdir(parents=True)
    (folder / "serving").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints-cpu.txt", "serving/version.py"):
        shutil.copyfile(ROOT / name, folder / name)
        os.utime(folder / name, (1000, 1000))
    for age, stamp in enumerate((".python", ".torch-cpu", ".runtime-cpu", ".dev-cpu")):
        (folder / ".venv" / stamp).touch()
        os.utime(folder / ".venv" / stamp, (2000 + age, 2000 + age))
    return folder


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=inherited, check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize("target", ["serve", "test", "lint"])
def test_a_changed_source_file_installs_nothing(checkout: Path, target: str) -> None:
    os.utime(checkout / "serving" / "version.py")
    plan = _make(checkout, "-n", target)
    assert plan.returncode == 0, plan.stderr
    assert "pip" not in plan.stdout and "install" not in plan.stdout


@pytest.mark.parametrize(("changed", "torch"), [("pyproject.toml", False), ("constraints-cpu.txt", True)])
def test_a_changed_requirement_installs(checkout: Path, changed: str, torch: bool) -> None:
    os.utime(checkout / changed)
    plan = _make(checkout, "-n", "serve").stdout
    assert "pip install" in plan
    assert ("install_torch.py" in plan) is torch


def test_cuda_has_its_own_stamp(checkout: Path) -> None:
    assert (
        "install_torch.py --constraints constraints-cpu.txt --cuda"
        in _make(checkout, "-n", "serve", "CUDA=1").stdout
    )


def test_an_old_python_is_refused_in_one_line(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    old = checkout / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2"\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    refused = _make(checkout, "serve", "PYTHON=./old-python")
    assert refused.returncode != 0
    (line,) = [text for text in refused.stderr.splitlines() if not text.startswith("make: ***")]
    assert "3.11 or newer" in line and "Python 3.9.2" in line


def test_help_names_every_target(checkout: Path) -> None:
    shown = _make(checkout).stdout
    for target in ("serve", "test", "test-full", "test-gpu", "lint", "format", "bench"):
        assert f"  {target} " in shown
