"""One deployment as plain data, and the requests it becomes. Pure: every back end sends these same dictionaries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sagemaker_sdk_ext.autoscaling import Autoscaling, scaling_requests
from sagemaker_sdk_ext.errors import ConfigurationError
from sagemaker_sdk_ext.instances import gpu_family, has_local_storage, is_local, refuse_unusable

Request = dict[str, Any]

VARIANT = "AllTraffic"
GPU_AMI = "al2023-ami-sagemaker-inference-gpu-4-1"
"""The host image whose driver runs CUDA 13, which ours is built with."""
DEFAULT_STARTUP_S = 1200
DEFAULT_DOWNLOAD_S = 1800
_TIMEOUT_RANGE = (60, 3600)
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_STRATEGIES = ("RANDOM", "LEAST_OUTSTANDING_REQUESTS", "PREFIX_AWARE", "KV_AWARE")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentResources:
    """What one copy of an inference component takes. `memory_mb` is host memory."""

    num_accelerators: int | None = None
    num_cpus: float | None = None
    memory_mb: int = 1024
    copies: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Everything that decides the requests; times in seconds. With `component_name` the endpoint has no model of its own."""

    model_name: str
    endpoint_name: str
    image_uri: str
    environment: Mapping[str, str]
    role_arn: str
    instance_type: str
    initial_instance_count: int = 1
    model_data: str | Mapping[str, Any] | None = None
    additional_model_data_sources: Sequence[Mapping[str, Any]] = ()
    vpc_config: Mapping[str, Any] | None = None
    enable_network_isolation: bool = False
    image_config: Mapping[str, Any] | None = None
    tags: Sequence[Mapping[str, str]] = ()
    kms_key: str | None = None
    volume_size_gb: int | None = None
    download_timeout_s: int | None = None
    startup_timeout_s: int | None = None
    ami_version: str | None = None
    routing: Mapping[str, Any] | None = None
    managed_instance_scaling: Mapping[str, Any] | None = None
    asynchronous: Mapping[str, Any] | None = None
    data_capture: Mapping[str, Any] | None = None
    component_name: str | None = None
    resources: ComponentResources = field(default_factory=ComponentResources)
    autoscaling: Autoscaling | None = None
    scale_to_zero: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRequests:
    """In the order they are sent; `scaling` are (service, operation, request)."""

    model: Request
    endpoint_config: Request
    endpoint: Request
    component: Request | None = None
    scaling: tuple[tuple[str, str, Request], ...] = ()


def build_requests(deployment: Deployment) -> DeploymentRequests:
    """Raises `ConfigurationError` for what SageMaker would refuse, as far as that can be known here."""
    _check(deployment)
    tags = {"Tags": [dict(tag) for tag in deployment.tags]} if deployment.tags else {}
    return DeploymentRequests(
        model=_model(deployment) | tags,
        endpoint_config=_endpoint_config(deployment) | tags,
        endpoint={
            "EndpointName": deployment.endpoint_name,
            "EndpointConfigName": deployment.endpoint_name,
        }
        | tags,
        component=_component(deployment) | tags if deployment.component_name else None,
        scaling=scaling_requests(
            deployment.autoscaling,
            endpoint_name=deployment.endpoint_name,
            variant_name=VARIANT,
            component_name=deployment.component_name,
            asynchronous=deployment.asynchronous is not None,
            scale_to_zero=deployment.scale_to_zero,
        ),
    )


def container_definition(deployment: Deployment) -> Request:
    """CreateModel's PrimaryContainer."""
    container: Request = {"Image": deployment.image_uri}
    if deployment.environment or is_local(deployment.instance_type):  # SDK 2's local mode reads it unasked
        container["Environment"] = dict(deployment.environment)
    container |= _model_data(deployment.model_data)
    if deployment.additional_model_data_sources:
        container["AdditionalModelDataSources"] = [
            dict(source) for source in deployment.additional_model_data_sources
        ]
    if deployment.image_config:
        container["ImageConfig"] = dict(deployment.image_config)
    return container


