"""Inference components and adapters on them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from local_mode.contracts import Record, ServiceError
from tests.unit.local_mode.hosting.world import MemoryResources, World, run, variant

SPECIFICATION: Record = {
    "Container": {"DeployedImage": {"SpecifiedImage": "image"}, "Environment": {"WHO": "first"}}
}


async def empty_endpoint(world: World) -> None:
    world.config("c", variant(model=None))
    world.create()
    assert (await world.settled())["EndpointStatus"] == "InService"


def refusal(world: World, component: str | None) -> str:
    with pytest.raises(ServiceError) as refused:
        world.routing.target("e", component=component)
    assert refused.value.code == "ValidationError"
    return refused.value.message


def test_a_component_is_placed_rescaled_updated_and_removed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await empty_endpoint(world)
        world.component("Ic", SPECIFICATION)
        record = await world.component_settled("Ic")
        assert record["RuntimeConfig"] == {"DesiredCopyCount": 1, "CurrentCopyCount": 1}
        assert (await world.invoke(component="ic"))["environment"]["WHO"] == "first"
        assert "Inference Component Name header is required" in refusal(world, None)
        assert "not found" in refusal(world, "other")
        for copies in (2, 0):
            runtime = record["RuntimeConfig"] | {"DesiredCopyCount": copies}
            world.resources.change(
                "inference-component", "Ic", RuntimeConfig=runtime, InferenceComponentStatus="Updating"
            )
            world.hosting.component_updated("Ic")
            record = await world.component_settled("Ic")
            assert record["RuntimeConfig"]["CurrentCopyCount"] == copies
        assert "has no capacity to process this request" in refusal(world, "Ic")
        changed = {"Container": SPECIFICATION["Container"] | {"Environment": {"WHO": "second"}}}
        world.resources.change(
            "inference-component",
            "Ic",
            Specification=changed,
            RuntimeConfig=runtime | {"DesiredCopyCount": 1},
            InferenceComponentStatus="Updating",
        )
        world.hosting.component_updated("Ic")
        await world.component_settled("Ic")
        assert (await world.invoke(component="Ic"))["environment"]["WHO"] == "second"
        world.hosting.component_deleted("Ic")
        await world.gone("inference-component", "Ic")
        assert world.left_on_disk() == []

    run(tmp_path, story)


def test_a_component_that_cannot_start_fails_and_one_that_cannot_change_stays(tmp_path: Path) -> None:
    bad = {"Container": {"Image": "image", "Environment": {"BEHAVIOUR": "dies"}}}

    async def story(world: World) -> None:
        await empty_endpoint(world)
        world.component("bad", bad)
        record = await world.component_settled("bad")
        assert record["InferenceComponentStatus"] == "Failed"
        assert "container for inference component bad did not pass" in record["FailureReason"]
        assert "not in service" in refusal(world, "bad")
        world.component("good", SPECIFICATION)
        await world.component_settled("good")
        world.resources.change(
            "inference-component", "good", Specification=bad, InferenceComponentStatus="Updating"
        )
        world.hosting.component_updated("good")
        record = await world.component_settled("good")
        assert record["InferenceComponentStatus"] == "InService"
        assert "exited with status 3" in record["FailureReason"]
        assert (await world.invoke(component="good"))["environment"]["WHO"] == "first"

    run(tmp_path, story)


def adapter_of(tmp_path: Path) -> Record:
    archive = tmp_path / "adapter.tar.gz"
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"w")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(weights, weights.name)
    return {"BaseInferenceComponentName": "base", "Container": {"ArtifactUrl": f"file://{archive}"}}


def test_an_adapter_is_loaded_into_its_base_and_into_what_replaces_it(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await empty_endpoint(world)
        world.component("base", SPECIFICATION)
        world.component("lora", adapter_of(tmp_path))
        assert (await world.component_settled("lora"))["InferenceComponentStatus"] == "InService"
        target = world.routing.target("e", component="lora")
        assert target.adapter == "lora"
        loaded = {"lora": "adapter_model.safetensors"}
        answer = await world.invoke(component="lora")
        assert answer["adapters"] == loaded
        world.resources.change(
            "inference-component",
            "base",
            Specification={"Container": SPECIFICATION["Container"] | {"Environment": {}}},
            InferenceComponentStatus="Updating",
        )
        world.hosting.component_updated("base")
        await world.component_settled("base")
        assert world.routing.target("e", component="lora").base_url != target.base_url
        assert (await world.invoke(component="lora"))["adapters"] == loaded
        world.hosting.component_deleted("lora")
        await world.gone("inference-component", "lora")
        assert (await world.invoke(component="base"))["adapters"] == {}

    run(tmp_path / "state", story)


def test_a_container_without_adapters_fails_the_adapter_in_its_own_words(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await empty_endpoint(world)
        world.component("lora", adapter_of(tmp_path))
        assert (
            "the base of lora, is not in service" in (await world.component_settled("lora"))["FailureReason"]
        )
        world.component("base", {"Container": {"Image": "i", "Environment": {"BEHAVIOUR": "no adapters"}}})
        await world.component_settled("base")
        world.component("lora", adapter_of(tmp_path))
        reason = (await world.component_settled("lora"))["FailureReason"]
        assert "this server takes no adapters" in reason
        assert world.resources.get("inference-component", "lora")["InferenceComponentStatus"] == "Failed"

    run(tmp_path / "state", story)


def test_a_restart_brings_components_and_adapters_back(tmp_path: Path) -> None:
    resources = MemoryResources()

    async def before(world: World) -> None:
        world.model()
        await empty_endpoint(world)
        world.component("base", {"ModelName": "m"})
        await world.component_settled("base")
        world.component("lora", adapter_of(tmp_path))
        assert (await world.component_settled("lora"))["InferenceComponentStatus"] == "InService"
        world.resources.remove("model", "m")

    async def after(world: World) -> None:
        assert (await world.component_settled("lora"))["InferenceComponentStatus"] == "InService"
        await world.settled()
        assert (await world.invoke(component="lora"))["adapters"] == {"lora": "adapter_model.safetensors"}

    run(tmp_path / "state", before, resources=resources)
    run(tmp_path / "state", after, resources=resources)
