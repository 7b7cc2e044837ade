"""Endpoints: taken, moved to another configuration, rescaled and removed; hosting is told, and writes what comes of it."""

from __future__ import annotations

from local_mode.contracts import Hosting, Record
from local_mode.control.operations.listing import Listing
from local_mode.control.operations.models import containers
from local_mode.control.operations.refusal import invalid, refuse_in_progress, refuse_not_emulated
from local_mode.control.operations.tags import tag_map
from local_mode.control.resources import SqliteResources, now_s

_LISTING = Listing("Endpoint", "Endpoints")

_CONFIG_MEMBERS = ("AsyncInferenceConfig", "MetricsConfig")
_VARIANT_MEMBERS = ("ManagedInstanceScaling", "RoutingConfig")

_UPDATE_NOT_EMULATED = {
    "RetainAllVariantProperties": "weights and instance counts come from the new configuration",
    "ExcludeRetainedVariantProperties": "weights and instance counts come from the new configuration",
    "RetainDeploymentConfig": "give DeploymentConfig again",
}
_DEPLOYMENT_NOT_EMULATED = {
    "RollingUpdatePolicy": "an update moves all copies at once",
    "AutoRollbackConfiguration": "there are no CloudWatch alarms; an update that fails is rolled back anyway",
}


class Endpoints:
    """Create, Describe, Update, UpdateWeightsAndCapacities, Delete and List of endpoints."""

    def __init__(self, resources: SqliteResources, hosting: Hosting) -> None:
        self._resources = resources
        self._hosting = hosting

    def create(self, request: Record) -> Record:
        name = request["EndpointName"]
        config = self._resources.get("endpoint-config", request["EndpointConfigName"])
        _check_deployment(request)
        tags = tag_map(request)
        arn = self._resources.arn("endpoint", name)
        created_s = now_s()
        record: Record = {
            "EndpointName": name,
            "EndpointArn": arn,
            "EndpointConfigName": config["EndpointConfigName"],
            "EndpointStatus": "Creating",
            "ProductionVariants": self._variants(config),
            "CreationTime": created_s,
            "LastModifiedTime": created_s,
        }
        record |= {member: config[member] for member in _CONFIG_MEMBERS if member in config}
        if "DeploymentConfig" in request:
            record["LastDeploymentConfig"] = request["DeploymentConfig"]
        self._resources.add("endpoint", name, record)
        self._resources.tag(arn, tags)
        self._hosting.endpoint_created(name)
        return {"EndpointArn": arn}

    def describe(self, request: Record) -> Record:
        endpoint = self._resources.get("endpoint", request["EndpointName"])
        deployed = endpoint.get("_Deployed", {}).get("config")
        if deployed is None:
            return endpoint
        own = {member: value for member, value in endpoint.items() if member not in _CONFIG_MEMBERS}
        return own | {member: deployed[member] for member in _CONFIG_MEMBERS if member in deployed}

    def update(self, request: Record) -> Record:
        endpoint = self._at_rest(request)
        config = self._resources.get("endpoint-config", request["EndpointConfigName"])
        given = {member: value for member, value in request.items() if value is not False}
        refuse_not_emulated("", given, _UPDATE_NOT_EMULATED)
        _check_deployment(request)
        self._refuse_failed(endpoint)
        pending = {
            "EndpointConfigName": config["EndpointConfigName"],
            "ProductionVariants": self._variants(config),
            "StartTime": now_s(),
        }
        changes: Record = {
            "EndpointStatus": "Updating",
            "PendingDeploymentSummary": pending,
            "FailureReason": None,
        }
        if "DeploymentConfig" in request:
            changes["LastDeploymentConfig"] = request["DeploymentConfig"]
        self._resources.change("endpoint", endpoint["EndpointName"], **changes)
        self._hosting.endpoint_updated(endpoint["EndpointName"], config_name=config["EndpointConfigName"])
        return {"EndpointArn": endpoint["EndpointArn"]}

    def update_weights_and_capacities(self, request: Record) -> Record:
        endpoint = self._at_rest(request)
        self._refuse_failed(endpoint)
        variants: list[Record] = endpoint["ProductionVariants"]
        by_name = {variant["VariantName"]: variant for variant in variants}
        for wanted in request["DesiredWeightsAndCapacities"]:
            name = wanted["VariantName"]
            refuse_not_emulated(
                f"DesiredWeightsAndCapacities.{name}",
                wanted,
                {"ServerlessUpdateConfig": "serverless endpoints are not"},
            )
            if name not in by_name:
                raise invalid(
                    f'Endpoint "{endpoint["EndpointArn"]}" has no variant "{name}": {", ".join(by_name)}.'
                )
            by_name[name] |= {member: value for member, value in wanted.items() if member != "VariantName"}
        self._resources.change(
            "endpoint", endpoint["EndpointName"], ProductionVariants=variants, EndpointStatus="Updating"
        )
        self._hosting.endpoint_rescaled(endpoint["EndpointName"])
        return {"EndpointArn": endpoint["EndpointArn"]}

    def delete(self, request: Record) -> Record:
        endpoint = self._at_rest(request)
        name = endpoint["EndpointName"]
        components = [
            component["InferenceComponentName"]
            for component in self._resources.all("inference-component")
            if component["EndpointName"] == name
        ]
        if components:
            raise invalid(
                f'Cannot delete endpoint "{endpoint["EndpointArn"]}" while it has inference components: '
                f"delete {', '.join(components)} first."
            )
        self._resources.change("endpoint", name, EndpointStatus="Deleting")
        self._hosting.endpoint_deleted(name)
        return {}

    def listed(self, request: Record) -> Record:
        return _LISTING.page(self._resources.all("endpoint"), request)

    def _at_rest(self, request: Record) -> Record:
        """The endpoint. Raises `ServiceError` when it is unknown, or something is being done to it."""
        endpoint = self._resources.get("endpoint", request["EndpointName"])
        refuse_in_progress("endpoint", endpoint["EndpointArn"], endpoint["EndpointStatus"])
        return endpoint

    def _refuse_failed(self, endpoint: Record) -> None:
        if endpoint["EndpointStatus"] == "Failed":
            raise invalid(
                f'Cannot update endpoint "{endpoint["EndpointArn"]}" since it is Failed: delete it and create it again.'
            )

    def _variants(self, config: Record) -> list[Record]:
        """ProductionVariants as Describe shows them before anything runs. Raises `ServiceError`: no such model."""
        return [self._variant(variant) for variant in config["ProductionVariants"]]

    def _variant(self, variant: Record) -> Record:
        weight, count = variant["InitialVariantWeight"], variant["InitialInstanceCount"]
        summary: Record = {
            "VariantName": variant["VariantName"],
            "CurrentWeight": weight,
            "DesiredWeight": weight,
            "CurrentInstanceCount": 0,
            "DesiredInstanceCount": count,
        }
        summary |= {member: variant[member] for member in _VARIANT_MEMBERS if member in variant}
        if "ModelName" in variant:
            model = self._resources.get("model", variant["ModelName"])
            summary["DeployedImages"] = [
                deployed_image(container["Image"]) for container in containers(model)
            ]
        return summary


def deployed_image(image: str) -> Record:
    """DeployedImage: here an image's name is not resolved to a digest."""
    return {"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": now_s()}


def _check_deployment(request: Record) -> None:
    deployment = request.get("DeploymentConfig", {})
    refuse_not_emulated("DeploymentConfig", deployment, _DEPLOYMENT_NOT_EMULATED)
    routing = deployment.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
    kind = routing.get("Type", "ALL_AT_ONCE")
    if kind != "ALL_AT_ONCE":
        raise invalid(
            f"DeploymentConfig.BlueGreenUpdatePolicy.TrafficRoutingConfiguration.Type {kind} is not emulated on this "
            "machine: traffic moves ALL_AT_ONCE."
        )