def _model(deployment: Deployment) -> Request:
    request: Request = {
        "ModelName": deployment.model_name,
        "ExecutionRoleArn": deployment.role_arn,
        "PrimaryContainer": container_definition(deployment),
    }
    return request | _network(deployment)


def _network(deployment: Deployment) -> Request:
    network: Request = {}
    if deployment.vpc_config:
        network["VpcConfig"] = dict(deployment.vpc_config)
    if deployment.enable_network_isolation:
        network["EnableNetworkIsolation"] = True
    return network


def _model_data(model_data: str | Mapping[str, Any] | None) -> Request:
    """An archive is a URL; a prefix is an uncompressed source; a mapping is taken as ModelDataSource."""
    if model_data is None:
        return {}
    if isinstance(model_data, Mapping):
        return {"ModelDataSource": dict(model_data)}
    if model_data.endswith(".tar.gz") or not model_data.startswith("s3://"):
        return {"ModelDataUrl": model_data}
    source = {
        "S3Uri": model_data if model_data.endswith("/") else model_data + "/",
        "S3DataType": "S3Prefix",
        "CompressionType": "None",
    }
    return {"ModelDataSource": {"S3DataSource": source}}


def _endpoint_config(deployment: Deployment) -> Request:
    variant: Request = {
        "VariantName": VARIANT,
        "InstanceType": deployment.instance_type,
        "InitialInstanceCount": deployment.initial_instance_count,
        "InitialVariantWeight": 1.0,
    }
    if not deployment.component_name:
        variant |= {"ModelName": deployment.model_name, **_start_limits(deployment)}
    optional = {
        "VolumeSizeInGB": deployment.volume_size_gb,
        "RoutingConfig": dict(deployment.routing) if deployment.routing else None,
        "ManagedInstanceScaling": _instance_scaling(deployment),
        "InferenceAmiVersion": deployment.ami_version or _ami(deployment.instance_type),
    }
    variant |= {name: value for name, value in optional.items() if value is not None}
    config: Request = {"EndpointConfigName": deployment.endpoint_name, "ProductionVariants": [variant]}
    further = {
        "KmsKeyId": deployment.kms_key,
        "AsyncInferenceConfig": dict(deployment.asynchronous) if deployment.asynchronous else None,
        "DataCaptureConfig": dict(deployment.data_capture) if deployment.data_capture else None,
    }
    config |= {name: value for name, value in further.items() if value is not None}
    if deployment.component_name:
        config |= {"ExecutionRoleArn": deployment.role_arn, **_network(deployment)}
    return config


def _start_limits(deployment: Deployment) -> Request:
    if is_local(deployment.instance_type):
        return {}
    limits: Request = {
        "ContainerStartupHealthCheckTimeoutInSeconds": deployment.startup_timeout_s or DEFAULT_STARTUP_S
    }
    if deployment.model_data is not None or deployment.download_timeout_s is not None:
        limits["ModelDataDownloadTimeoutInSeconds"] = deployment.download_timeout_s or DEFAULT_DOWNLOAD_S
    return limits


def _instance_scaling(deployment: Deployment) -> Request | None:
    given = deployment.managed_instance_scaling
    if given is None and not (deployment.component_name and deployment.scale_to_zero):
        return None
    scaling = {
        "Status": "ENABLED",
        "MinInstanceCount": 0 if deployment.scale_to_zero else deployment.initial_instance_count,
        **(given or {}),
    }
    if "MaxInstanceCount" not in scaling:
        copies = deployment.autoscaling.max_copies if deployment.autoscaling else 1
        scaling["MaxInstanceCount"] = max(deployment.initial_instance_count, copies)
    return scaling


def _ami(instance_type: str) -> str | None:
    return GPU_AMI if gpu_family(instance_type) is not None else None


