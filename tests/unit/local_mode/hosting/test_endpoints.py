"""Endpoints from Creating to removed, with real processes that play containers."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from local_mode.contracts import ServiceError
from tests.unit.local_mode.hosting.world import MemoryResources, World, ask, descendants, run, until, variant


def test_an_endpoint_comes_into_service_and_answers(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model(Environment={"GIVEN": "1"})
        world.config()
        world.create()
        record = await world.settled()
        assert record["EndpointStatus"] == "InService"
        (shown,) = record["ProductionVariants"]
        assert (shown["CurrentInstanceCount"], shown["DesiredInstanceCount"]) == (1, 1)
        assert shown["DeployedImages"][0]["SpecifiedImage"] == "image-of-m"
        answer = await world.invoke()
        assert answer["pings"]["User-Agent"] == "AHC/2.0"
        assert answer["pings"]["Host"] == "model.aws.local:8080"

    world = run(tmp_path, story)
    assert "fake container starts" in world.logs()
    assert "image=image-of-m" in world.logs()


def test_a_container_gets_its_own_environment_and_nothing_of_the_user(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model(Environment={"GIVEN": "1"})
        world.config()
        world.create()
        await world.settled()
        environment = (await world.invoke())["environment"]
        assert environment["GIVEN"] == "1"
        assert environment["AWS_REGION"] == "us-east-1"
        assert "SECRET_OF_THE_USER" not in environment
        assert set(environment) <= {
            "PATH", "HOME", "TMPDIR", "HOSTNAME", "PYTHONUNBUFFERED", "PYTHONPATH", "GIVEN", "AWS_REGION", "DEVICE",
            "AWS_DEFAULT_REGION", "SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_BASE_DIR", "LC_CTYPE",
        }  # fmt: skip
        assert environment["HOME"].startswith(str(world.state))

    run(tmp_path, story)


def test_network_isolation_is_asked_for_and_its_limits_are_said(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model()
        world.config("c", variant(), EnableNetworkIsolation=True)
        world.create()
        await world.settled()
        environment = (await world.invoke())["environment"]
        assert environment["HF_HUB_OFFLINE"] == "1"
        assert "AWS_SECRET_ACCESS_KEY" not in environment

    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    assert "EnableNetworkIsolation cannot be enforced" in run(tmp_path, story, environment=keys).logs()


@pytest.mark.parametrize(
    ("behaviour", "limit_s", "said"),
    [
        ("dies", 60, 'It exited with status 3: the model has "no" weights'),
        ("unready", 4, 'Within 4 s /ping last answered: 503 {"stage": "loading shard 1/2"}'),
    ],
)
def test_a_bad_container_fails_the_endpoint_and_says_why(
    tmp_path: Path, behaviour: str, limit_s: float, said: str
) -> None:
    async def story(world: World) -> None:
        world.model(behaviour=behaviour)
        world.config("c", variant(ContainerStartupHealthCheckTimeoutInSeconds=limit_s))
        world.create()
        record = await world.settled()
        assert record["EndpointStatus"] == "Failed"
        assert record["FailureReason"].startswith(
            "The primary container for production variant AllTraffic did not pass the ping health check. "
            "Please check CloudWatch logs for this endpoint."
        )
        assert said in record["FailureReason"]
        assert [line for line in descendants() if "fake_container" in line] == []
        assert world.left_on_disk() == []
        with pytest.raises(ServiceError, match="Endpoint e of account 123456789012 not found"):
            world.routing.target("e")

    run(tmp_path, story)


def test_one_bad_variant_takes_the_good_ones_down(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model()
        world.model("bad", "dies")
        world.config("c", variant("good"), variant("bad", "bad"))
        world.create()
        assert "production variant bad" in (await world.settled())["FailureReason"]
        assert [line for line in descendants() if "fake_container" in line] == []

    run(tmp_path, story)


def test_everything_that_descends_from_a_container_ends_with_it(tmp_path: Path) -> None:
    pids: list[int] = []

    async def story(world: World) -> None:
        world.model(behaviour="family")
        world.config()
        world.create()
        await world.settled()
        pids.extend((await world.invoke())["pids"])
        world.hosting.endpoint_deleted("e")
        await world.gone("endpoint", "e")

    run(tmp_path, story)
    assert len(pids) == 2
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_a_container_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model(behaviour="stubborn")
        world.config()
        world.create()
        await world.settled()
        world.hosting.endpoint_deleted("e")
        await world.gone("endpoint", "e")

    run(tmp_path, story)


def test_deleting_while_it_is_being_created_ends_the_creation(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model(behaviour="unready")
        world.config()
        world.create()
        await until(lambda: "fake container starts" in world.logs())
        world.hosting.endpoint_deleted("e")
        await world.gone("endpoint", "e")

    run(tmp_path, story)


def test_a_container_that_dies_is_replaced_and_meanwhile_invocations_are_refused(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model(behaviour="family")
        world.config()
        world.create()
        await world.settled()
        first = world.routing.target("e")
        leader = (await ask(first))["pids"][0]
        os.kill(leader, signal.SIGKILL)
        await until(lambda: world.endpoint()["ProductionVariants"][0]["CurrentInstanceCount"] == 0)
        with pytest.raises(ServiceError) as refused:
            world.routing.target("e")
        assert (refused.value.code, refused.value.status) == ("ServiceUnavailable", 503)
        await until(lambda: world.endpoint()["ProductionVariants"][0]["CurrentInstanceCount"] == 1)
        assert world.endpoint()["EndpointStatus"] == "InService"
        assert (await world.invoke())["pids"][0] != leader

    assert "this instance is replaced" in run(tmp_path, story).logs()


def test_an_update_moves_to_the_new_containers_and_a_failed_one_stays(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model()
        world.model("better", Environment={"WHO": "better"})
        world.model("bad", "dies")
        world.config()
        world.config("c-better", variant(model="better", InitialInstanceCount=2))
        world.config("c-bad", variant(model="bad"))
        world.create()
        await world.settled()
        world.resources.change("endpoint", "e", EndpointStatus="Updating")
        world.hosting.endpoint_updated("e", config_name="c-better")
        record = await world.settled()
        assert (record["EndpointStatus"], record["EndpointConfigName"]) == ("InService", "c-better")
        assert record["ProductionVariants"][0]["CurrentInstanceCount"] == 2
        assert (await world.invoke())["environment"]["WHO"] == "better"
        world.resources.change("endpoint", "e", EndpointStatus="Updating")
        world.hosting.endpoint_updated("e", config_name="c-bad")
        record = await world.settled()
        assert (record["EndpointStatus"], record["EndpointConfigName"]) == ("InService", "c-better")
        assert "exited with status 3" in record["FailureReason"]
        assert (await world.invoke())["environment"]["WHO"] == "better"

    run(tmp_path, story)


def test_copies_are_capped_and_describe_shows_how_many_there_are(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model()
        world.config("c", variant(InitialInstanceCount=5))
        world.create()
        (shown,) = (await world.settled())["ProductionVariants"]
        assert (shown["CurrentInstanceCount"], shown["DesiredInstanceCount"]) == (2, 5)
        urls = {world.routing.target("e").base_url for _ in range(20)}
        assert len(urls) == 2
        shown |= {"DesiredInstanceCount": 1, "DesiredWeight": 3.0}
        world.resources.change("endpoint", "e", ProductionVariants=[shown], EndpointStatus="Updating")
        world.hosting.endpoint_rescaled("e")
        (shown,) = (await world.settled())["ProductionVariants"]
        assert (shown["CurrentInstanceCount"], shown["CurrentWeight"]) == (1, 3.0)

    assert "this machine runs 2" in run(tmp_path, story).logs()


def test_a_restart_brings_back_what_was_in_service_though_its_model_was_deleted(tmp_path: Path) -> None:
    resources = MemoryResources()

    async def before(world: World) -> None:
        world.model()
        world.config()
        world.create()
        await world.settled()
        world.resources.remove("model", "m")
        world.resources.remove("endpoint-config", "c")

    async def after(world: World) -> None:
        assert world.endpoint()["EndpointStatus"] == "SystemUpdating"
        with pytest.raises(ServiceError, match="being brought back"):
            world.routing.target("e")
        assert (await world.settled())["EndpointStatus"] == "InService"
        await world.invoke()

    run(tmp_path, before, resources=resources)
    assert resources.get("endpoint", "e")["EndpointStatus"] == "InService"
    run(tmp_path, after, resources=resources)


def test_an_update_that_a_restart_broke_off_is_begun_again(tmp_path: Path) -> None:
    resources = MemoryResources()

    async def before(world: World) -> None:
        world.model()
        world.model("slow", "unready")
        world.config()
        world.config("c-slow", variant(model="slow"))
        world.create()
        await world.settled()
        pending = {"EndpointConfigName": "c-slow"}
        world.resources.change("endpoint", "e", EndpointStatus="Updating", PendingDeploymentSummary=pending)
        world.hosting.endpoint_updated("e", config_name="c-slow")
        await until(lambda: world.logs().count("fake container starts") == 2)

    async def after(world: World) -> None:
        await until(lambda: world.endpoint()["EndpointConfigName"] == "c-slow")
        assert world.endpoint()["EndpointStatus"] == "InService"
        assert "PendingDeploymentSummary" not in world.endpoint()
        await world.invoke()

    run(tmp_path, before, resources=resources)
    assert resources.get("endpoint", "e")["EndpointConfigName"] == "c"
    container = {"Image": "i", "Environment": {"BEHAVIOUR": "good"}}
    resources.change("model", "slow", PrimaryContainer=container)
    run(tmp_path, after, resources=resources)


def test_ending_the_emulator_ends_a_creation_and_leaves_it_creating(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model(behaviour="unready")
        world.config()
        world.create()
        await until(lambda: "fake container starts" in world.logs())

    assert run(tmp_path, story).endpoint()["EndpointStatus"] == "Creating"


def test_two_endpoints_come_up_side_by_side(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model()
        world.config()
        world.create("one")
        world.create("two")
        await asyncio.gather(world.settled("one"), world.settled("two"))
        assert world.routing.target("one").base_url != world.routing.target("two").base_url

    run(tmp_path, story)
