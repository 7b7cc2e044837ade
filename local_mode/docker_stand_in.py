"""An executable named `docker` for the local mode of the SageMaker SDKs, on machines where there is no Docker.

`instance_type="local"` of SDK 2 and SDK 3 writes a compose file and runs `docker compose -f FILE up`. The stand-in
answers that by running this product's container entrypoint as a child process that listens where the compose file
publishes the container's port. Whatever image the file names, it is this product that serves.

    folder=$(textgen-endpoint local docker-stand-in)   # a folder that holds `docker` and nothing else
    PATH=$folder:$PATH python deploy.py                # ...deploy(instance_type="local")

The SDKs want model data there (`model_data="file:///…/model.tar.gz"`, or in S3) even when HF_MODEL_ID names the model,
look for the container at port 8080 unless their configuration has `{"local": {"serving_port": …}}`, and SDK 2 gives up
after 120 s. Nothing is isolated: the child sees this machine's files, network and devices.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from local_mode.server_process import SERVE_COMMAND

CONTAINER_PORT = "8080"
MODEL_ROOT = "/opt/ml/"
GRACE_S = 30
READ_LIMIT_S = 5.0
# What a process needs of this machine, and what chooses its devices; everything else comes from the compose file.
INHERITED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "DEVICE", "NUM_THREADS",
    "OMP_NUM_THREADS", "HF_HOME", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE",
)  # fmt: skip
COMPOSE_VERSION = "Docker Compose version v2.99.0 (stand-in: containers are local processes)"
# Something that passes for an image's id: the SDKs then neither log in to a registry nor pull.
IMAGE_ID = "sha256:" + "0" * 12
CONTEXT = [{"Name": "default", "Endpoints": {"docker": {"Host": "unix:///var/run/docker.sock"}}}]

_SCRIPT = """#!{interpreter}
import sys

from local_mode.docker_stand_in import main
from local_mode.settings import process_environment

sys.exit(main(sys.argv[1:], process_environment()))
"""


class Refused(Exception):
    """A command line or compose file that the stand-in does not run; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Service:
    """The one service of a compose file, as far as a process can be it."""

    image: str
    port: str
    """On this machine."""
    environment: Mapping[str, str]
    volumes: Mapping[str, Path]
    """By the path in the container."""


def install(folder: Path | None = None) -> Path:
    """Write the executable and return its folder, which is to be the first on PATH.

    The folder belongs to this interpreter's environment when none is named. Raises `OSError`.
    """
    folder = folder or Path(sys.prefix) / "share" / "textgen-endpoint" / "docker-stand-in"
    folder.mkdir(parents=True, exist_ok=True)
    executable = folder / "docker"
    text = _SCRIPT.format(interpreter=sys.executable)
    if not executable.is_file() or executable.read_text(encoding="utf-8") != text:
        fresh = folder / f".docker-{os.getpid()}"
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o755)
        fresh.replace(executable)
    return folder


def read_service(compose_file: Path) -> Service:
    """Raises `Refused` for what is not one service that serves."""
    content: dict[str, Any] = yaml.safe_load(compose_file.read_text(encoding="utf-8"))
    services: dict[str, dict[str, Any]] = content.get("services") or {}
    if len(services) != 1:
        raise Refused(f"{compose_file} has {len(services)} services; only one that serves can be run")
    ((name, service),) = services.items()
    command = service.get("command")
    if command != "serve" or "entrypoint" in service:
        raise Refused(
            f"service {name} runs {service.get('entrypoint') or command!r}; only `serve` can be run"
        )
    volumes = [str(volume).split(":") for volume in service.get("volumes") or []]
    return Service(
        image=str(service.get("image")),
        port=_published_port(name, service.get("ports") or []),
        environment=_environment(service.get("environment") or {}),
        volumes={parts[1]: Path(parts[0]) for parts in volumes if len(parts) >= 2},
    )


def _environment(declared: Sequence[str] | Mapping[str, object]) -> dict[str, str]:
    """Both of compose's forms: a list of NAME=value, or a mapping."""
    if isinstance(declared, Mapping):
        return {name: str(value) for name, value in declared.items() if value is not None}
    pairs = (entry.partition("=") for entry in declared)
    return {name: value for name, equals, value in pairs if equals}


