"""`TextGenModel`: arguments in, requests out; everything is checked before anything is created."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sagemaker_sdk_ext import ConfigurationError, DeploymentFailed, Misfit, build_requests
from sagemaker_sdk_ext.rollout import apply_scaling, take_down
from tests.unit.sagemaker_sdk_ext.deployments import (
    DEPLOYMENTS,
    FakeClient,
    PlainSession,
    deployment,
    model,
)

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


def test_a_failed_endpoint_tells_its_reason() -> None:
    client = FakeClient(status="Failed")
    failed = model(PlainSession(client), "boto3")
    with pytest.raises(DeploymentFailed, match="no ping") as caught:
        failed.deploy(1, "ml.g6.xlarge")
    assert caught.value.reason == "no ping" and "/aws/sagemaker/Endpoints/" in str(caught.value)
    failed.delete_endpoint()
    assert [name for name, _ in client.sent][-3:] == [
        "delete_endpoint",
        "delete_endpoint_config",
        "delete_model",
    ]


def test_a_refused_call_takes_back_what_was_created() -> None:
    client = FakeClient(failing="create_endpoint")
    with pytest.raises(PermissionError):
        model(PlainSession(client), "boto3").deploy(1, "ml.g6.xlarge", endpoint_name="e")
    assert client.sent[-2:] == [
        ("delete_endpoint_config", {"EndpointConfigName": "e"}),
        ("delete_model", {"ModelName": "m"}),
    ]


def test_what_cannot_fit_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    client = FakeClient()
    big = model(PlainSession(client), "boto3", env=None, model_id=str(tmp_path))
    with pytest.raises(Misfit, match="ml.g6e.12xlarge is the cheapest that fits"):
        big.deploy(1, "ml.g5.12xlarge")
    assert client.sent == []
    big.deploy(1, "ml.g5.12xlarge", allow_misfit=True)
    big.deploy(1, "ml.g5.48xlarge", inference_component_name="c")
    request = dict(client.created)["create_inference_component"]
    assert request["Specification"]["ComputeResourceRequirements"]["NumberOfAcceleratorDevicesRequired"] == 8
    assert request["Specification"]["StartupParameters"]["ContainerStartupHealthCheckTimeoutInSeconds"] > 900


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env": None}, "which model"),
        ({"model_data": "s3://b/m.tar.gz", "model_id": "a/b"}, "two models"),
        ({"enable_network_isolation": True}, "cuts the container off"),
        ({"entry_point": "inference.py"}, "code/inference.py"),
        ({"quantize": "awq"}, "unquantized"),
        ({"lora_adapters": ["a"]}, "LoRA"),
    ],
)
def test_arguments_are_checked_at_once(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        model(None, "boto3", **changes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"instance_type": None}, "instance_type is missing"),
        ({"autoscaling": {"max_copies": 2}, "wait": False}, "needs wait=True"),
        ({"autoscaling": {"copies": 2}}, "unknown keys copies"),
        ({"autoscaling": {}}, "needs max_copies"),
        ({"endpoint_type": "SERVERLESS"}, "endpoint_type = 'SERVERLESS'"),
        ({"tags": [{"key": "a"}]}, "tags"),
        ({"async_inference_config": {"OutputConfig": {}}}, "no output path"),
        ({"async_inference_config": "bucket"}, "s3:// URI"),
        ({"resources": {"gpus": 1}, "inference_component_name": "c"}, "unknown keys gpus"),
        ({"instance_type": "local"}, "SDK 2's local mode"),
    ],
)
def test_deploy_checks_before_it_creates(arguments: dict[str, Any], words: str) -> None:
    client = FakeClient()
    with pytest.raises(ConfigurationError, match=words):
        model(PlainSession(client), "boto3").deploy(1, **{"instance_type": "ml.g6.xlarge", **arguments})
    assert client.sent == []


def test_objects_of_the_sdks_are_understood_by_their_shape() -> None:
    class Requirements:
        copy_count = 2

        def get_compute_resource_requirements(self) -> dict[str, Any]:
            return {"NumberOfAcceleratorDevicesRequired": 1, "MinMemoryRequiredInMb": 512}

    class Async:
        def _to_request_dict(self) -> dict[str, Any]:
            return {"OutputConfig": {"S3OutputPath": "s3://b/o"}}

    client = FakeClient()
    session = PlainSession(client)
    kind = types.SimpleNamespace(name="INFERENCE_COMPONENT_BASED")
    model(session, "boto3").deploy(1, "ml.g6.xlarge", endpoint_type=kind, resources=Requirements())
    assert dict(client.created)["create_inference_component"]["RuntimeConfig"] == {"CopyCount": 2}
    strategy = types.SimpleNamespace(name="RANDOM")
    (endpoint, _), options = model(session, "boto3").deploy(
        1, "ml.g6.xlarge", async_inference_config=Async(), routing_config={"RoutingStrategy": strategy}
    )
    assert endpoint.startswith("m-") and options == {}
    config = client.created[-2][1]
    assert config["AsyncInferenceConfig"]["OutputConfig"]["S3OutputPath"] == "s3://b/o"
    assert config["ProductionVariants"][0]["RoutingConfig"] == {"RoutingStrategy": "RANDOM"}
    environment = client.created[-3][1]["PrimaryContainer"]["Environment"]
    assert environment["UNARY_DEADLINE_S"] == "0"


def test_the_alarm_acts_on_the_step_policy() -> None:
    client = FakeClient()
    backend = types.SimpleNamespace(service=lambda name: client)
    apply_scaling(backend, build_requests(deployment(**DEPLOYMENTS["component"])).scaling)  # type: ignore[arg-type]
    assert [name for name, _ in client.sent] == [
        "register_scalable_target",
        "put_scaling_policy",
        "put_scaling_policy",
        "put_metric_alarm",
    ]
    assert client.sent[-1][1]["AlarmActions"] == ["arn:policy"]


def test_what_was_deployed_is_deleted_in_the_reverse_order() -> None:
    class Deleting(FakeClient):
        def describe_inference_component(self, **request: Any) -> dict[str, Any]:
            if "delete_inference_component" in [name for name, _ in self.sent]:
                raise ClientError({"Error": {"Code": "ValidationException"}}, "DescribeInferenceComponent")
            return {"InferenceComponentStatus": "InService"}

    client = Deleting()
    deployed = model(PlainSession(client), "boto3")
    deployed.deploy(1, "ml.g6.xlarge", endpoint_name="e", inference_component_name="c")
    deployed.delete_endpoint()
    deleted = [(name, request) for name, request in client.sent if name.startswith("delete_")]
    assert deleted == [
        ("delete_inference_component", {"InferenceComponentName": "c"}),
        ("delete_endpoint", {"EndpointName": "e"}),
        ("delete_endpoint_config", {"EndpointConfigName": "e"}),
        ("delete_model", {"ModelName": "m"}),
    ]
    deployed.delete_endpoint()
    assert len([name for name, _ in client.sent if name.startswith("delete_")]) == 4


def test_a_refused_component_leaves_no_endpoint_that_costs_money() -> None:
    client = FakeClient(failing="create_inference_component")
    deployed = model(PlainSession(client), "boto3")
    with pytest.raises(PermissionError):
        deployed.deploy(1, "ml.g6.xlarge", endpoint_name="e", inference_component_name="c")
    deleted = [name for name, _ in client.sent if name.startswith("delete_")]
    assert deleted == ["delete_endpoint", "delete_endpoint_config", "delete_model"]


def test_an_interrupted_deployment_can_be_deleted_and_touches_nothing_else() -> None:
    client = FakeClient(failing="describe_endpoint")
    deployed = model(PlainSession(client), "boto3")
    with pytest.raises(PermissionError):
        deployed.deploy(1, "ml.g6.xlarge", endpoint_name="e", inference_component_name="c")
    deployed.delete_endpoint()
    deleted = [name for name, _ in client.sent if name.startswith("delete_")]
    assert deleted == ["delete_endpoint", "delete_endpoint_config", "delete_model"]  # no component was made


def test_a_deletion_that_was_cut_short_can_be_finished() -> None:
    class HalfGone(FakeClient):
        def delete_endpoint(self, **request: Any) -> None:
            raise ClientError(
                {"Error": {"Code": "ValidationException", "Message": message}}, "DeleteEndpoint"
            )

    client = HalfGone()
    deployed = model(PlainSession(client), "boto3")
    deployed.deploy(1, "ml.g6.xlarge", endpoint_name="e")
    message = "Cannot update in-progress endpoint"
    with pytest.raises(ClientError, match="in-progress"):
        deployed.delete_endpoint()
    message = 'Could not find endpoint "e".'
    deployed.delete_endpoint()
    assert [name for name, _ in client.sent[-2:]] == ["delete_endpoint_config", "delete_model"]


def test_scaling_is_taken_back_too() -> None:
    client = FakeClient()
    backend: Any = types.SimpleNamespace(service=lambda name: client, delete=lambda *_: None)
    requests = build_requests(deployment(**DEPLOYMENTS["async"]))
    take_down(backend, requests, poll_s=0.0)
    assert client.sent == [
        (
            "deregister_scalable_target",
            {
                "ServiceNamespace": "sagemaker",
                "ResourceId": "endpoint/e/variant/AllTraffic",
                "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
            },
        ),
        ("delete_alarms", {"AlarmNames": ["e-from-zero"]}),
    ]
