"""Inference components and adapters: where they may be placed, and in which order they go."""

from __future__ import annotations

import pytest

from local_mode.contracts import Record
from tests.unit.local_mode.control.conftest import IMAGE, Caller, Refused

ARN = "arn:aws:sagemaker:us-east-1:123456789012"
COMPUTE = {"MinMemoryRequiredInMb": 1024}
ADAPTER = {"BaseInferenceComponentName": "ic", "Container": {"ArtifactUrl": "s3://b/adapter.tar.gz"}}


@pytest.fixture
def placed(caller: Caller) -> Caller:
    """An endpoint in service that takes components, and a model."""
    caller.model()
    caller.config(model=None)
    caller.endpoint()
    return caller


def test_a_component_is_described_at_once(placed: Caller) -> None:
    specification = {
        "Container": {"Image": IMAGE, "Environment": {"A": "b"}},
        "ComputeResourceRequirements": COMPUTE,
    }
    reply = placed.component(status="Creating", Specification=specification, RuntimeConfig={"CopyCount": 2})
    assert reply == {"InferenceComponentArn": f"{ARN}:inference-component/ic"}
    shown = placed("DescribeInferenceComponent", InferenceComponentName="ic")
    assert shown["InferenceComponentStatus"] == "Creating"
    assert shown["RuntimeConfig"] == {"DesiredCopyCount": 2, "CurrentCopyCount": 0}
    assert shown["EndpointArn"] == f"{ARN}:endpoint/e"
    container = shown["Specification"]["Container"]
    assert container["DeployedImage"]["SpecifiedImage"] == IMAGE
    assert container["Environment"] == {"A": "b"}
    assert placed.hosting.calls[-1] == ("component_created", "ic")


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"EndpointName": "other"}, f'Could not find endpoint "{ARN}:endpoint/other".'),
        ({"VariantName": "other"}, "VariantName must be one of the endpoint's: AllTraffic"),
        ({"VariantName": None}, "VariantName must be one of"),
        ({"RuntimeConfig": None}, "RuntimeConfig.CopyCount must be given"),
        ({"Specification": None}, "Specification must be given"),
        ({"Specification": {"ModelName": "m"}}, "ComputeResourceRequirements must be given"),
        (
            {"Specification": {"ModelName": "gone", "ComputeResourceRequirements": COMPUTE}},
            "Could not find model",
        ),
        ({"Specification": {"ComputeResourceRequirements": COMPUTE}}, "either ModelName or Container"),
        (
            {"Specification": {"Container": {}, "ComputeResourceRequirements": COMPUTE}},
            "Container.Image must be given",
        ),
        ({"Specification": ADAPTER}, "Could not find inference component"),
        ({"Specifications": [{"ModelName": "m"}]}, "Specifications is not emulated"),
    ],
)
def test_what_cannot_be_placed(placed: Caller, members: Record, told: str) -> None:
    with pytest.raises(Refused) as caught:
        placed.component(**members)
    assert caught.value.code == "ValidationException"
    assert told in caught.value.message
    assert placed.resources.all("inference-component") == []


def test_an_endpoint_with_models_takes_none(caller: Caller) -> None:
    caller.model()
    caller.config()
    caller.endpoint()
    with pytest.raises(Refused, match="takes no inference components"):
        caller.component()


def test_an_endpoint_must_be_in_service_first(caller: Caller) -> None:
    caller.model()
    caller.config(model=None)
    caller.endpoint(status="Creating")
    with pytest.raises(Refused, match="is Creating, not InService"):
        caller.component()


def test_an_adapter_is_on_its_base(placed: Caller) -> None:
    placed.component()
    placed.component("ad", Specification=ADAPTER, RuntimeConfig=None, VariantName=None)
    shown = placed("DescribeInferenceComponent", InferenceComponentName="ad")
    assert shown["VariantName"] == "AllTraffic"
    assert shown["Specification"] == ADAPTER
    assert "RuntimeConfig" not in shown
    for wrong, told in (
        ({"Specification": ADAPTER | {"ComputeResourceRequirements": COMPUTE}}, "An adapter's Specification"),
        ({"Specification": ADAPTER | {"BaseInferenceComponentName": "ad"}}, "is an adapter itself"),
        ({"Specification": ADAPTER, "RuntimeConfig": {"CopyCount": 1}}, "An adapter has no RuntimeConfig"),
    ):
        with pytest.raises(Refused, match=told):
            placed.component("other", **({"RuntimeConfig": None} | wrong))
    with pytest.raises(Refused, match="An adapter has no RuntimeConfig"):
        placed(
            "UpdateInferenceComponentRuntimeConfig",
            InferenceComponentName="ad",
            DesiredRuntimeConfig={"CopyCount": 1},
        )
    with pytest.raises(Refused, match="while it has adapters: delete ad first"):
        placed("DeleteInferenceComponent", InferenceComponentName="ic")


def test_a_base_is_found_in_any_spelling_and_not_deleted_below_its_adapter(placed: Caller) -> None:
    placed.component()
    other_spelling = ADAPTER | {"BaseInferenceComponentName": "IC"}
    placed.component("ad", Specification=other_spelling, RuntimeConfig=None, VariantName=None)
    shown = placed("DescribeInferenceComponent", InferenceComponentName="ad")
    assert shown["Specification"]["BaseInferenceComponentName"] == "ic"
    with pytest.raises(Refused, match="while it has adapters: delete ad first"):
        placed("DeleteInferenceComponent", InferenceComponentName="ic")


def test_copies_and_specification_are_updated(placed: Caller) -> None:
    placed.component()
    placed(
        "UpdateInferenceComponentRuntimeConfig",
        InferenceComponentName="ic",
        DesiredRuntimeConfig={"CopyCount": 0},
    )
    shown = placed("DescribeInferenceComponent", InferenceComponentName="ic")
    assert shown["InferenceComponentStatus"] == "Updating"
    assert shown["RuntimeConfig"] == {"DesiredCopyCount": 0, "CurrentCopyCount": 0}
    assert placed.hosting.calls[-1] == ("component_updated", "ic")
    with pytest.raises(Refused, match="Cannot update in-progress inference component"):
        placed("DeleteInferenceComponent", InferenceComponentName="ic")
    placed.resources.change("inference-component", "ic", InferenceComponentStatus="InService")
    with pytest.raises(Refused, match="nothing to update"):
        placed("UpdateInferenceComponent", InferenceComponentName="ic")
    specification = {"Container": {"Image": IMAGE}, "ComputeResourceRequirements": COMPUTE}
    placed("UpdateInferenceComponent", InferenceComponentName="ic", Specification=specification)
    shown = placed("DescribeInferenceComponent", InferenceComponentName="ic")
    assert "ModelName" not in shown["Specification"]


def test_an_endpoint_goes_after_its_components(placed: Caller) -> None:
    placed.component()
    with pytest.raises(Refused, match="while it has inference components: delete ic first"):
        placed("DeleteEndpoint", EndpointName="e")
    placed("DeleteInferenceComponent", InferenceComponentName="ic")
    assert placed.hosting.calls[-1] == ("component_deleted", "ic")
    placed.resources.remove("inference-component", "ic")
    placed("DeleteEndpoint", EndpointName="e")
