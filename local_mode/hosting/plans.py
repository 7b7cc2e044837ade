"""What shall run for a variant or an inference component, read from the resources' records. Starts nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from local_mode.contracts import ContainerFailed, ContainerSpec, Record
from local_mode.hosting.model_data import from_definition, from_source

PRIMARY = "primary"
DEFAULT_STARTUP_S = 300.0
DEFAULT_DOWNLOAD_S = 3600.0
MAX_CONTAINERS = 15

_GPU_FAMILIES = re.compile(r"ml\.(g\d|p\d)")
_GPUS_BY_SIZE = {
    "g4dn": {"12xlarge": 4, "metal": 8},
    "p3": {"8xlarge": 4, "16xlarge": 8},
    "p3dn": {"24xlarge": 8},
    "p4d": {"24xlarge": 8},
    "p4de": {"24xlarge": 8},
    "p5": {"48xlarge": 8},
    "p5e": {"48xlarge": 8},
    "p5en": {"48xlarge": 8},
    "p6-b200": {"48xlarge": 8},
}
_USUAL_GPUS = {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What each instance of a variant, or each copy of a component, runs."""

    label: str
    """As failure reasons name it: *production variant AllTraffic*."""
    variant: str
    log_group: str
    containers: tuple[ContainerSpec, ...]
    """Their `name` is without the number of the copy."""
    startup_limit_s: float
    download_limit_s: float
    strategy: str = "RANDOM"
    is_component: bool = False

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(container.image for container in self.containers)

    @property
    def takes_hostname(self) -> bool:
        """Whether a client must name the container."""
        return len(self.containers) > 1


def variant_plan(endpoint: str, variant: Record, model: Record, *, isolated: bool) -> Plan:
    """Of one entry of ProductionVariants. Raises `ContainerFailed`."""
    definitions: list[Record] = (
        [model["PrimaryContainer"]] if model.get("PrimaryContainer") else model["Containers"]
    )
    if len(definitions) > 1 and model.get("InferenceExecutionConfig", {}).get("Mode") != "Direct":
        raise ContainerFailed(
            "containers in sequence (InferenceExecutionConfig.Mode Serial) are not emulated; use Direct"
        )
    if len(definitions) > MAX_CONTAINERS:
        raise ContainerFailed(f"{len(definitions)} containers are more than {MAX_CONTAINERS}")
    name = variant["VariantName"]
    return Plan(
        label=f"production variant {name}",
        variant=name,
        log_group=f"/aws/sagemaker/Endpoints/{endpoint}",
        containers=tuple(
            _spec(
                f"{endpoint}/{name}",
                definition,
                hostname=(definition.get("ContainerHostname") or f"container-{number}")
                if len(definitions) > 1
                else PRIMARY,
                isolated=isolated or bool(model.get("EnableNetworkIsolation")),
                num_accelerators=num_gpus(variant.get("InstanceType", "")),
            )
            for number, definition in enumerate(definitions, start=1)
        ),
        startup_limit_s=float(variant.get("ContainerStartupHealthCheckTimeoutInSeconds", DEFAULT_STARTUP_S)),
        download_limit_s=float(variant.get("ModelDataDownloadTimeoutInSeconds", DEFAULT_DOWNLOAD_S)),
        strategy=variant.get("RoutingConfig", {}).get("RoutingStrategy", "RANDOM"),
    )


def component_plan(component: Record, model: Record | None, *, variant: Record, isolated: bool) -> Plan:
    """Of an inference component that is no adapter; `model` is the one that its specification names, if it does.
    Raises `ContainerFailed`."""
    specification = component["Specification"]
    definition: dict[str, Any] = {}
    if model is not None:
        definition |= model.get("PrimaryContainer") or model["Containers"][0]
        isolated = isolated or bool(model.get("EnableNetworkIsolation"))
    given = specification.get("Container", {})
    definition |= {member: given[member] for member in ("Image", "Environment") if given.get(member)}
    if given.get("DeployedImage"):
        definition["Image"] = given["DeployedImage"]["SpecifiedImage"]
    if given.get("ArtifactUrl"):
        definition["ModelDataUrl"] = given["ArtifactUrl"]
    if not definition.get("Image"):
        raise ContainerFailed("the specification has neither ModelName nor Container.Image")
    name = component["InferenceComponentName"]
    startup = specification.get("StartupParameters", {})
    needs = specification.get("ComputeResourceRequirements", {})
    return Plan(
        label=f"inference component {name}",
        variant=variant["VariantName"],
        log_group=f"/aws/sagemaker/InferenceComponents/{name}",
        containers=(
            _spec(
                f"{component['EndpointName']}/{name}",
                definition,
                hostname=PRIMARY,
                isolated=isolated,
                num_accelerators=int(needs.get("NumberOfAcceleratorDevicesRequired", 0)),
            ),
        ),
        startup_limit_s=float(startup.get("ContainerStartupHealthCheckTimeoutInSeconds", DEFAULT_STARTUP_S)),
        download_limit_s=float(startup.get("ModelDataDownloadTimeoutInSeconds", DEFAULT_DOWNLOAD_S)),
        strategy=variant.get("RoutingConfig", {}).get("RoutingStrategy", "RANDOM"),
        is_component=True,
    )


def _spec(
    name: str, definition: Mapping[str, Any], *, hostname: str, isolated: bool, num_accelerators: int
) -> ContainerSpec:
    return ContainerSpec(
        name=name,
        image=definition["Image"],
        environment=dict(definition.get("Environment") or {}),
        hostname=hostname,
        model_data=from_definition(definition),
        additional_model_data={
            source["ChannelName"]: from_source(source["S3DataSource"])
            for source in definition.get("AdditionalModelDataSources") or ()
        },
        network_isolation=isolated,
        num_accelerators=num_accelerators or None,
    )


def num_gpus(instance_type: str) -> int:
    """GPUs of an instance type (AWS's tables of g and p families); 0 for any other."""
    if not _GPU_FAMILIES.match(instance_type):
        return 0
    _, family, size = (*instance_type.split("."), "")[:3]
    return _GPUS_BY_SIZE.get(family, _USUAL_GPUS).get(size, 1)
