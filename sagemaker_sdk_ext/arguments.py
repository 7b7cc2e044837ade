"""Arguments of `deploy` in the many forms that users of either SDK give them, to plain data.

Knows the SDKs' objects by their shape only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sagemaker_sdk_ext.autoscaling import Autoscaling
from sagemaker_sdk_ext.deployment import ComponentResources
from sagemaker_sdk_ext.errors import ConfigurationError

Request = dict[str, Any]

_COMPONENT_BASED = ("INFERENCE_COMPONENT_BASED", "InferenceComponentBased")
_MODEL_BASED = ("MODEL_BASED", "ModelBased")


def is_component_based(endpoint_type: Any) -> bool:
    """`endpoint_type` is an enumeration member of an SDK, its name, or None."""
    name = getattr(endpoint_type, "name", endpoint_type)
    if name is None or name in _MODEL_BASED:
        return False
    if name in _COMPONENT_BASED:
        return True
    raise ConfigurationError(f"endpoint_type = {name!r} must be MODEL_BASED or INFERENCE_COMPONENT_BASED")


def plain_request(config: Any) -> Request | None:
    """A configuration object of SDK 2 as the request it becomes; a mapping as it is."""
    if config is None:
        return None
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "_to_request_dict"):
        return dict(config._to_request_dict())
    raise ConfigurationError(
        f"{config!r} must be a mapping as in CreateEndpointConfig, or an object of SDK 2"
    )


def async_request(config: Any) -> Request | None:
    """AsyncInferenceConfig from an s3:// URI for the outputs, a mapping, or an object of SDK 2."""
    if isinstance(config, str):
        if not config.startswith("s3://"):
            raise ConfigurationError(
                f"async_inference_config = {config!r} must be an s3:// URI for the outputs"
            )
        return {"OutputConfig": {"S3OutputPath": config}}
    request = plain_request(config)
    if request is not None and not request.get("OutputConfig", {}).get("S3OutputPath"):
        raise ConfigurationError(
            "async_inference_config has no output path; give one, such as async_inference_config='s3://bucket/prefix'"
        )
    return request


def routing_request(config: Any) -> Request | None:
    """RoutingConfig from a strategy's name or a mapping whose strategy may be an enumeration member."""
    if config is None:
        return None
    request = dict(config) if isinstance(config, Mapping) else {"RoutingStrategy": config}
    strategy = request.get("RoutingStrategy")
    return request | {"RoutingStrategy": getattr(strategy, "name", strategy)}


def tag_list(tags: Any) -> list[dict[str, str]]:
    """Tags as a mapping, or as SageMaker's list of Key and Value."""
    if isinstance(tags, Mapping):
        if set(tags) == {"Key", "Value"}:
            return [{"Key": str(tags["Key"]), "Value": str(tags["Value"])}]
        return [{"Key": str(key), "Value": str(value)} for key, value in tags.items()]
    found = [dict(tag) for tag in tags or ()]
    if any(set(tag) != {"Key", "Value"} for tag in found):
        raise ConfigurationError(
            f"tags = {tags!r} must be a mapping, or a list of {{'Key': ..., 'Value': ...}}"
        )
    return found


def component_resources(resources: Any) -> ComponentResources:
    """From ours, a mapping of its fields, or a ResourceRequirements of either SDK."""
    if resources is None:
        return ComponentResources()
    if isinstance(resources, ComponentResources):
        return resources
    if isinstance(resources, Mapping):
        _check_keys(ComponentResources, resources, "resources")
        return ComponentResources(**resources)
    if hasattr(resources, "get_compute_resource_requirements"):
        needed = resources.get_compute_resource_requirements()
        return ComponentResources(
            num_accelerators=needed.get("NumberOfAcceleratorDevicesRequired"),
            num_cpus=needed.get("NumberOfCpuCoresRequired"),
            memory_mb=needed.get("MinMemoryRequiredInMb", 1024),
            copies=resources.copy_count or 1,
        )
    raise ConfigurationError(
        f"resources = {resources!r} must be a mapping or a ResourceRequirements of the SDK"
    )


def autoscaling(given: Autoscaling | Mapping[str, Any] | None) -> Autoscaling | None:
    if given is None or isinstance(given, Autoscaling):
        return given
    _check_keys(Autoscaling, given, "autoscaling")
    if "max_copies" not in given:
        raise ConfigurationError(f"autoscaling = {dict(given)!r} needs max_copies")
    return Autoscaling(**given)


def _check_keys(cls: Any, values: Mapping[str, Any], argument: str) -> None:
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigurationError(
            f"{argument} has unknown keys {', '.join(unknown)}; known: {', '.join(known)}"
        )


def endpoint_settings(
    *,
    tags: Any,
    async_inference_config: Any,
    routing_config: Any,
    data_capture_config: Any,
    scaling: Autoscaling | Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Fields of `Deployment`. Raises `ConfigurationError` for forms that are none of theirs."""
    return {
        "tags": tag_list(tags),
        "asynchronous": async_request(async_inference_config),
        "routing": routing_request(routing_config),
        "data_capture": plain_request(data_capture_config),
        "autoscaling": autoscaling(scaling),
    }
