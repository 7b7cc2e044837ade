"""Inference components: models, or adapters of other components, placed on an endpoint that has none of its own."""

from __future__ import annotations

from local_mode.contracts import Hosting, Record
from local_mode.control.operations.endpoints import deployed_image
from local_mode.control.operations.listing import Listing
from local_mode.control.operations.models import containers, refuse_https
from local_mode.control.operations.refusal import invalid, refuse_in_progress, refuse_not_emulated
from local_mode.control.operations.tags import tag_map
from local_mode.control.resources import SqliteResources, now_s

_LISTING = Listing("InferenceComponent", "InferenceComponents")

# Kept and shown, though nothing on this machine follows them: SchedulingConfig, DataCacheConfig, InstanceType,
# Container.ContainerMetricsConfig, and of ComputeResourceRequirements all but NumberOfAcceleratorDevicesRequired.
_NOT_EMULATED = {
    "Specifications": "there is one machine, of no instance type; give Specification",
    "DeploymentConfig": "an update moves all copies at once",
}


class Components:
    """Create, Describe, Update, UpdateRuntimeConfig, Delete and List of inference components."""

    def __init__(self, resources: SqliteResources, hosting: Hosting) -> None:
        self._resources = resources
        self._hosting = hosting

    def create(self, request: Record) -> Record:
        refuse_not_emulated("", request, _NOT_EMULATED)
        name = request["InferenceComponentName"]
        arn = self._resources.arn("inference-component", name)
        endpoint = self._endpoint(request["EndpointName"])
        specification = self._specification(request, endpoint)
        variant = self._variant(request, endpoint, specification)
        tags = tag_map(request)
        created_s = now_s()
        record: Record = {
            "InferenceComponentName": name,
            "InferenceComponentArn": arn,
            "EndpointName": endpoint["EndpointName"],
            "EndpointArn": endpoint["EndpointArn"],
            "VariantName": variant,
            "Specification": specification,
            "InferenceComponentStatus": "Creating",
            "CreationTime": created_s,
            "LastModifiedTime": created_s,
        }
        if "BaseInferenceComponentName" not in specification:
            if "RuntimeConfig" not in request:
                raise invalid("RuntimeConfig.CopyCount must be given, but for an adapter.")
            record["RuntimeConfig"] = {
                "DesiredCopyCount": request["RuntimeConfig"]["CopyCount"],
                "CurrentCopyCount": 0,
            }
        elif "RuntimeConfig" in request:
            raise invalid(
                "An adapter has no RuntimeConfig: it is wherever its BaseInferenceComponentName is."
            )
        self._resources.add("inference-component", name, record)
        self._resources.tag(arn, tags)
        self._hosting.component_created(name)
        return {"InferenceComponentArn": arn}

    def describe(self, request: Record) -> Record:
        return self._resources.get("inference-component", request["InferenceComponentName"])

    def update(self, request: Record) -> Record:
        refuse_not_emulated("", request, _NOT_EMULATED)
        component = self._at_rest(request)
        changes: Record = {}
        if "Specification" in request:
            changes["Specification"] = self._specification(request, self._endpoint(component["EndpointName"]))
            if _base(changes["Specification"]) != _base(component["Specification"]):
                raise invalid(
                    "BaseInferenceComponentName cannot be changed: create another inference component."
                )
        if "RuntimeConfig" in request:
            changes["RuntimeConfig"] = _rescaled(component, request["RuntimeConfig"])
        if not changes:
            raise invalid("Give Specification or RuntimeConfig: there is nothing to update.")
        return self._updating(component, changes)

    def update_runtime_config(self, request: Record) -> Record:
        component = self._at_rest(request)
        return self._updating(
            component, {"RuntimeConfig": _rescaled(component, request["DesiredRuntimeConfig"])}
        )

    def delete(self, request: Record) -> Record:
        component = self._at_rest(request)
        name = component["InferenceComponentName"]
        adapters = [
            other["InferenceComponentName"]
            for other in self._resources.all("inference-component")
            if _base(other["Specification"]) == name
        ]
        if adapters:
            raise invalid(
                f'Cannot delete inference component "{component["InferenceComponentArn"]}" while it has adapters: '
                f"delete {', '.join(adapters)} first."
            )
        self._resources.change("inference-component", name, InferenceComponentStatus="Deleting")
        self._hosting.component_deleted(name)
        return {}

    def listed(self, request: Record) -> Record:
        return _LISTING.page(self._resources.all("inference-component"), request)

    def _updating(self, component: Record, changes: Record) -> Record:
        name = component["InferenceComponentName"]
        self._resources.change(
            "inference-component", name, InferenceComponentStatus="Updating", FailureReason=None, **changes
        )
        self._hosting.component_updated(name)
        return {"InferenceComponentArn": component["InferenceComponentArn"]}

    def _at_rest(self, request: Record) -> Record:
        """The component. Raises `ServiceError` when it is unknown, or something is being done to it."""
        component = self._resources.get("inference-component", request["InferenceComponentName"])
        refuse_in_progress(
            "inference component", component["InferenceComponentArn"], component["InferenceComponentStatus"]
        )
        return component

    def _endpoint(self, name: str) -> Record:
        """The endpoint, in service and made for components. Raises `ServiceError`."""
        endpoint = self._resources.get("endpoint", name)
        if any("DeployedImages" in variant for variant in endpoint["ProductionVariants"]):
            raise invalid(
                f'Endpoint "{endpoint["EndpointArn"]}" takes no inference components: its configuration names models. '
                "Create it with ProductionVariants that have no ModelName."
            )
        if endpoint["EndpointStatus"] != "InService":
            raise invalid(
                f'Endpoint "{endpoint["EndpointArn"]}" is {endpoint["EndpointStatus"]}, not InService.'
            )
        return endpoint

    def _variant(self, request: Record, endpoint: Record, specification: Record) -> str:
        base = _base(specification)
        if base is not None:
            variant: str = self._resources.get("inference-component", base)["VariantName"]
            if request.get("VariantName", variant) != variant:
                raise invalid(f"An adapter is on its base component's variant, which is {variant}.")
            return variant
        names = [variant["VariantName"] for variant in endpoint["ProductionVariants"]]
        if request.get("VariantName") not in names:
            raise invalid(f"VariantName must be one of the endpoint's: {', '.join(names)}.")
        return str(request["VariantName"])

    def _specification(self, request: Record, endpoint: Record) -> Record:
        """As Describe shows it. Raises `ServiceError` for what cannot be placed."""
        if "Specification" not in request:
            raise invalid("Specification must be given.")
        specification: Record = dict(request["Specification"])
        container: Record = dict(specification.get("Container", {}))
        refuse_https("Specification.Container.ArtifactUrl", container.get("ArtifactUrl", ""))
        if "BaseInferenceComponentName" in specification:
            base = self._base_of_adapter(specification, endpoint)
            specification["BaseInferenceComponentName"] = base["InferenceComponentName"]
        else:
            self._check_base(specification)
        if "Image" in container:
            container["DeployedImage"] = deployed_image(container.pop("Image"))
        if container:
            specification["Container"] = container
        return specification

    def _check_base(self, specification: Record) -> None:
        if ("ModelName" in specification) == ("Container" in specification):
            raise invalid("Specification must have either ModelName or Container.")
        if "Container" in specification and "Image" not in specification["Container"]:
            raise invalid("Specification.Container.Image must be given.")
        if "ComputeResourceRequirements" not in specification:
            raise invalid("Specification.ComputeResourceRequirements must be given, but for an adapter.")
        if "ModelName" in specification:
            model = self._resources.get("model", specification["ModelName"])
            if len(containers(model)) > 1:
                raise invalid("A model of several containers cannot be an inference component.")

    def _base_of_adapter(self, specification: Record, endpoint: Record) -> Record:
        """Raises `ServiceError` for an adapter that cannot be on it."""
        base = self._resources.get("inference-component", specification["BaseInferenceComponentName"])
        if base["EndpointName"] != endpoint["EndpointName"]:
            raise invalid(f"{base['InferenceComponentName']} is on another endpoint: {base['EndpointName']}.")
        if _base(base["Specification"]) is not None:
            raise invalid(f"{base['InferenceComponentName']} is an adapter itself.")
        wrong = [
            member
            for member in ("ModelName", "ComputeResourceRequirements", "StartupParameters")
            if member in specification
        ]
        if wrong or set(specification.get("Container", {})) != {"ArtifactUrl"}:
            raise invalid(
                "An adapter's Specification has BaseInferenceComponentName and Container.ArtifactUrl, and of the rest of "
                "Container, ModelName, ComputeResourceRequirements and StartupParameters nothing."
            )
        return base


def _base(specification: Record) -> str | None:
    base: str | None = specification.get("BaseInferenceComponentName")
    return base


def _rescaled(component: Record, wanted: Record) -> Record:
    if "RuntimeConfig" not in component:
        raise invalid("An adapter has no RuntimeConfig: it is wherever its BaseInferenceComponentName is.")
    runtime: Record = component["RuntimeConfig"] | {"DesiredCopyCount": wanted["CopyCount"]}
    return runtime
