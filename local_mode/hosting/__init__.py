"""Containers of the emulator: run, fed with model data, watched, found for invocations. `build` is the way in."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from local_mode.contracts import Backend, Resources
from local_mode.hosting.components import Components
from local_mode.hosting.docker_backend import ChoosingBackend, DockerBackend, NoDocker, connect
from local_mode.hosting.endpoints import Endpoints
from local_mode.hosting.fleet import Platform
from local_mode.hosting.instance import Clocks
from local_mode.hosting.lifecycle import Lifecycle
from local_mode.hosting.model_data import ModelFolders
from local_mode.hosting.object_storage import Storage
from local_mode.hosting.placement import Placement
from local_mode.hosting.process_backend import CREDENTIALS, SERVE_COMMAND, ProcessBackend
from local_mode.hosting.routing import Router
from local_mode.hosting.s3 import S3
from local_mode.removal import remove_tree

__all__ = ["DEFAULT_MAX_COPIES", "Built", "Clocks", "NoDocker", "build"]

DEFAULT_MAX_COPIES = 2

_HOST_NAMES = (
    "PATH", "LANG", "LC_ALL", "TZ", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
_S3_NAMES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


@dataclass(frozen=True, slots=True)
class Built:
    """The three roles that hosting plays, and what can be seen of it."""

    hosting: Lifecycle
    routing: Router
    storage: Storage
    placement: Placement
    logs: Path
    """Holds `aws/sagemaker/Endpoints/<endpoint>/<variant>/<instance>.log`."""


def build(
    resources: Resources,
    *,
    state_dir: Path,
    region: str,
    account: str,
    environment: Mapping[str, str],
    backend: Literal["auto", "process", "docker"] = "auto",
    command: Sequence[str] = SERVE_COMMAND,
    clocks: Clocks | None = None,
    max_copies: int = DEFAULT_MAX_COPIES,
    chance: random.Random | None = None,
) -> Built:
    """Everything on `resources`; nothing starts before `hosting.start()`, on the running loop.

    `environment` is the emulator's own, of which containers get PATH, language, proxies, credentials and S3's address.
    `command` is what the process back end runs for every image. Raises `NoDocker` when `backend` is docker and none answers.
    """
    s3 = S3(
        region=region,
        endpoint_url=next(filter(None, map(environment.get, _S3_NAMES)), None),
        credentials=_credentials(environment),
    )
    containers, model_data = state_dir / "containers", state_dir / "model-data"

    def clear() -> None:
        for folder in (containers, model_data):
            if folder.exists():
                remove_tree(folder)

    client = httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
    chosen, docker = _backends(
        backend, environment=environment, region=region, containers=containers, command=command
    )

    async def close() -> None:
        await client.aclose()
        s3.close()
        if docker is not None:
            docker.close()

    platform = Platform(
        backend=chosen,
        folders=ModelFolders(model_data, s3),
        client=client,
        clocks=clocks or Clocks(),
        logs=state_dir / "logs",
    )
    placement = Placement()
    lifecycle = Lifecycle(
        resources,
        placement,
        Endpoints(resources, placement, platform, max_copies=max_copies),
        Components(resources, placement, platform, max_copies=max_copies),
        platform=platform,
        clear=clear,
        close=close,
    )
    router = Router(resources, placement, region=region, account=account, chance=chance or random.Random())
    return Built(lifecycle, router, Storage(s3), placement, platform.logs)


def _backends(
    name: Literal["auto", "process", "docker"],
    *,
    environment: Mapping[str, str],
    region: str,
    containers: Path,
    command: Sequence[str],
) -> tuple[Backend, DockerBackend | None]:
    """The back end to use, and Docker's if that is in it, to be closed."""
    given = {"AWS_REGION": region, "AWS_DEFAULT_REGION": region} | _of(
        environment, (*CREDENTIALS, *_S3_NAMES)
    )
    process = ProcessBackend(
        folder=containers, environment=_of(environment, _HOST_NAMES) | given, command=command
    )
    if name == "process":
        return process, None
    try:
        docker = DockerBackend(connect(environment.get("DOCKER_HOST")), environment=given)
    except NoDocker:
        if name == "docker":
            raise
        return process, None
    return docker if name == "docker" else ChoosingBackend(docker, process), docker


def _credentials(environment: Mapping[str, str]) -> tuple[str, str, str | None] | None:
    """None: boto3 looks where it always does (profiles, roles)."""
    key_id, secret, token = map(environment.get, CREDENTIALS)
    return (key_id, secret, token) if key_id and secret else None


def _of(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: environment[name] for name in names if environment.get(name)}
