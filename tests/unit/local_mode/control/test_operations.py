"""What operations do to resources, what they ask of hosting, and what they refuse by rule."""

from __future__ import annotations

import pytest

from local_mode.contracts import Record
from tests.unit.local_mode.control.conftest import IMAGE, Caller, Refused

ARN = "arn:aws:sagemaker:us-east-1:123456789012"


def refusal(caller: Caller, operation: str, **members: object) -> str:
    before = list(caller.hosting.calls)
    with pytest.raises(Refused) as caught:
        caller(operation, **members)
    assert (caught.value.status, caught.value.code) == (400, "ValidationException")
    assert caller.hosting.calls == before
    return caught.value.message


def test_a_model_is_shown_as_it_was_made(caller: Caller) -> None:
    assert caller.model("My-Model", VpcConfig={"SecurityGroupIds": ["sg-1"], "Subnets": ["s-1"]}) == {
        "ModelArn": f"{ARN}:model/my-model"
    }
    shown = caller("DescribeModel", ModelName="My-Model")
    assert isinstance(shown.pop("CreationTime"), float)
    assert shown == {
        "ModelName": "My-Model",
        "ModelArn": f"{ARN}:model/my-model",
        "PrimaryContainer": {"Image": IMAGE, "Environment": {"HF_MODEL_ID": "demo"}},
        "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["s-1"]},
        "EnableNetworkIsolation": False,
    }
    assert caller("DeleteModel", ModelName="My-Model") == {}
    assert (
        refusal(caller, "DescribeModel", ModelName="my-model")
        == f'Could not find model "{ARN}:model/my-model".'
    )


@pytest.mark.parametrize(
    ("container", "told"),
    [
        ({"Mode": "MultiModel"}, "PrimaryContainer.Mode is not emulated"),
        (
            {"MultiModelConfig": {"ModelCacheSetting": "Enabled"}},
            "PrimaryContainer.MultiModelConfig is not emulated",
        ),
        ({"ModelPackageName": "p"}, "PrimaryContainer.ModelPackageName is not emulated"),
        ({"ModelDataUrl": "https://s3.amazonaws.com/b/m"}, "write it as s3://bucket/key"),
        (
            {"ModelDataUrl": "s3://b/m.tar.gz", "ModelDataSource": {}},
            "PrimaryContainer has both ModelDataUrl and ModelDataSource",
        ),
        (
            {
                "ModelDataSource": {
                    "S3DataSource": {
                        "S3Uri": "s3://b/m/",
                        "S3DataType": "S3Prefix",
                        "CompressionType": "None",
                        "ManifestS3Uri": "s3://b/manifest",
                    }
                }
            },
            "ModelDataSource.S3DataSource.ManifestS3Uri is not emulated",
        ),
    ],
)
def test_what_a_container_cannot_be_is_named(caller: Caller, container: Record, told: str) -> None:
    assert told in refusal(
        caller, "CreateModel", ModelName="m", PrimaryContainer={"Image": IMAGE} | container
    )


def test_containers_need_direct_mode_and_names(caller: Caller) -> None:
    two = [{"Image": IMAGE, "ContainerHostname": "a"}, {"Image": IMAGE, "ContainerHostname": "b"}]
    assert "Serial" in refusal(caller, "CreateModel", ModelName="m", Containers=two)
    assert "either" in refusal(caller, "CreateModel", ModelName="m", Containers=two, PrimaryContainer=two[0])
    assert "either" in refusal(caller, "CreateModel", ModelName="m")
    direct = {"Mode": "Direct"}
    same = [two[0], two[0]]
    assert "own ContainerHostname" in refusal(
        caller, "CreateModel", ModelName="m", Containers=same, InferenceExecutionConfig=direct
    )
    caller("CreateModel", ModelName="m", Containers=two, InferenceExecutionConfig=direct)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"ShadowProductionVariants": [{"VariantName": "s"}]}, "ShadowProductionVariants is not emulated"),
        (
            {
                "DataCaptureConfig": {
                    "EnableCapture": True,
                    "InitialSamplingPercentage": 1,
                    "DestinationS3Uri": "s3://b",
                    "CaptureOptions": [{"CaptureMode": "Input"}],
                }
            },
            "DataCaptureConfig.EnableCapture is not emulated",
        ),
        (
            {
                "ProductionVariants": [
                    {
                        "VariantName": "v",
                        "ModelName": "m",
                        "ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1},
                    }
                ]
            },
            "ProductionVariants.v.ServerlessConfig is not emulated",
        ),
        (
            {"ProductionVariants": [{"VariantName": "v", "ModelName": "m"}]},
            "ProductionVariants.v must have InstanceType and InitialInstanceCount",
        ),
        (
            {
                "ProductionVariants": [
                    {
                        "VariantName": "v",
                        "InstanceType": "ml.g5.xlarge",
                        "InitialInstanceCount": 1,
                        "ModelName": "gone",
                    }
                ]
            },
            f'Could not find model "{ARN}:model/gone".',
        ),
        (
            {
                "ProductionVariants": [
                    {"VariantName": "v", "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1}
                    | ({"ModelName": "m"} if with_model else {})
                    for with_model in (True, False)
                ]
            },
            "same VariantName twice",
        ),
    ],
)
def test_what_a_configuration_cannot_be_is_named(caller: Caller, members: Record, told: str) -> None:
    caller.model()
    with pytest.raises(Refused) as caught:
        caller.config(**members)
    assert told in caught.value.message


