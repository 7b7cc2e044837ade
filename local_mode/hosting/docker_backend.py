"""Containers of a Docker engine, through the Docker SDK for Python (package `docker`, needed only when this is used).

Not given, because Docker has no way to publish a port of a container without a network: network isolation, which is a
request only (HF_HUB_OFFLINE=1).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local_mode.contracts import Backend, Container, ContainerFailed, ContainerSpec
from local_mode.hosting.logs import LogFile, note
from local_mode.hosting.process_backend import CHANNELS_FOLDER, for_container, offline

BASE_DIR = "/opt/ml"
DEFAULT_HOST = "unix:///var/run/docker.sock"
LABEL = "textgen-endpoint.local-mode"
_PORT = "8080/tcp"
_SHM_SIZE = "64m"
_KILL_LIMIT_S = 15.0


class NoDocker(Exception):
    """There is no package `docker`, or no engine answers. The message says which, and what to do."""


def connect(host: str | None) -> Any:
    """A client of the engine at `host` (DOCKER_HOST's form; None: the usual socket). Raises `NoDocker`."""
    docker = _sdk()
    address = host or DEFAULT_HOST
    refusal = NoDocker(
        f"no Docker engine answers at {address}: start it, set DOCKER_HOST, or use --backend process"
    )
    # The SDK leaves a socket open when there is no such file.
    if address.startswith("unix://") and not Path(address.removeprefix("unix://")).exists():
        raise refusal
    try:
        client = docker.DockerClient(base_url=address, timeout=60)
    except docker.errors.DockerException as error:
        raise refusal from error
    try:
        client.ping()
    except docker.errors.DockerException as error:
        client.close()
        raise refusal from error
    return client


class DockerBackend:
    """Runs the image itself, with `serve`. `environment` is what the platform sets: region, credentials, S3's address."""

    def __init__(self, client: Any, *, environment: Mapping[str, str]) -> None:
        self._client = client
        self._environment = environment

    def close(self) -> None:
        self._client.close()

    def has_image(self, image: str) -> bool:
        """Whether the engine holds it already."""
        errors = _sdk().errors
        try:
            self._client.images.get(image)
        except (errors.DockerException, OSError):
            return False
        return True

    async def start(
        self, spec: ContainerSpec, *, model_dir: Path, channels: Mapping[str, Path], log: Path
    ) -> DockerContainer:
        starting = asyncio.create_task(asyncio.to_thread(self._run, spec, model_dir, channels, log))
        try:
            container = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])  # what has started meanwhile must not stay
            if not starting.cancelled() and starting.exception() is None:
                await asyncio.to_thread(starting.result().remove, force=True, v=True)
            raise
        return DockerContainer(container, LogFile(log))

    def _run(self, spec: ContainerSpec, model_dir: Path, channels: Mapping[str, Path], log: Path) -> Any:
        errors = _sdk().errors
        self._require_image(spec, log)
        note(log, f"docker container of image={spec.image} container={spec.hostname}")
        if spec.network_isolation:
            note(
                log,
                "EnableNetworkIsolation cannot be had with a published port; HF_HUB_OFFLINE=1 is set instead",
            )
        created: Any = None
        try:
            created = self._client.containers.create(
                spec.image, **self._options(spec, model_dir, channels, log)
            )
            created.start()
            created.reload()
        except (errors.DockerException, OSError) as error:  # OSError: of the connection to the engine
            if created is not None:
                created.remove(force=True, v=True)
            raise ContainerFailed(
                f"The {spec.hostname} container of image {spec.image} cannot be started: {_text(error)}"
            ) from error
        return created

    def _require_image(self, spec: ContainerSpec, log: Path) -> None:
        """Have the image, by pulling it if need be. Raises `ContainerFailed` that says the image is wrong."""
        errors = _sdk().errors
        if self.has_image(spec.image):
            return
        note(log, f"pulling image {spec.image}")
        try:
            self._client.images.pull(spec.image)
        except (errors.DockerException, OSError) as error:
            raise ContainerFailed(
                f"Wrong image: {spec.image} is neither on this Docker engine nor can it be pulled: {_text(error)}"
            ) from error

    def _options(
        self, spec: ContainerSpec, model_dir: Path, channels: Mapping[str, Path], log: Path
    ) -> dict[str, Any]:
        environment = for_container(self._environment, spec) | offline(spec)
        mounts = {str(model_dir.resolve()): {"bind": f"{BASE_DIR}/model", "mode": "ro"}}
        for channel, folder in channels.items():
            mounts[str(folder.resolve())] = {"bind": f"{BASE_DIR}/{CHANNELS_FOLDER}/{channel}", "mode": "ro"}
        return {
            "command": ["serve"],
            "environment": environment,
            "ports": {_PORT: ("127.0.0.1", None)},
            "volumes": mounts,
            "shm_size": _SHM_SIZE,
            "labels": {LABEL: spec.name},
            "device_requests": self._gpus(spec, log),
            "detach": True,
        }

    def _gpus(self, spec: ContainerSpec, log: Path) -> list[Any]:
        if not spec.num_accelerators:
            return []
        if "nvidia" not in self._client.info().get("Runtimes", {}):
            note(
                log,
                f"{spec.num_accelerators} GPUs asked for; this engine has no nvidia runtime, so the container gets none",
            )
            return []
        return [_sdk().types.DeviceRequest(count=spec.num_accelerators, capabilities=[["gpu"]])]