def _component(deployment: Deployment) -> Request:
    resources = deployment.resources
    compute = {
        "NumberOfAcceleratorDevicesRequired": _float(resources.num_accelerators),
        "NumberOfCpuCoresRequired": _float(resources.num_cpus),
        "MinMemoryRequiredInMb": resources.memory_mb,
    }
    return {
        "InferenceComponentName": deployment.component_name,
        "EndpointName": deployment.endpoint_name,
        "VariantName": VARIANT,
        "Specification": {
            "ModelName": deployment.model_name,
            "StartupParameters": _start_limits(deployment),
            "ComputeResourceRequirements": {k: v for k, v in compute.items() if v is not None},
        },
        "RuntimeConfig": {"CopyCount": resources.copies},
    }


def _float(value: float | None) -> float | None:
    """Numbers that the service model has as floats, so that every client sends the same."""
    return None if value is None else float(value)


def _check(deployment: Deployment) -> None:
    for what in ("model_name", "endpoint_name", "component_name"):
        name = getattr(deployment, what)
        if name is not None and (len(name) > 63 or not _NAME.fullmatch(name)):
            raise ConfigurationError(
                f"{what} = {name!r} must be letters, digits and inner hyphens, at most 63 of them"
            )
    for what in ("download_timeout_s", "startup_timeout_s"):
        value = getattr(deployment, what)
        if value is not None and not _TIMEOUT_RANGE[0] <= value <= _TIMEOUT_RANGE[1]:
            raise ConfigurationError(f"{what} = {value} must lie in 60 to 3600 seconds")
    refuse_unusable(deployment.instance_type)
    if deployment.initial_instance_count < 1:
        raise ConfigurationError(
            f"initial_instance_count = {deployment.initial_instance_count} must be at least 1"
        )
    if deployment.volume_size_gb is not None and has_local_storage(deployment.instance_type):
        raise ConfigurationError(
            f"volume_size = {deployment.volume_size_gb}: {deployment.instance_type} has local NVMe storage, and SageMaker "
            "refuses a volume size for it; leave it out"
        )
    strategy = (deployment.routing or {}).get("RoutingStrategy", "RANDOM")
    if strategy not in _STRATEGIES:
        raise ConfigurationError(f"RoutingStrategy = {strategy!r} must be one of {', '.join(_STRATEGIES)}")
    _check_model_data(deployment.model_data)
    _check_component(deployment)


def _check_model_data(model_data: str | Mapping[str, Any] | None) -> None:
    if isinstance(model_data, str) and not model_data.startswith(("s3://", "file://")):
        raise ConfigurationError(
            f"model_data = {model_data!r} must be an s3:// URI: a model.tar.gz, or a prefix with the files as they are"
        )
    source = model_data.get("S3DataSource", {}) if isinstance(model_data, Mapping) else {}
    if isinstance(model_data, Mapping) and not source.get("S3Uri"):
        raise ConfigurationError('model_data must look like {"S3DataSource": {"S3Uri": "s3://...", ...}}')
    if source.get("S3DataType") == "S3Prefix" and not str(source["S3Uri"]).endswith("/"):
        raise ConfigurationError(f"S3Uri = {source['S3Uri']!r} is a prefix and must end with /")


def _check_component(deployment: Deployment) -> None:
    if deployment.component_name is not None and deployment.asynchronous is not None:
        raise ConfigurationError(
            "asynchronous inference has no inference components; leave out one of the two"
        )
    if deployment.component_name is None and deployment.resources != ComponentResources():
        raise ConfigurationError(
            "resources are for inference components; give endpoint_type='INFERENCE_COMPONENT_BASED' with them"
        )
    if deployment.resources.memory_mb < 128 or deployment.resources.copies < 0:
        raise ConfigurationError(
            f"resources = {deployment.resources} need at least 128 MB of memory and no negative copies"
        )
