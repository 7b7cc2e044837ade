"""The requests of a deployment: valid for the service model, and refused where SageMaker would refuse them."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.validate import ParamValidator

from sagemaker_sdk_ext import Autoscaling, ComponentResources, ConfigurationError, build_requests
from tests.unit.sagemaker_sdk_ext.deployments import (
    DEPLOYMENTS,
    ROLE,
    boto_session,
    deployment,
)


@pytest.mark.parametrize("changes", DEPLOYMENTS.values(), ids=list(DEPLOYMENTS))
def test_requests_are_valid_for_the_service_model(changes: dict[str, Any]) -> None:
    requests = build_requests(deployment(**changes))
    calls = [
        ("sagemaker", "create_model", requests.model),
        ("sagemaker", "create_endpoint_config", requests.endpoint_config),
        ("sagemaker", "create_endpoint", requests.endpoint),
        *requests.scaling,
    ]
    if requests.component is not None:
        calls.append(("sagemaker", "create_inference_component", requests.component))
    for service, method, request in calls:
        client = boto_session().client(service)
        shape = client.meta.service_model.operation_model(
            client.meta.method_to_api_mapping[method]
        ).input_shape
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), f"{method}: {report.generate_report()}"


def test_a_gpu_variant_has_limits_and_the_host_image_for_cuda_13() -> None:
    (variant,) = build_requests(deployment(model_data="s3://b/p", startup_timeout_s=700)).endpoint_config[
        "ProductionVariants"
    ]
    assert variant["InferenceAmiVersion"] == "al2023-ami-sagemaker-inference-gpu-4-1"
    assert variant["ContainerStartupHealthCheckTimeoutInSeconds"] == 700
    assert variant["ModelDataDownloadTimeoutInSeconds"] == 1800
    (on_cpu,) = build_requests(deployment(instance_type="ml.m6i.xlarge")).endpoint_config[
        "ProductionVariants"
    ]
    assert "InferenceAmiVersion" not in on_cpu and "ModelDataDownloadTimeoutInSeconds" not in on_cpu


def test_a_prefix_is_an_uncompressed_source() -> None:
    container = build_requests(deployment(model_data="s3://b/some/prefix")).model["PrimaryContainer"]
    assert container["ModelDataSource"] == {
        "S3DataSource": {"S3Uri": "s3://b/some/prefix/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    }
    archive = build_requests(deployment(model_data="s3://b/m.tar.gz")).model["PrimaryContainer"]
    assert archive["ModelDataUrl"] == "s3://b/m.tar.gz"


def test_a_component_endpoint_has_no_model_of_its_own_and_goes_to_zero() -> None:
    requests = build_requests(deployment(**DEPLOYMENTS["component"]))
    (variant,) = requests.endpoint_config["ProductionVariants"]
    assert "ModelName" not in variant
    assert variant["ManagedInstanceScaling"] == {
        "Status": "ENABLED",
        "MinInstanceCount": 0,
        "MaxInstanceCount": 3,
    }
    assert requests.endpoint_config["ExecutionRoleArn"] == ROLE
    assert requests.component is not None
    assert requests.component["Specification"]["StartupParameters"] == {
        "ContainerStartupHealthCheckTimeoutInSeconds": 900
    }
    target, tracking, step, alarm = (request for _, _, request in requests.scaling)
    assert target["MinCapacity"] == 0 and target["ResourceId"] == "inference-component/c"
    metric = tracking["TargetTrackingScalingPolicyConfiguration"]["PredefinedMetricSpecification"]
    assert metric["PredefinedMetricType"].endswith("ConcurrentRequestsPerCopyHighResolution")
    assert step["PolicyType"] == "StepScaling" and alarm["MetricName"] == "NoCapacityInvocationFailures"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"instance_type": "ml.inf2.xlarge"}, "Inferentia2"),
        ({"instance_type": "ml.p3.2xlarge"}, "V100"),
        ({"instance_type": "g5.xlarge"}, "no instance type"),
        ({"endpoint_name": "under_score"}, "letters, digits"),
        ({"model_name": "x" * 64}, "at most 63"),
        ({"startup_timeout_s": 30}, "60 to 3600"),
        ({"volume_size_gb": 100}, "local NVMe"),
        ({"initial_instance_count": 0}, "at least 1"),
        ({"routing": {"RoutingStrategy": "BEST"}}, "LEAST_OUTSTANDING_REQUESTS"),
        ({"model_data": "/folder"}, "s3:// URI"),
        ({"model_data": {"S3DataSource": {"S3Uri": "s3://b/p", "S3DataType": "S3Prefix"}}}, "end with /"),
        ({"model_data": {}}, "S3DataSource"),
        ({"scale_to_zero": True}, "INFERENCE_COMPONENT_BASED"),
        ({"component_name": "c", "scale_to_zero": True}, "needs autoscaling"),
        ({"autoscaling": Autoscaling(max_copies=1, min_copies=2)}, "min_copies = 2"),
        ({"autoscaling": Autoscaling(max_copies=1, target_concurrency=0)}, "above 0"),
        ({"component_name": "c", "asynchronous": {"OutputConfig": {}}}, "no inference components"),
        ({"resources": ComponentResources(copies=3)}, "for inference components"),
        ({"component_name": "c", "resources": ComponentResources(memory_mb=1)}, "128 MB"),
    ],
)
def test_what_sagemaker_would_refuse_is_refused_here(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        build_requests(deployment(**changes))