class DockerContainer:
    """A container that has been started. Two threads follow it: one its output, one its end."""

    def __init__(self, container: Any, log: LogFile) -> None:
        self._container = container
        self._log = log
        self._ending: str | None = None
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        ports = container.attrs["NetworkSettings"]["Ports"].get(_PORT) or [{"HostPort": "0"}]
        self._port = int(ports[0]["HostPort"])
        self._removed = False
        threading.Thread(target=self._follow, daemon=True, name=f"docker-{container.short_id}").start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_dir(self) -> str:
        return BASE_DIR

    @property
    def ending(self) -> str | None:
        return self._ending

    async def stop(self, *, grace_s: float = 30.0) -> None:
        if self._removed:
            return
        await asyncio.to_thread(self._stop, grace_s)
        self._removed = True
        try:
            await asyncio.wait_for(self._ended.wait(), _KILL_LIMIT_S)
        except TimeoutError as error:
            raise ContainerFailed(f"Docker container {self._container.short_id} does not end") from error

    def _stop(self, grace_s: float) -> None:
        errors = _sdk().errors
        try:
            if self._ending is None:
                self._container.stop(timeout=max(1, round(grace_s)))
            self._container.remove(force=True, v=True)
        except errors.NotFound:
            return
        except (errors.DockerException, OSError) as error:
            raise ContainerFailed(f"{self._container.short_id} cannot be removed: {_text(error)}") from error

    def _follow(self) -> None:
        errors = _sdk().errors
        code: object = "unknown"
        try:
            for content in self._container.logs(stream=True, follow=True, stdout=True, stderr=True):
                self._log.append(content)
            code = self._container.wait().get("StatusCode", "unknown")
        except (errors.DockerException, OSError) as error:
            self._log.append(f"docker: {_text(error)}\n".encode())
        self._log.close()
        self._ending = f"exited with status {code}"
        try:
            self._loop.call_soon_threadsafe(self._ended.set)
        except RuntimeError:  # the loop has ended before the container
            return


class ChoosingBackend:
    """`auto`: Docker for the images that its engine holds, processes for every other image."""

    def __init__(self, docker: DockerBackend, process: Backend) -> None:
        self._docker = docker
        self._process = process

    async def start(
        self, spec: ContainerSpec, *, model_dir: Path, channels: Mapping[str, Path], log: Path
    ) -> Container:
        held = await asyncio.to_thread(self._docker.has_image, spec.image)
        backend: Backend = self._docker if held else self._process
        return await backend.start(spec, model_dir=model_dir, channels=channels, log=log)


def _sdk() -> Any:
    """The package `docker`. Raises `NoDocker`."""
    try:
        import docker  # type: ignore[import-untyped]
    except ImportError as error:
        raise NoDocker("the docker back end needs the package `docker`: pip install docker") from error
    return docker


def _text(error: Exception) -> str:
    explanation = getattr(error, "explanation", None) or str(error)
    return " ".join(str(explanation).split())[:400]
