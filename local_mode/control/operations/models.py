"""Models: an image, its environment and where its files are, or several of those."""

from __future__ import annotations

from local_mode.contracts import Record
from local_mode.control.operations.listing import Listing
from local_mode.control.operations.refusal import invalid, refuse_not_emulated
from local_mode.control.operations.tags import tag_map
from local_mode.control.resources import SqliteResources, now_s

_LISTING = Listing("Model", "Models")

# Kept and shown, though nothing on this machine follows them: ExecutionRoleArn, VpcConfig, and of a container
# ImageConfig, ContainerMetricsConfig and ModelAccessConfig. The rest that is not here is followed.
_CONTAINER_NOT_EMULATED = {
    "MultiModelConfig": "multi-model endpoints are not; use inference components",
    "ModelPackageName": "there is no model registry; give Image and ModelDataSource",
    "InferenceSpecificationName": "there is no model registry; give Image and ModelDataSource",
}
_SOURCE_NOT_EMULATED = {
    "HubAccessConfig": "there is no SageMaker hub; copy the files to a bucket or a folder",
    "ManifestS3Uri": "manifests are not read; give the prefix that holds the files",
    "ETag": "versions of objects are not compared",
    "ManifestEtag": "manifests are not read",
}


class Models:
    """CreateModel, DescribeModel, DeleteModel, ListModels."""

    def __init__(self, resources: SqliteResources) -> None:
        self._resources = resources

    def create(self, request: Record) -> Record:
        _check(request)
        arn = self._resources.arn("model", request["ModelName"])
        tags = tag_map(request)
        record = {member: value for member, value in request.items() if member != "Tags"}
        record |= {"ModelArn": arn, "CreationTime": now_s()}
        record.setdefault("EnableNetworkIsolation", False)
        self._resources.add("model", request["ModelName"], record)
        self._resources.tag(arn, tags)
        return {"ModelArn": arn}

    def describe(self, request: Record) -> Record:
        return self._resources.get("model", request["ModelName"])

    def delete(self, request: Record) -> Record:
        self._resources.remove("model", request["ModelName"])
        return {}

    def listed(self, request: Record) -> Record:
        return _LISTING.page(self._resources.all("model"), request)


def containers(model: Record) -> list[Record]:
    """The containers of a model, the primary one alone or all of them in order."""
    return [model["PrimaryContainer"]] if "PrimaryContainer" in model else list(model["Containers"])


def _check(request: Record) -> None:
    if ("PrimaryContainer" in request) == bool(request.get("Containers")):
        raise invalid("Give either PrimaryContainer or Containers.")
    for number, container in enumerate(containers(request), start=1):
        place = "PrimaryContainer" if "PrimaryContainer" in request else f"Containers.{number}"
        _check_container(place, container)
    if len(request.get("Containers", ())) > 1:
        _check_several(request)


def _check_container(place: str, container: Record) -> None:
    refuse_not_emulated(place, container, _CONTAINER_NOT_EMULATED)
    if container.get("Mode") == "MultiModel":
        refuse_not_emulated(
            place, container, {"Mode": "MultiModel endpoints are not; use inference components"}
        )
    if "Image" not in container:
        raise invalid(f"{place}.Image must be given.")
    if "ModelDataUrl" in container and "ModelDataSource" in container:
        raise invalid(f"{place} has both ModelDataUrl and ModelDataSource: give one of them.")
    sources = [source["S3DataSource"] for source in container.get("AdditionalModelDataSources", ())]
    if "ModelDataSource" in container:
        if "S3DataSource" not in container["ModelDataSource"]:
            raise invalid(f"{place}.ModelDataSource.S3DataSource must be given.")
        sources.append(container["ModelDataSource"]["S3DataSource"])
    for source in sources:
        refuse_not_emulated(f"{place}.ModelDataSource.S3DataSource", source, _SOURCE_NOT_EMULATED)
    for address in [container.get("ModelDataUrl", ""), *(source["S3Uri"] for source in sources)]:
        refuse_https(place, address)


def _check_several(request: Record) -> None:
    if request.get("InferenceExecutionConfig", {}).get("Mode") != "Direct":
        raise invalid(
            "Containers in sequence (InferenceExecutionConfig.Mode Serial, the default) are not emulated on this machine: "
            'set {"Mode": "Direct"} and name one with TargetContainerHostname.'
        )
    names = [container.get("ContainerHostname") for container in request["Containers"]]
    if None in names or len(set(names)) != len(names):
        raise invalid(
            "Each of Containers must have its own ContainerHostname when InferenceExecutionConfig.Mode is Direct."
        )


def refuse_https(place: str, address: str) -> None:
    """Raises `ServiceError` for an address of model files that nothing here downloads."""
    if address.startswith("https://"):
        raise invalid(
            f"{place}: '{address}' is not emulated on this machine: write it as s3://bucket/key or file:///path."
        )
