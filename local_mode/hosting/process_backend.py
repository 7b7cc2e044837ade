"""Containers as process trees of this machine. An image is not looked at: whatever its name, `command` is run.

What a process cannot give and a container has: a network of its own (so every container gets its own port, and network
isolation is a request only), a root file system, limits on memory and /dev/shm.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from local_mode.contracts import ContainerFailed, ContainerSpec
from local_mode.hosting.logs import LogFile, note
from local_mode.removal import remove_tree

SERVE_COMMAND = (sys.executable, "-m", "container.entrypoint", "serve")
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
CHANNELS_FOLDER = "additional-model-data-sources"
_KEEPER = Path(__file__).with_name("keeper.py")
_SOURCES = Path(__file__).resolve().parents[2]
"""Where the package `container` lies, in a checkout as well as in site-packages."""
_KILL_LIMIT_S = 10.0
_READ_BYTES = 64 * 1024


class ProcessBackend:
    """Starts `command`. `environment` is what every container gets beside its own: the minimum of the host (PATH, LANG) and
    what the platform sets (region, credentials if there are any)."""

    def __init__(
        self, *, folder: Path, environment: Mapping[str, str], command: Sequence[str] = SERVE_COMMAND
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._command = tuple(command)
        self._has_gpu = Path("/dev/nvidiactl").exists()

    async def start(
        self, spec: ContainerSpec, *, model_dir: Path, channels: Mapping[str, Path], log: Path
    ) -> ProcessContainer:
        with ExitStack() as undo:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                folder = Path(tempfile.mkdtemp(prefix="c-", dir=self._folder))
                undo.callback(remove_tree, folder)
                _lay_out(folder, model_dir, channels)
                output = LogFile(log)
                undo.callback(output.close)
                reservation = undo.enter_context(_reserve_port())
                self._say_what_differs(spec, log, port=int(reservation.getsockname()[1]))
                process = await self._run(spec, folder, port=int(reservation.getsockname()[1]))
            except OSError as error:
                raise ContainerFailed(f"no place for container {spec.name}: {error}") from error
            undo.pop_all()
        return ProcessContainer(process, folder, reservation, output)

    def _say_what_differs(self, spec: ContainerSpec, log: Path, *, port: int) -> None:
        note(log, f"process for image={spec.image} port={port} container={spec.hostname}")
        if spec.network_isolation:
            note(
                log, "EnableNetworkIsolation cannot be enforced on a process; HF_HUB_OFFLINE=1 is set instead"
            )

    async def _run(self, spec: ContainerSpec, folder: Path, *, port: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(_KEEPER),
            str(os.getpid()),
            *self._command,
            env=self._container_environment(spec, folder, port),
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    def _container_environment(self, spec: ContainerSpec, folder: Path, port: int) -> dict[str, str]:
        """Weakest first: the host's, the platform's defaults, the user's, the platform's orders."""
        environment = {
            **for_container(self._environment, spec),
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "HOSTNAME": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
        }
        if not self._has_gpu:
            environment["DEVICE"] = "cpu"
        environment |= offline(spec)
        search = [str(_SOURCES), *filter(None, [spec.environment.get("PYTHONPATH")])]
        environment |= {
            "PYTHONPATH": os.pathsep.join(search),
            "SAGEMAKER_BIND_TO_PORT": str(port),
            "SAGEMAKER_BASE_DIR": str(folder / "ml"),
        }
        return environment


class ProcessContainer:
    """A running process tree, with its folder, its port and its log."""

    def __init__(
        self, process: asyncio.subprocess.Process, folder: Path, reservation: socket.socket, log: LogFile
    ) -> None:
        self._process = process
        self._folder = folder
        self._reservation = reservation
        self._port = int(reservation.getsockname()[1])
        self._log = log
        self._ending: str | None = None
        self._watch = asyncio.create_task(self._follow())

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_dir(self) -> str:
        return str(self._folder / "ml")

    @property
    def pid(self) -> int:
        """The keeper's; the container's processes descend from it."""
        return self._process.pid

    @property
    def ending(self) -> str | None:
        return self._ending

    async def stop(self, *, grace_s: float = 30.0) -> None:
        for order, limit_s in (
            (signal.SIGTERM, grace_s),
            (signal.SIGHUP, _KILL_LIMIT_S),
            (signal.SIGKILL, _KILL_LIMIT_S),
        ):
            if self._watch.done():
                break
            self._send(order)
            await asyncio.wait([self._watch], timeout=limit_s)
        self._reservation.close()
        remove_tree(self._folder)

    def _send(self, order: signal.Signals) -> None:
        try:
            self._process.send_signal(order)
        except ProcessLookupError:  # it has just ended
            return

    async def _follow(self) -> None:
        """Log what it prints, until it has ended."""
        output = self._process.stdout
        try:
            while output is not None and (content := await output.read(_READ_BYTES)):
                self._log.append(content)
        finally:
            self._log.close()
        self._ending = _in_words(await self._process.wait())


def for_container(environment: Mapping[str, str], spec: ContainerSpec) -> dict[str, str]:
    """What the platform gives a container: no credentials where it has no network to use them."""
    left_out = CREDENTIALS if spec.network_isolation else ()
    return {name: value for name, value in environment.items() if name not in left_out}


def offline(spec: ContainerSpec) -> dict[str, str]:
    """The user's environment; under network isolation with the word that nothing is to be downloaded."""
    return {**spec.environment, **({"HF_HUB_OFFLINE": "1"} if spec.network_isolation else {})}


def _lay_out(folder: Path, model_dir: Path, channels: Mapping[str, Path]) -> None:
    for name in ("home", "tmp", f"ml/{CHANNELS_FOLDER}"):
        (folder / name).mkdir(parents=True)
    (folder / "ml" / "model").symlink_to(model_dir.resolve(), target_is_directory=True)
    for channel, content in channels.items():
        (folder / "ml" / CHANNELS_FOLDER / channel).symlink_to(content.resolve(), target_is_directory=True)


def _reserve_port() -> socket.socket:
    """A bound socket that does not listen. While it is open the system gives its port to nobody who asks for any port, and a
    server that sets SO_REUSEADDR, as all do, may listen there: no moment at which the port is free for others."""
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    return reservation


def _in_words(code: int) -> str:
    """`code` is the keeper's exit status; it answers 128 + n for signal n."""
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        return f"was ended by {signal.Signals(number).name}"
    return f"exited with status {code}"
