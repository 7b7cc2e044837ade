"""Make one environment for each line of the SageMaker Python SDK, which exclude each other. Standard library and pip.

An environment holds the SDK as its registry gives it and a path to this checkout, so that `sagemaker_sdk_ext` can be
imported there; torch stays out, and an SDK that asks for it is refused before anything is downloaded. What is there
and was made from the same requirements is left as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINES = ("sagemaker2", "sagemaker3")
# Several GB that no client needs.
REFUSED = re.compile(r"torch|triton|tensorflow|nvidia-.*|cuda-.*")
STAMP = ".made-from"


class NoEnvironment(Exception):
    """An environment cannot be made; the message says which and why."""


def requirements(line: str) -> list[str]:
    """What `pyproject.toml` declares for the extra named `line`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared: list[str] = project["optional-dependencies"][line]
    return declared


def folder_of(line: str) -> Path:
    return ROOT / f".venv-{line}"


def _stamp(wanted: Sequence[str]) -> str:
    """What decides whether an environment that is there still is the right one."""
    python = ".".join(str(part) for part in sys.version_info[:2])
    return json.dumps({"python": python, "checkout": str(ROOT), "requirements": sorted(wanted)}) + "\n"


def _pip(python: Path, *arguments: str) -> None:
    """Run this interpreter's pip for the environment of `python`. Raises `NoEnvironment`."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "--disable-pip-version-check",
        *arguments,
    ]
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise NoEnvironment(f"pip ended with {status}: {' '.join(arguments)}")


def _resolve(python: Path, wanted: Sequence[str]) -> list[str]:
    """`name==version` of everything that `wanted` brings. Nothing is downloaded but metadata."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        _pip(python, "install", "--quiet", "--quiet", "--dry-run", "--report", str(path), *wanted)
        found = [item["metadata"] for item in json.loads(path.read_text(encoding="utf-8"))["install"]]
    large = sorted(item["name"] for item in found if REFUSED.fullmatch(item["name"].lower()))
    if large:
        raise NoEnvironment(
            f"{' '.join(wanted)} brings {', '.join(large)}; tighten the requirement in pyproject.toml"
        )
    return [f"{item['name']}=={item['version']}" for item in found]


def _show_checkout(python: Path) -> None:
    """Let the environment import this checkout, without installing what the checkout needs."""
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    answer = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True)
    (Path(answer.stdout.strip()) / "textgen_endpoint_checkout.pth").write_text(f"{ROOT}\n", encoding="utf-8")


def make(line: str) -> None:
    """Make the environment of `line`, or leave it when it is right. Raises `NoEnvironment`."""
    wanted, folder = requirements(line), folder_of(line)
    stamp, stamp_file = _stamp(wanted), folder / STAMP
    if stamp_file.is_file() and stamp_file.read_text(encoding="utf-8") == stamp:
        print(f"{folder.name}: up to date ({', '.join(wanted)})", flush=True)
        return
    started_s = time.monotonic()
    print(f"{folder.name}: resolving {', '.join(wanted)}", flush=True)
    venv.create(folder, clear=True, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pins = _resolve(python, wanted)
    print(
        f"{folder.name}: installing {len(pins)} packages after {time.monotonic() - started_s:.0f} s",
        flush=True,
    )
    _pip(python, "install", "--quiet", "--no-deps", "--no-compile", "--progress-bar", "on", *pins)
    _show_checkout(python)
    stamp_file.write_text(stamp, encoding="utf-8")
    print(f"{folder.name}: ready after {time.monotonic() - started_s:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "line", nargs="*", choices=[*LINES, []], default=[], help="which ones; all when none is named"
    )
    chosen = parser.parse_args(arguments).line or LINES
    try:
        for line in chosen:
            make(line)
    except NoEnvironment as error:
        print(f"sdk environments: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
