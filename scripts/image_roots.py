"""Clean root file systems made by debootstrap, and commands in them: what stands in for a container engine.

Each command has its own mount and process namespaces, so that nothing stays mounted and no process stays behind. Needs
root, debootstrap and unshare. Standard library only.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What a machine's own mirrors, proxies and certificates are named with; files and folders among the values are shown
# to the build under /run, which is no part of the root.
FORWARDED = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "PIP_CERT", "PIP_DEFAULT_TIMEOUT",
    "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_INDEX_URL", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE",
)  # fmt: skip
_INSIDE = "/run/image-steps"
# What the slim images of Debian leave out of a package; copyright files stay.
_SLIM = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""
_SLIM_NOW = """\
find /usr/share/doc -mindepth 1 -not -type d -not -name copyright -delete
find /usr/share/doc -mindepth 1 -type d -empty -delete
rm -rf /usr/share/groff/* /usr/share/info/* /usr/share/lintian/* /usr/share/locale/* /usr/share/man/*
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/log/* /var/cache/debconf/*-old
"""


class StepFailed(Exception):
    """Which step, and with what status."""


@dataclass(frozen=True, slots=True)
class Process:
    """How a command runs: its variables and folder, and as what it sees the root."""

    environment: Mapping[str, str]
    folder: str = "/"
    read_only: bool = False
    """The root cannot be written, /tmp is empty and /dev/shm holds 64 MiB, which is the least a container gets."""
    forward: bool = True
    """Show it this machine's mirrors, proxies and certificates, and its network names."""


def debian(suite: str, cache: Path, *, mirror: str) -> Path:
    """A minimal Debian, made once per suite and trimmed as Debian's slim images are."""
    root = cache / f"debian-{suite}"
    if root.is_dir():
        return root
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise StepFailed("clean roots need debootstrap (apt-get install debootstrap) and root")
    making = cache / f"debian-{suite}.part"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", suite, str(making), mirror],
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise StepFailed(f"debootstrap {suite}: {done.stdout[-2000:]}")
    (making / "etc/dpkg/dpkg.cfg.d/slim").write_text(_SLIM)
    sources = [f"{mirror} {suite} main", f"{mirror} {suite}-updates main"]
    sources.append(f"{mirror.rstrip('/')}-security {suite}-security main")
    (making / "etc/apt/sources.list").write_text("".join(f"deb {line}\n" for line in sources))
    run(making, ["/bin/sh", "-c", _SLIM_NOW], Process({"PATH": os.defpath}, forward=False))
    making.rename(root)
    return root


def copy_of(root: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(root), str(target)], check=True)
    return target


def run(root: Path, command: Sequence[str], process: Process) -> None:
    """Raises `StepFailed`."""
    status = start(root, command, process).wait()
    if status != 0:
        raise StepFailed(f"status {status}: {' '.join(command)[:2000]}")


def start(root: Path, command: Sequence[str], process: Process) -> subprocess.Popen[str]:
    """The command in the root, as process 1 of a namespace of its own; it ends with whatever is left there."""
    shown, environment = _shown(process)
    setup = [
        "set -eu",
        "mount --make-rprivate /",
        f"mount --rbind {shlex.quote(str(root))} {shlex.quote(str(root))}",
    ]
    setup += [f"cd {shlex.quote(str(root))}", "mount -t proc proc proc", "mount --rbind /dev dev"]
    if process.read_only:
        setup.append(f"mount -o remount,bind,ro {shlex.quote(str(root))}")
        setup += ["mount -t tmpfs tmpfs tmp", "mount -t tmpfs -o size=64m tmpfs dev/shm"]
    setup += [f"mount -t tmpfs tmpfs run; mkdir run/lock .{_INSIDE}"]
    for number, path in enumerate(shown):
        inside = f".{_INSIDE}/{number}"
        make = f"mkdir {inside}" if path.is_dir() else f": > {inside}"
        setup.append(f"{make}; mount --bind {shlex.quote(str(path))} {inside}")
    if process.forward:
        setup.append(": >> etc/resolv.conf; mount --bind /etc/resolv.conf etc/resolv.conf")
    inner = ["chroot", ".", "/usr/bin/env", "-i", f"--chdir={process.folder}"]
    inner += [*(f"{name}={value}" for name, value in environment.items()), *command]
    setup.append(f"exec {shlex.join(inner)}")
    outer = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", "\n".join(setup)]
    return subprocess.Popen(outer, stdin=subprocess.DEVNULL, stdout=sys.stderr, text=True)


def _shown(process: Process) -> tuple[list[Path], dict[str, str]]:
    """Files of this machine that the command sees, and its variables, which name them where it sees them."""
    environment = {"HOME": "/root", **process.environment}
    shown: list[Path] = []
    for name in FORWARDED if process.forward else ():
        value = os.environ.get(name)
        if value and value.startswith("/") and Path(value).exists():
            shown.append(Path(value).resolve())
            value = f"{_INSIDE}/{len(shown) - 1}"
        if value:
            environment.setdefault(name, value)
    return shown, environment