def test_a_configuration_shows_what_means_nothing_here(caller: Caller) -> None:
    caller.model()
    assert caller.config("C", KmsKeyId="key") == {"EndpointConfigArn": f"{ARN}:endpoint-config/c"}
    shown = caller("DescribeEndpointConfig", EndpointConfigName="c")
    assert shown["KmsKeyId"] == "key"
    assert shown["ProductionVariants"] == [
        {
            "VariantName": "AllTraffic",
            "ModelName": "m",
            "InstanceType": "ml.g5.xlarge",
            "InitialInstanceCount": 1,
            "InitialVariantWeight": 1.0,
        }
    ]


def test_components_need_a_role(caller: Caller) -> None:
    with pytest.raises(Refused, match="ExecutionRoleArn must be given"):
        caller.config(model=None, ExecutionRoleArn=None)


def test_an_endpoint_can_be_described_at_once(caller: Caller) -> None:
    caller.model()
    caller.config()
    reply = caller("CreateEndpoint", EndpointName="E-1", EndpointConfigName="c")
    assert reply == {"EndpointArn": f"{ARN}:endpoint/e-1"}
    shown = caller("DescribeEndpoint", EndpointName="E-1")
    assert (shown["EndpointName"], shown["EndpointStatus"], shown["EndpointConfigName"]) == (
        "E-1",
        "Creating",
        "c",
    )
    (variant,) = shown["ProductionVariants"]
    assert variant["DeployedImages"][0]["SpecifiedImage"] == IMAGE
    assert (variant["CurrentInstanceCount"], variant["DesiredInstanceCount"]) == (0, 1)
    assert caller.hosting.calls == [("endpoint_created", "E-1")]
    taken = refusal(caller, "CreateEndpoint", EndpointName="e-1", EndpointConfigName="c")
    assert taken == f'Cannot create already existing endpoint "{ARN}:endpoint/e-1".'


def test_an_endpoint_needs_its_configuration_and_models(caller: Caller) -> None:
    message = refusal(caller, "CreateEndpoint", EndpointName="e", EndpointConfigName="c")
    assert message == f'Could not find endpoint configuration "{ARN}:endpoint-config/c".'
    caller.model()
    caller.config()
    caller("DeleteModel", ModelName="m")
    message = refusal(caller, "CreateEndpoint", EndpointName="e", EndpointConfigName="c")
    assert message == f'Could not find model "{ARN}:model/m".'


@pytest.mark.parametrize("status", ["Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"])
def test_an_endpoint_in_progress_is_left_alone(caller: Caller, status: str) -> None:
    caller.model()
    caller.config()
    caller.endpoint(status=status)
    changes = [{"VariantName": "AllTraffic", "DesiredWeight": 2}]
    for operation, members in (
        ("DeleteEndpoint", {}),
        ("UpdateEndpoint", {"EndpointConfigName": "c"}),
        ("UpdateEndpointWeightsAndCapacities", {"DesiredWeightsAndCapacities": changes}),
    ):
        message = refusal(caller, operation, EndpointName="e", **members)
        assert message.startswith(f'Cannot update in-progress endpoint "{ARN}:endpoint/e".')


def test_an_update_stands_as_pending(caller: Caller) -> None:
    caller.model()
    caller.config()
    caller.config("c2")
    caller.endpoint()
    assert caller("UpdateEndpoint", EndpointName="E", EndpointConfigName="C2") == {
        "EndpointArn": f"{ARN}:endpoint/e"
    }
    shown = caller("DescribeEndpoint", EndpointName="e")
    assert (shown["EndpointStatus"], shown["EndpointConfigName"]) == ("Updating", "c")
    assert shown["PendingDeploymentSummary"]["EndpointConfigName"] == "c2"
    assert caller.hosting.calls[-1] == ("endpoint_updated", "e", "c2")


