"""Endpoint configurations: which models run as which variants, on how many instances, with which weights."""

from __future__ import annotations

from local_mode.contracts import Record
from local_mode.control.operations.listing import Listing
from local_mode.control.operations.refusal import invalid, refuse_not_emulated
from local_mode.control.operations.tags import tag_map
from local_mode.control.resources import SqliteResources, now_s

_LISTING = Listing("EndpointConfig", "EndpointConfigs")

# Kept and shown, though nothing on this machine follows them: KmsKeyId, VpcConfig, ExecutionRoleArn, MetricsConfig, and
# of a variant InstanceType, VolumeSizeInGB, InferenceAmiVersion, CoreDumpConfig, EnableSSMAccess, ManagedInstanceScaling,
# CapacityReservationConfig, AcceleratorPartitionLayouts and VariantInstanceProvisionTimeoutInSeconds.
_NOT_EMULATED = {
    "ShadowProductionVariants": "requests are copied to no second variant",
    "ExplainerConfig": "there is no SageMaker Clarify",
    "CrossRegionTrafficConfig": "there is one region",
}
_VARIANT_NOT_EMULATED = {
    "ServerlessConfig": "serverless endpoints are not; give InstanceType and InitialInstanceCount",
    "AcceleratorType": "there is no Elastic Inference",
    "InstancePools": "there is one machine; give InstanceType and InitialInstanceCount",
}


class Configs:
    """CreateEndpointConfig, DescribeEndpointConfig, DeleteEndpointConfig, ListEndpointConfigs."""

    def __init__(self, resources: SqliteResources) -> None:
        self._resources = resources

    def create(self, request: Record) -> Record:
        self._check(request)
        name = request["EndpointConfigName"]
        arn = self._resources.arn("endpoint-config", name)
        tags = tag_map(request)
        record = {member: value for member, value in request.items() if member != "Tags"}
        record |= {"EndpointConfigArn": arn, "CreationTime": now_s()}
        record["ProductionVariants"] = [
            {"InitialVariantWeight": 1.0} | variant for variant in request["ProductionVariants"]
        ]
        record.setdefault("EnableNetworkIsolation", False)
        self._resources.add("endpoint-config", name, record)
        self._resources.tag(arn, tags)
        return {"EndpointConfigArn": arn}

    def describe(self, request: Record) -> Record:
        return self._resources.get("endpoint-config", request["EndpointConfigName"])

    def delete(self, request: Record) -> Record:
        self._resources.remove("endpoint-config", request["EndpointConfigName"])
        return {}

    def listed(self, request: Record) -> Record:
        return _LISTING.page(self._resources.all("endpoint-config"), request)

    def _check(self, request: Record) -> None:
        refuse_not_emulated("", request, _NOT_EMULATED)
        if request.get("DataCaptureConfig", {}).get("EnableCapture", False):
            raise invalid(
                "DataCaptureConfig.EnableCapture is not emulated on this machine: requests and answers are not kept."
            )
        variants: list[Record] = request["ProductionVariants"]
        names = [variant["VariantName"] for variant in variants]
        if len(set(names)) != len(names):
            raise invalid(f"ProductionVariants have the same VariantName twice: {', '.join(names)}.")
        for variant in variants:
            self._check_variant(variant)
        with_model = [variant for variant in variants if "ModelName" in variant]
        if with_model and len(with_model) != len(variants):
            raise invalid(
                "Either all ProductionVariants have a ModelName, or none: then inference components bring the models."
            )
        if not with_model and "ExecutionRoleArn" not in request:
            raise invalid("ExecutionRoleArn must be given when ProductionVariants have no ModelName.")

    def _check_variant(self, variant: Record) -> None:
        place = f"ProductionVariants.{variant['VariantName']}"
        refuse_not_emulated(place, variant, _VARIANT_NOT_EMULATED)
        missing = [member for member in ("InstanceType", "InitialInstanceCount") if member not in variant]
        if missing:
            raise invalid(f"{place} must have {' and '.join(missing)}.")
        if "ModelName" in variant:
            self._resources.get("model", variant["ModelName"])
