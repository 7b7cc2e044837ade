"""Install the pinned torch into the environment whose Python runs this file. Standard library only.

CPU builds are preferred: the index named by TORCH_INDEX_URL is asked first, with a limit of three seconds,
and pip's own configuration (indexes, find-links) is what remains when that index is away or lacks the
version. What pip would take is known before anything large is downloaded, and a CUDA build of several GB is
announced in one line. `--cuda` asks for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

DEFAULT_INDEX_URL = "https://download.pytorch.org/whl/cpu"
PROBE_LIMIT_S = 3.0
MAX_INDEX_PAGE_BYTES = 8 * 1024 * 1024
# Before this one, `pip install --dry-run` downloads every wheel it would install.
LAZY_DRY_RUN_PIP = (23, 3)
SETUPTOOLS = "setuptools>=77"


def pinned_version(constraints: str) -> str:
    """The version of the `torch==` line of a constraints file. Raises `ValueError` when there is none."""
    match = re.search(r"^torch==([\w.!+]+)\s*(?:#.*)?$", constraints, re.MULTILINE)
    if match is None:
        raise ValueError("no line `torch==VERSION` in the constraints file")
    return match[1]


def cpu_build_on_page(page: str, version: str) -> bool:
    """True when a simple-index page (PEP 503) lists a `+cpu` wheel of `version` for this Python."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheel = rf"torch-{re.escape(version)}(?:\+|%2[bB])cpu-(?:{tag}|py3)-"
    return re.search(wheel, page) is not None


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE"):
        bundle = os.environ.get(name, "")
        if Path(bundle).is_file():
            context.load_verify_locations(bundle)
    return context


def _read_page(url: str) -> str:
    request = urllib.request.Request(url, headers={"Accept": "text/html"})
    with urllib.request.urlopen(request, timeout=PROBE_LIMIT_S, context=_tls_context()) as reply:
        body: bytes = reply.read(MAX_INDEX_PAGE_BYTES)
    return body.decode("utf-8", "replace")


def probe(index_url: str, version: str, *, limit_s: float = PROBE_LIMIT_S) -> str | None:
    """None when the index has the CPU build of `version`, else why it is passed over.

    `limit_s` is on the whole, name resolution included: a socket timeout alone would not bound that.
    """
    found: list[str | None] = []

    def ask() -> None:
        try:
            page = _read_page(f"{index_url.rstrip('/')}/torch/")
        except (OSError, ValueError) as error:
            found.append(f"unreachable ({getattr(error, 'reason', None) or error})")
        else:
            lacks = f"lacks torch {version}+cpu for this Python"
            found.append(None if cpu_build_on_page(page, version) else lacks)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit_s)
    return found[0] if found else f"no answer within {limit_s:g} s"


def cuda_build(report: dict[str, Any], *, system: str) -> str | None:
    """The version of torch when pip's installation report holds a CUDA build, else None.

    PyPI serves CUDA builds for Linux and plain CPU ones elsewhere, both without a local version.
    """
    names = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
    version = names.get("torch")
    if version is None:
        return None
    companions = any(name.startswith(("nvidia-", "cuda-")) for name in names)
    unlabelled = system == "Linux" and "+cpu" not in version
    return version if companions or unlabelled else None


def installed_build() -> str | None:
    """The version of the torch of this environment, None without one. Does not import it."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


Pip = Callable[..., int]


def _pip(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], check=False).returncode


def _say(text: str) -> None:
    print(f"torch: {text}", flush=True)


def _dry_run(pip: Pip, requirement: str, options: list[str]) -> dict[str, Any] | None:
    """pip's report of what it would install, None when it finds no such version."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        if pip("install", "--quiet", "--dry-run", "--report", str(path), *options, requirement) != 0:
            return None
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report


def _ensure_lazy_dry_run(pip: Pip) -> None:
    version = tuple(int(part) for part in re.findall(r"\d+", metadata.version("pip"))[:2])
    if version < LAZY_DRY_RUN_PIP:
        # Without a network this fails, and then there is nothing to download by surprise either.
        pip("install", "--quiet", "--quiet", "--retries", "0", "--timeout", "5", "--upgrade", "pip>=23.3")


def _source(version: str, *, index_url: str, cuda: bool) -> tuple[str, list[str]]:
    """The requirement to ask for and the pip options that name where to look."""
    if cuda:
        return f"torch=={version}", []
    reason = probe(index_url, version)
    if reason is None:
        return f"torch=={version}+cpu", ["--extra-index-url", index_url]
    _say(f"{index_url}: {reason}; using pip's configured indexes (another one: TORCH_INDEX_URL=...)")
    return f"torch=={version}", []


def _fits(build: str, version: str, *, cuda: bool) -> bool:
    return build.split("+")[0] == version and not (cuda and build.endswith("+cpu"))


def install(version: str, *, index_url: str, cuda: bool, pip: Pip = _pip, system: str) -> int:
    """Install `version` and return an exit status. A fitting build that is there already stays."""
    present = installed_build()
    if present is not None and _fits(present, version, cuda=cuda):
        _say(f"{present} is installed")
        return 0
    _ensure_lazy_dry_run(pip)
    requirement, options = _source(version, index_url=index_url, cuda=cuda)
    if present is not None and cuda:
        options = [*options, "--force-reinstall"]
    report = _dry_run(pip, requirement, options)
    if report is None:
        _say(f"found no {requirement}; name an index in TORCH_INDEX_URL or a folder in PIP_FIND_LINKS")
        return 1
    found = cuda_build(report, system=system)
    if found is not None:
        _say(f"{found} is a CUDA build: with its {len(report['install'])} packages it downloads several GB")
    elif cuda:
        _say("CUDA=1 asks for a CUDA build, pip's configured indexes offer a CPU one only; set PIP_INDEX_URL")
        return 1
    return pip("install", "--no-compile", *options, requirement, SETUPTOOLS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraints", type=Path, required=True, help="file with the line torch==VERSION")
    parser.add_argument("--cuda", action="store_true", help="ask for the CUDA build")
    options = parser.parse_args(arguments)
    version = pinned_version(options.constraints.read_text(encoding="utf-8"))
    index_url = os.environ.get("TORCH_INDEX_URL") or DEFAULT_INDEX_URL
    return install(version, index_url=index_url, cuda=options.cuda, system=platform.system())


if __name__ == "__main__":
    sys.exit(main())