def _published_port(name: str, ports: Sequence[object]) -> str:
    """Where this machine reaches the container's port; SageMaker Studio's network gives it its own."""
    for entry in ports:
        *_, published, target = ["", *str(entry).split(":")]
        if target == CONTAINER_PORT:
            return published or CONTAINER_PORT
    if ports:
        raise Refused(
            f"service {name} publishes {ports}, none of them port {CONTAINER_PORT} of the container"
        )
    return CONTAINER_PORT


def _model_root(service: Service, folder: Path) -> Path:
    """A folder that stands for /opt/ml: what would be mounted below it is linked."""
    root = folder / "opt-ml"
    for inside, outside in service.volumes.items():
        if inside.startswith(MODEL_ROOT):
            link = root / inside.removeprefix(MODEL_ROOT)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(outside.resolve())
    return root


class _Running:
    """The child in the foreground: our signals become its SIGTERM, and SIGKILL when it does not follow."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGALRM, self._kill)
        # The SDKs read the one pipe and never the other, which would fill up.
        self._process = subprocess.Popen(SERVE_COMMAND, env=environment, stderr=subprocess.STDOUT)
        if self._asked:
            self._process.terminate()

    def wait(self) -> int:
        """An exit status as compose gives it: 0 when we were asked to stop."""
        status = self._process.wait()
        if self._asked:
            return 0
        _wait_until_read(sys.stdout.fileno())
        return status if status >= 0 else 128 - status

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            return
        self._asked = True
        signal.alarm(GRACE_S)
        process: subprocess.Popen[bytes] | None = getattr(self, "_process", None)
        if process is not None:
            process.terminate()

    def _kill(self, number: int, frame: FrameType | None) -> None:
        self._process.kill()


def _wait_until_read(pipe: int) -> None:
    """The SDKs stop reading once we have ended, and what they have not read is why the server failed."""
    if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
        return
    deadline_s = time.monotonic() + READ_LIMIT_S
    while time.monotonic() < deadline_s:
        (num_unread,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
        if num_unread == 0:
            return
        time.sleep(0.01)


def up(compose_file: Path, inherited: Mapping[str, str]) -> int:
    """Run the service until it ends or we are told to. Raises `Refused`."""
    service = read_service(compose_file)
    # In the compose file's folder, which the SDKs remove at the end; links are removed, not followed.
    root = _model_root(service, compose_file.resolve().parent)
    print(
        f"docker stand-in: {service.image} is not run; a process of this machine serves at port {service.port}"
    )
    sys.stdout.flush()
    environment = {
        **{name: inherited[name] for name in INHERITED if name in inherited},
        **service.environment,
        "SAGEMAKER_BASE_DIR": str(root),
        "SAGEMAKER_BIND_TO_PORT": service.port,
        "HOSTNAME": "127.0.0.1",
    }
    return _Running(environment).wait()


def _compose(arguments: Sequence[str], inherited: Mapping[str, str]) -> int:
    match list(arguments):
        case ["version", *_]:
            print(COMPOSE_VERSION)
            return 0
        case ["-f" | "--file", compose_file, "up", *options] if not {"-d", "--detach"} & set(options):
            return up(Path(compose_file), inherited)
        case ["-f" | "--file", _, "down", *_]:
            return 0  # `up` stays in the foreground and has ended with its own signal
    raise Refused(f"`docker compose {shlex.join(arguments)}` is not known; it knows version, and -f FILE up")


def _docker(arguments: Sequence[str], inherited: Mapping[str, str]) -> int:
    match list(arguments):
        case ["compose", *rest]:
            return _compose(rest, inherited)
        case ["info", *_]:
            print(" Server Version: stand-in\n Cgroup Driver: cgroupfs")
        case ["context", "inspect", *_]:
            print(json.dumps(CONTEXT))
        case ["images", *_]:
            print(IMAGE_ID)
        case ["login", *_]:
            sys.stdin.read()  # the password
        case ["pull", *_]:
            pass  # no image is run
        case _:
            raise Refused(
                f"`docker {shlex.join(arguments)}` is not known; only the SDKs' local mode is served"
            )
    return 0


def main(arguments: Sequence[str], inherited: Mapping[str, str]) -> int:
    """The executable: docker's command line, and the environment of the process; returns the exit status."""
    try:
        return _docker(arguments, inherited)
    except (Refused, OSError, yaml.YAMLError) as error:
        # The SDKs show this stream only.
        print(f"docker stand-in: {error}", flush=True)
        _wait_until_read(sys.stdout.fileno())
        return 1
