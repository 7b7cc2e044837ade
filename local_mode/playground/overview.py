"""Endpoints as the page lists them, from the resources' records. Leaves out environments: they may hold keys."""

from __future__ import annotations

from typing import Any

from local_mode.contracts import Record, Resources


def overview(resources: Resources) -> list[dict[str, Any]]:
    """By name, each with its variants and the components on it."""
    components = resources.all("inference-component")
    return [
        {
            "name": endpoint["EndpointName"],
            "status": endpoint["EndpointStatus"],
            "reason": endpoint.get("FailureReason"),
            "config": endpoint["EndpointConfigName"],
            "created_s": endpoint["CreationTime"],
            "variants": [_variant(endpoint, variant) for variant in endpoint.get("ProductionVariants", ())],
            "components": [
                _component(component)
                for component in components
                if component["EndpointName"] == endpoint["EndpointName"]
            ],
        }
        for endpoint in resources.all("endpoint")
    ]


def _variant(endpoint: Record, variant: Record) -> dict[str, Any]:
    deployed = endpoint.get("_Deployed", {}).get("config", {})
    models = {each["VariantName"]: each.get("ModelName") for each in deployed.get("ProductionVariants", ())}
    return {
        "name": variant["VariantName"],
        "model": models.get(variant["VariantName"]),
        "images": [image["SpecifiedImage"] for image in variant.get("DeployedImages", ())],
        "instances": variant["CurrentInstanceCount"],
        "wanted": variant.get("DesiredInstanceCount", variant["CurrentInstanceCount"]),
        "weight": variant.get("CurrentWeight", 1.0),
    }


def _component(component: Record) -> dict[str, Any]:
    specification = component["Specification"]
    runtime = component.get("RuntimeConfig", {})
    return {
        "name": component["InferenceComponentName"],
        "status": component["InferenceComponentStatus"],
        "reason": component.get("FailureReason"),
        "variant": component["VariantName"],
        "model": specification.get("ModelName"),
        "adapter_of": specification.get("BaseInferenceComponentName"),
        "copies": runtime.get("CurrentCopyCount"),
        "wanted": runtime.get("DesiredCopyCount"),
    }
