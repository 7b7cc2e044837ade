"""The wheel as a user gets it: what it holds, and a token from it in an environment outside the checkout."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.version import VERSION
from tests.house_rules import PRODUCT, ROOT, tracked

START_DEADLINE_S = 120.0
STOP_DEADLINE_S = 40.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git knows, so that nothing lying about in the checkout gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        if name.split("/")[0] in PRODUCT or "/" not in name:
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel.

    Third-party packages are borrowed from the environment that runs the suite, through a path file: installing torch
    again would test torch. The product is not borrowed: a path file inside a borrowed folder has no effect, so the
    installation in place is not visible, and the test looks at where the product came from.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
    )  # fmt: skip
    (site_packages,) = folder.glob("lib/python*/site-packages")
    borrowed = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site_packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    return folder / "bin"


def _user_environment(**settings: str) -> dict[str, str]:
    """What a shell outside the checkout has: nothing that points Python or the server anywhere."""
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTEST_LEAK_TAG") if name in os.environ
    }
    return kept | {"OMP_NUM_THREADS": "1"} | settings


def test_holds_the_product_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"textgen_endpoint-{VERSION}.dist-info/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {*PRODUCT, f"textgen_endpoint-{VERSION}.dist-info"}
    modules = {name for name in tracked() if name.endswith(".py") and name.split("/")[0] in PRODUCT}
    assert {name for name in names if name.endswith(".py")} == modules
    data = {
        name for name in tracked() if name.startswith("local_mode/") and not name.endswith((".py", ".md"))
    }
    assert data <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "textgen-endpoint = serving.cli:main" in entry_points


def test_is_what_runs_outside_the_checkout(environment: Path, tmp_path: Path) -> None:
    program = "import serving, container, local_mode, sagemaker_sdk_ext as s\n" + (
        "for package in (serving, container, local_mode, s): print(package.__file__)"
    )
    shown = subprocess.run(
        [environment / "python", "-c", program],
        cwd=tmp_path, env=_user_environment(), check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = shown.stdout.splitlines()
    assert len(lines) == 4
    assert all(Path(line).is_relative_to(environment.parent) for line in lines)


def test_says_its_version(environment: Path, tmp_path: Path) -> None:
    shown = subprocess.run(
        [environment / "textgen-endpoint", "--version"],
        cwd=tmp_path, env=_user_environment(), check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout.strip() == VERSION


class _Log:
    """What a server printed so far, read by a thread so that the pipe never fills."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()

    def text(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, *, deadline: float) -> re.Match[str]:
        with self._changed:
            while (found := re.search(pattern, "".join(self._lines))) is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    pytest.fail(f"no {pattern!r} in the log:\n{''.join(self._lines)}")
                self._changed.wait(min(left, 0.2))
        return found

    def join(self) -> None:
        self._reader.join()


@contextmanager
def _serving(command: list[str | Path], *, cwd: Path) -> Iterator[tuple[int, _Log]]:
    """A running server's port and log; ended by SIGTERM, which has to succeed."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=_user_environment(HF_MODEL_ID="demo", DEVICE="cpu", HOSTNAME="127.0.0.1", PORT="0"),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        log = _Log(process)
        try:
            port = log.wait_for(r"\blistening\b.*\bport=(\d+)", deadline=time.monotonic() + START_DEADLINE_S)
            yield int(port[1]), log
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_DEADLINE_S) == 0, log.text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            log.join()


def _ask(port: int, method: str, path: str, body: dict[str, object] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"content-type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def _wait_until_ready(port: int, log: _Log) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while (answer := _ask(port, "GET", "/ping"))[0] != 200:
        if time.monotonic() > deadline or " failed " in log.text():
            pytest.fail(f"/ping says {answer} after {START_DEADLINE_S:g} s:\n{log.text()}")
        time.sleep(0.05)


@pytest.mark.timeout(300)
def test_serves_a_token(environment: Path, tmp_path: Path, demo_model_dir: Path) -> None:
    with _serving([environment / "textgen-endpoint", "serve"], cwd=tmp_path) as (port, log):
        _wait_until_ready(port, log)
        request = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8, "details": True}}
        status, reply = _ask(port, "POST", "/invocations", request)
        assert status == 200, reply
        answer = json.loads(reply)
        answer = answer[0] if isinstance(answer, list) else answer
        assert answer["generated_text"]
        assert answer["details"]["generated_tokens"] == 8
        status, reply = _ask(port, "GET", "/info")
        assert json.loads(reply)["version"] == VERSION
