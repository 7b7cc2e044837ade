"""Which container an invocation goes to, and AWS's errors when there is none."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from local_mode.contracts import ServiceError
from tests.unit.local_mode.hosting.world import World, ask, run, until, variant


def refusal(world: World, endpoint: str = "e", **choice: str) -> str:
    with pytest.raises(ServiceError) as refused:
        world.routing.target(endpoint, **choice)
    assert refused.value.code == "ValidationError"
    return refused.value.message


def test_variants_get_their_shares_and_can_be_named(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model()
        world.config(
            "c",
            variant("a", InitialVariantWeight=3.0),
            variant("b"),
            variant("zero", InitialVariantWeight=0.0),
        )
        world.create()
        await world.settled()
        counts = collections.Counter(world.routing.target("e").variant for _ in range(400))
        assert counts["zero"] == 0
        assert 260 < counts["a"] < 340
        target = world.routing.target("E", variant="zero")
        assert (target.variant, target.hostname, target.adapter) == ("zero", "primary", None)
        assert target.log_stream_arn.startswith(
            "arn:aws:logs:us-east-1:123456789012:log-group:/aws/sagemaker/Endpoints/e:log-stream:zero/i-"
        )
        stream = target.log_stream_arn.rpartition("log-stream:")[2]
        assert (world.built.logs / f"aws/sagemaker/Endpoints/e/{stream}.log").is_file()
        assert "Variant none not found" in refusal(world, variant="none")
        assert refusal(world, "nowhere") == "Endpoint nowhere of account 123456789012 not found."
        assert "TargetContainerHostname is for endpoints with several" in refusal(world, hostname="x")

    run(tmp_path, story)


def test_least_outstanding_goes_to_the_idle_copy_and_sessions_stay(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model()
        strategy = {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"}
        world.config("c", variant(InitialInstanceCount=2, RoutingConfig=strategy))
        world.create()
        await world.settled()
        first = world.routing.target("e")
        second = world.routing.target("e")
        assert first.base_url != second.base_url
        world.routing.finished(first)
        assert world.routing.target("e").base_url == first.base_url
        world.routing.opened_session("s", second)
        assert {world.routing.target("e", session_id="s").base_url for _ in range(9)} == {second.base_url}
        world.routing.closed_session("s")
        assert {world.routing.target("e", session_id="s").base_url for _ in range(99)} > {second.base_url}

    run(tmp_path, story)


def test_direct_mode_needs_the_name_of_a_container(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        containers = [
            {"Image": f"image-{name}", "ContainerHostname": name, "Environment": {"WHO": name}}
            for name in ("a", "b")
        ]
        model = {"ModelName": "m", "Containers": containers, "InferenceExecutionConfig": {"Mode": "Direct"}}
        world.resources.add("model", "m", model)
        world.config()
        world.create()
        record = await world.settled()
        assert record["EndpointStatus"] == "InService"
        assert "TargetContainerHostname is required" in refusal(world)
        assert "Container c is not found on this endpoint: a, b." in refusal(world, hostname="c")
        for name in ("a", "b"):
            target = world.routing.target("e", hostname=name)
            assert target.log_stream_arn.endswith(f"/{name}")
            assert (await ask(target))["environment"]["WHO"] == name

    run(tmp_path, story)


def test_containers_in_sequence_are_refused_by_name(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.resources.add("model", "m", {"Containers": [{"Image": "a"}, {"Image": "b"}]})
        world.config()
        world.create()
        assert "Serial" in (await world.settled())["FailureReason"]

    run(tmp_path, story)


def test_an_unhealthy_container_is_replaced(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.model()
        world.config()
        world.create()
        await world.settled()
        target = world.routing.target("e")
        await ask(target, "/become-unhealthy")
        await until(lambda: world.endpoint()["ProductionVariants"][0]["CurrentInstanceCount"] == 0)
        await until(lambda: world.endpoint()["ProductionVariants"][0]["CurrentInstanceCount"] == 1)
        assert world.routing.target("e").base_url != target.base_url

    assert "/ping answered: 503" in run(tmp_path, story).logs()
