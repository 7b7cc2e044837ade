"""The docker back end against a stand-in of the engine's API, through the real SDK. It has met no real engine here."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from local_mode.contracts import ContainerFailed, ContainerSpec
from local_mode.hosting import Built, NoDocker, build
from local_mode.hosting.docker_backend import LABEL, DockerBackend
from local_mode.hosting.jobs import all_ended
from tests.unit.local_mode.hosting.docker_engine import Engine
from tests.unit.local_mode.hosting.world import ACCOUNT, FAKE, QUICK, MemoryResources, ask, until

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/textgen:1"


@contextmanager
def engine(**options: Any) -> Iterator[Engine]:
    """A unix socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="eng") as folder:
        running = Engine(Path(folder) / "s", **options)
        try:
            yield running
        finally:
            running.close()


def built(
    tmp_path: Path,
    resources: MemoryResources,
    host: str,
    backend: Literal["auto", "docker"] = "docker",
) -> Built:
    return build(
        resources,
        state_dir=tmp_path,
        region="us-east-1",
        account=ACCOUNT,
        environment={"PATH": "/usr/bin:/bin", "DOCKER_HOST": host, "AWS_ACCESS_KEY_ID": "k"},
        backend=backend,
        command=FAKE,
        clocks=QUICK,
    )


def play(
    tmp_path: Path,
    host: str,
    story: Callable[[Built, MemoryResources], Awaitable[None]],
    *,
    backend: Literal["auto", "docker"] = "docker",
    instance_type: str = "ml.g5.12xlarge",
    image: str = IMAGE,
    behaviour: str = "good",
) -> str:
    """One endpoint's life; returns all logs."""
    resources = MemoryResources()
    definition = {"Image": image, "Environment": {"BEHAVIOUR": behaviour, "GIVEN": "1"}}
    resources.add("model", "m", {"PrimaryContainer": definition})
    variants = [{"VariantName": "v", "ModelName": "m", "InstanceType": instance_type}]
    resources.add("endpoint-config", "c", {"EndpointConfigName": "c", "ProductionVariants": variants})
    endpoint = {"EndpointName": "e", "EndpointConfigName": "c", "EndpointStatus": "Creating"}
    resources.add("endpoint", "e", endpoint)

    async def life() -> None:
        roles = built(tmp_path, resources, host, backend)
        await roles.hosting.start()
        try:
            await until(lambda: resources.get("endpoint", "e")["EndpointStatus"] in ("InService", "Failed"))
            await story(roles, resources)
        finally:
            await roles.hosting.stop()

    asyncio.run(life())
    return "".join(path.read_text() for path in tmp_path.rglob("*.log"))


async def answers(roles: Built, resources: MemoryResources) -> None:
    record = resources.get("endpoint", "e")
    if record["EndpointStatus"] != "InService":
        raise AssertionError(record)
    answer = await ask(roles.routing.target("e"))
    assert answer["environment"]["GIVEN"] == "1"


def test_the_image_is_run_as_the_platform_runs_it_and_removed(tmp_path: Path) -> None:
    with engine(images={IMAGE}, gpus=True) as docker:
        logs = play(tmp_path, docker.url, answers)
        (container,) = docker.created
        assert docker.containers == {}
    config, host = container.config, container.config["HostConfig"]
    assert (config["Image"], config["Cmd"]) == (IMAGE, ["serve"])
    assert {"GIVEN=1", "AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=k"} <= set(config["Env"])
    assert not [entry for entry in config["Env"] if entry.startswith("PATH=")]
    assert host["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    assert [bind.rpartition(":/opt")[2] for bind in host["Binds"]] == ["/ml/model:ro"]
    assert host["ShmSize"] == 64 * 1024 * 1024
    assert host["DeviceRequests"][0]["Count"] == 4
    assert LABEL in config["Labels"]
    assert container.stop_limit_s == 1
    assert "fake container starts" in logs


def test_without_the_nvidia_runtime_no_gpus_are_asked_for(tmp_path: Path) -> None:
    with engine(images={IMAGE}) as docker:
        logs = play(tmp_path, docker.url, answers)
        assert docker.created[0].config["HostConfig"].get("DeviceRequests") in (None, [])
    assert "4 GPUs asked for; this engine has no nvidia runtime" in logs


def test_an_image_that_is_not_there_is_pulled(tmp_path: Path) -> None:
    with engine(images=set(), pullable={IMAGE}) as docker:
        assert f"pulling image {IMAGE}" in play(tmp_path, docker.url, answers)


def test_a_wrong_image_fails_the_endpoint_by_name(tmp_path: Path) -> None:
    async def story(roles: Built, resources: MemoryResources) -> None:
        record = resources.get("endpoint", "e")
        assert record["EndpointStatus"] == "Failed"
        assert record["FailureReason"].startswith(f"Wrong image: {IMAGE} is neither on this Docker engine")
        assert "repository does not exist" in record["FailureReason"]

    with engine(images=set()) as docker:
        play(tmp_path, docker.url, story)
        assert docker.created == []


def test_a_container_that_dies_is_told_with_its_last_words_and_removed(tmp_path: Path) -> None:
    async def story(roles: Built, resources: MemoryResources) -> None:
        reason = resources.get("endpoint", "e")["FailureReason"]
        assert 'It exited with status 3: the model has "no" weights' in reason

    with engine(images={IMAGE}) as docker:
        play(tmp_path, docker.url, story, behaviour="dies", instance_type="ml.m5.large")
        assert docker.containers == {}


@pytest.mark.parametrize(("image", "in_docker"), [(IMAGE, 1), ("elsewhere/any:1", 0)])
def test_auto_takes_docker_for_the_images_that_it_holds(tmp_path: Path, image: str, in_docker: int) -> None:
    with engine(images={IMAGE}) as docker:
        play(tmp_path, docker.url, answers, backend="auto", image=image)
        assert len(docker.created) == in_docker


def test_without_an_engine_docker_is_refused_and_auto_takes_processes(tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/none"
    with pytest.raises(NoDocker, match="no Docker engine answers at unix://"):
        built(tmp_path, MemoryResources(), nowhere)
    play(tmp_path, nowhere, answers, backend="auto")


class LosingEngine:
    """A client, its images, containers and the one container, whose engine goes away at the start."""

    def __init__(self) -> None:
        self.images = self.containers = self
        self.calls: list[str] = []

    def get(self, image: str) -> None: ...

    def info(self) -> dict[str, Any]:
        return {}

    def create(self, image: str, **options: Any) -> LosingEngine:
        return self

    def start(self) -> None:
        raise ConnectionError("the engine has gone")

    def remove(self, **options: Any) -> None:
        self.calls.append("remove")


def test_a_container_whose_start_is_lost_with_the_connection_is_removed(tmp_path: Path) -> None:
    client = LosingEngine()
    spec = ContainerSpec(name="x", image=IMAGE, environment={})
    with pytest.raises(ContainerFailed, match="cannot be started: the engine has gone"):
        asyncio.run(
            DockerBackend(client, environment={}).start(
                spec, model_dir=tmp_path, channels={}, log=tmp_path / "log"
            )
        )
    assert client.calls == ["remove"]


def test_all_steps_end_before_the_first_failure_is_told() -> None:
    ended: list[int] = []

    async def step(number: int) -> None:
        await asyncio.sleep(0)
        if number == 0:
            raise ContainerFailed("the first")
        await asyncio.sleep(0)
        ended.append(number)

    with pytest.raises(ContainerFailed, match="the first"):
        asyncio.run(all_ended(*(step(number) for number in range(3))))
    assert ended == [1, 2]