def test_an_endpoint_shows_what_its_deployed_configuration_says(caller: Caller) -> None:
    caller.model()
    caller.config(AsyncInferenceConfig={"OutputConfig": {"S3OutputPath": "s3://bucket/out"}})
    caller.endpoint()
    shown = caller("DescribeEndpoint", EndpointName="e")
    assert shown["AsyncInferenceConfig"] == {"OutputConfig": {"S3OutputPath": "s3://bucket/out"}}
    caller.resources.change(
        "endpoint", "e", _Deployed={"config": {"MetricsConfig": {"EnableEnhancedMetrics": True}}}
    )
    shown = caller("DescribeEndpoint", EndpointName="e")
    assert shown["MetricsConfig"] == {"EnableEnhancedMetrics": True}
    assert not {"AsyncInferenceConfig", "_Deployed"} & set(shown)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"RetainAllVariantProperties": True}, "RetainAllVariantProperties is not emulated"),
        ({"RetainDeploymentConfig": True}, "RetainDeploymentConfig is not emulated"),
        (
            {"DeploymentConfig": {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "a"}]}}},
            "DeploymentConfig.AutoRollbackConfiguration is not emulated",
        ),
        (
            {
                "DeploymentConfig": {
                    "BlueGreenUpdatePolicy": {
                        "TrafficRoutingConfiguration": {"Type": "CANARY", "WaitIntervalInSeconds": 1}
                    }
                }
            },
            "Type CANARY is not emulated",
        ),
    ],
)
def test_what_an_update_cannot_do_is_named(caller: Caller, members: Record, told: str) -> None:
    caller.model()
    caller.config()
    caller.endpoint()
    assert told in refusal(caller, "UpdateEndpoint", EndpointName="e", EndpointConfigName="c", **members)


def test_weights_and_capacities(caller: Caller) -> None:
    caller.model()
    caller.config()
    caller.endpoint()
    changes = [{"VariantName": "AllTraffic", "DesiredWeight": 0.25, "DesiredInstanceCount": 3}]
    caller("UpdateEndpointWeightsAndCapacities", EndpointName="e", DesiredWeightsAndCapacities=changes)
    shown = caller("DescribeEndpoint", EndpointName="e")
    (variant,) = shown["ProductionVariants"]
    assert (shown["EndpointStatus"], variant["CurrentWeight"], variant["DesiredWeight"]) == (
        "Updating",
        1.0,
        0.25,
    )
    assert variant["DesiredInstanceCount"] == 3
    assert caller.hosting.calls[-1] == ("endpoint_rescaled", "e")
    caller.resources.change("endpoint", "e", EndpointStatus="InService")
    changes[0]["VariantName"] = "other"
    told = refusal(
        caller, "UpdateEndpointWeightsAndCapacities", EndpointName="e", DesiredWeightsAndCapacities=changes
    )
    assert 'has no variant "other": AllTraffic' in told


def test_a_failed_endpoint_can_only_be_deleted(caller: Caller) -> None:
    caller.model()
    caller.config()
    caller.endpoint(status="Failed")
    assert "since it is Failed" in refusal(caller, "UpdateEndpoint", EndpointName="e", EndpointConfigName="c")
    assert caller("DeleteEndpoint", EndpointName="e") == {}
    assert caller("DescribeEndpoint", EndpointName="e")["EndpointStatus"] == "Deleting"
    assert caller.hosting.calls[-1] == ("endpoint_deleted", "e")


def test_tags_from_creation_to_deletion(caller: Caller) -> None:
    arn = caller.model(Tags=[{"Key": "ключ", "Value": "a b"}])["ModelArn"]
    added = caller("AddTags", ResourceArn=arn, Tags=[{"Key": "k", "Value": ""}])
    assert added == {"Tags": [{"Key": "ключ", "Value": "a b"}, {"Key": "k", "Value": ""}]}
    assert caller("DeleteTags", ResourceArn=arn, TagKeys=["ключ"]) == {}
    assert caller("ListTags", ResourceArn=arn) == {"Tags": [{"Key": "k", "Value": ""}]}
    assert "Tags" not in caller("DescribeModel", ModelName="m")
    assert "Could not find" in refusal(caller, "ListTags", ResourceArn=f"{ARN}:model/other")
    assert "Could not find" in refusal(caller, "ListTags", ResourceArn=arn.replace("us-east-1", "eu-west-1"))
    assert "names no kind" in refusal(caller, "ListTags", ResourceArn=f"{ARN}:training-job/t")
    twice = [{"Key": "k", "Value": "1"}, {"Key": "k", "Value": "2"}]
    assert "Duplicate tag keys" in refusal(caller, "AddTags", ResourceArn=arn, Tags=twice)
