"""A host that withholds things from a container: a real read-only mount, a network with loopback alone, a small `/dev/shm`.

Namespaces need root, or user namespaces. Where neither is permitted, `Host.namespaces` is false and tests check what they
can see from outside, which is less but can fail.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from local_mode.server_process import SERVE_COMMAND, ServerProcess
from tests.e2e.conftest import tree

_LISTENING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}


@cache
def _unshare() -> tuple[str, ...]:
    """The start of a command line in namespaces of its own, empty where that is not permitted."""
    own = ("unshare", "--mount", "--net")
    for command in (own, (*own, "--map-root-user")):
        try:
            if (
                subprocess.run([*command, "true"], capture_output=True, timeout=20, check=False).returncode
                == 0
            ):
                return command
        except FileNotFoundError:
            return ()
    return ()


@dataclass(frozen=True)
class Host:
    """What the container may not have. `model` is mounted read-only; `shm_kib` is the size of /dev/shm."""

    model: Path
    shm_kib: int

    @property
    def namespaces(self) -> bool:
        return bool(_unshare())

    def command(self) -> list[str]:
        """Starts the container there, under the pid that is started."""
        if not self.namespaces:
            return [*obedient(), *SERVE_COMMAND]
        model = shlex.quote(str(self.model))
        steps = [
            "mount --make-rprivate /",
            f"mount --bind {model} {model}",
            f"mount -o remount,bind,ro {model}",
            f"mount -t tmpfs -o size={self.shm_kib}k tmpfs /dev/shm",
            "ip link set lo up",
            'exec "$@"',
        ]
        return [*_unshare(), "sh", "-c", " && ".join(steps), "sh", *SERVE_COMMAND]

    def call(self, server: ServerProcess, method: str, path: str, body: object = None) -> tuple[int, str]:
        """Status and body of one call from within the container's network."""
        enter = ["nsenter", f"--target={server.pid}", "--net"] if self.namespaces else []
        if "--map-root-user" in _unshare():
            enter += ["--user", "--preserve-credentials"]
        script = Path(__file__).with_name("inside.py")
        arguments = [str(server.port), method, path] + ([] if body is None else [json.dumps(body)])
        done = subprocess.run(
            [*enter, sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        answer = json.loads(done.stdout)
        return answer["status"], answer["body"]


def obedient() -> list[str]:
    """Root ignores permission bits, unless it gives that up."""
    dropped = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"] if os.geteuid() == 0 else []


def seen_by(server: ServerProcess, path: Path) -> Path:
    """`path` as the container's mounts have it."""
    return Path(f"/proc/{server.pid}/root") / path.relative_to("/")


def interfaces(server: ServerProcess) -> set[str]:
    lines = Path(f"/proc/{server.pid}/net/dev").read_text().splitlines()[2:]
    return {line.split(":")[0].strip() for line in lines}


def sockets(server: ServerProcess) -> dict[tuple[str, str, int], str]:
    """What the processes of a server listen on, or are bound to with UDP: (protocol, address, port) -> process."""
    owners = {}
    for pid, title in tree(server).items():
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                owners[os.readlink(descriptor)] = title
            except FileNotFoundError:
                continue
    found = {}
    for protocol, state in _LISTENING.items():
        for line in Path(f"/proc/{server.pid}/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            owner = owners.get(f"socket:[{fields[9]}]")
            if fields[3] == state and owner is not None:
                found[protocol, _address(address), int(port, 16)] = owner
    return found


def _address(text: str) -> str:
    """`/proc/net` writes 32-bit words in the byte order of the machine."""
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    raw = b"".join(words)
    return ".".join(str(byte) for byte in raw) if len(raw) == 4 else raw.hex(":", 2)


def shared_memory_files(server: ServerProcess) -> list[str]:
    """What the processes of a server have open or mapped below /dev/shm."""
    found = []
    for pid in tree(server):
        folder = Path(f"/proc/{pid}")
        found += [line for line in (folder / "maps").read_text().splitlines() if " /dev/shm" in line]
        for descriptor in (folder / "fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except FileNotFoundError:
                continue
            found += [target] if target.startswith("/dev/shm") else []
    return found
