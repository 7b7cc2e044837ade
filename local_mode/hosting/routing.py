"""Chooses the container for an invocation: component or variant, then instance, then container. Sends nothing itself."""

from __future__ import annotations

import random

from local_mode.contracts import Record, Resources, ServiceError, Target
from local_mode.hosting.fleet import Fleet
from local_mode.hosting.instance import Instance
from local_mode.hosting.placement import Placement, key
from local_mode.hosting.plans import PRIMARY

_NO_CAPACITY = (
    "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress (if "
    "configured) or try to increase the capacity by invoking UpdateInferenceComponentRuntimeConfig API."
)
_IN_SERVICE = ("InService", "Updating", "SystemUpdating", "RollingBack", "UpdateRollbackFailed")


MAX_SESSIONS = 10_000
"""Known at a time; beyond, the one opened first is forgotten: nobody need close a session."""


class Router:
    """The `Routing` role. Strategies: RANDOM (also for PREFIX_AWARE and KV_AWARE, whose inputs it does not see) and
    LEAST_OUTSTANDING_REQUESTS."""

    def __init__(
        self, resources: Resources, placement: Placement, *, region: str, account: str, chance: random.Random
    ) -> None:
        self._resources = resources
        self._placement = placement
        self._region = region
        self._account = account
        self._chance = chance
        self._sessions: dict[str, str] = {}
        """By id, where it was opened."""

    def target(
        self,
        endpoint: str,
        *,
        variant: str | None = None,
        component: str | None = None,
        hostname: str | None = None,
        session_id: str | None = None,
    ) -> Target:
        record = self._endpoint(endpoint)
        fleets = self._placement.endpoints.get(key(endpoint), {})
        adapter = None
        if component is not None:
            fleet, adapter = self._component(record, component, variant)
        elif not fleets:
            raise self._without_fleets(record)
        else:
            fleet = self._variant(record, fleets, variant)
        hostname = self._hostname(fleet, hostname)
        instance = self._instance(record, fleet, session_id)
        instance.outstanding += 1
        arn = f"arn:aws:logs:{self._region}:{self._account}:log-group:{fleet.plan.log_group}"
        stream = f"{instance.log_stream}/{hostname}" if fleet.plan.takes_hostname else instance.log_stream
        return Target(
            base_url=instance.containers[hostname].base_url,
            variant=fleet.plan.variant,
            hostname=hostname,
            log_stream_arn=f"{arn}:log-stream:{stream}",
            adapter=adapter,
        )

    def finished(self, target: Target) -> None:
        instance = self._at(target.base_url)
        if instance is not None and instance.outstanding > 0:
            instance.outstanding -= 1

    def opened_session(self, session_id: str, target: Target) -> None:
        self._sessions[session_id] = target.base_url
        if len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def closed_session(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)

    def _endpoint(self, name: str) -> Record:
        try:
            record = self._resources.get("endpoint", name)
        except ServiceError as error:
            raise self._refused(f"Endpoint {name} of account {self._account} not found.") from error
        if record["EndpointStatus"] not in _IN_SERVICE:
            raise self._refused(f"Endpoint {name} of account {self._account} not found.")
        return record

    def _without_fleets(self, record: Record) -> ServiceError:
        name = record["EndpointName"]
        if key(name) not in self._placement.endpoints:
            return _unavailable(f"Endpoint {name} is being brought back.")
        return self._refused(
            "Inference Component Name header is required for endpoints to which you plan to deploy inference components. "
            "Please include Inference Component Name header or consider using SageMaker models."
        )

    def _component(self, endpoint: Record, name: str, variant: str | None) -> tuple[Fleet, str | None]:
        try:
            record = self._resources.get("inference-component", name)
        except ServiceError as error:
            raise self._refused(
                f"Inference Component {name} of account {self._account} not found."
            ) from error
        if key(record["EndpointName"]) != key(endpoint["EndpointName"]):
            raise self._refused(f"Inference Component {name} is not on endpoint {endpoint['EndpointName']}.")
        base = self._placement.adapters.get(key(name))
        fleet = self._placement.components.get(key(base or name))
        if record["InferenceComponentStatus"] not in ("InService", "Updating") or fleet is None:
            raise self._refused(f"Inference Component {name} is not in service.")
        if variant is not None and variant != fleet.plan.variant:
            raise self._refused(f"Inference Component {name} is not on variant {variant}.")
        if not fleet.instances:
            raise self._refused(_NO_CAPACITY)
        return fleet, record["InferenceComponentName"] if base else None

    def _variant(self, endpoint: Record, fleets: dict[str, Fleet], name: str | None) -> Fleet:
        if name is not None:
            if name not in fleets:
                raise self._refused(f"Variant {name} not found for endpoint {endpoint['EndpointName']}.")
            return fleets[name]
        weights = {
            summary["VariantName"]: float(summary.get("CurrentWeight", 1.0))
            for summary in endpoint.get("ProductionVariants", ())
        }
        names = list(fleets)
        shares = [weights.get(name, 1.0) for name in names]
        if sum(shares) <= 0:
            raise self._refused(
                f"All variants of endpoint {endpoint['EndpointName']} have the weight 0; name one."
            )
        return fleets[self._chance.choices(names, shares)[0]]

    def _hostname(self, fleet: Fleet, name: str | None) -> str:
        known = [spec.hostname for spec in fleet.plan.containers]
        if not fleet.plan.takes_hostname:
            if name is not None:
                raise self._refused(
                    "TargetContainerHostname is for endpoints with several containers and the inference mode Direct."
                )
            return PRIMARY
        if name is None:
            raise self._refused(
                f"TargetContainerHostname is required to invoke an endpoint of several containers: {', '.join(known)}."
            )
        if name not in known:
            raise self._refused(f"Container {name} is not found on this endpoint: {', '.join(known)}.")
        return name

    def _instance(self, endpoint: Record, fleet: Fleet, session_id: str | None) -> Instance:
        serving = fleet.serving
        if not serving:
            raise _unavailable(
                f"No container of {fleet.plan.label} of endpoint {endpoint['EndpointName']} is healthy; "
                "it is being replaced."
            )
        opened_at = self._sessions.get(session_id) if session_id else None
        for instance in serving:
            if any(container.base_url == opened_at for container in instance.containers.values()):
                return instance
        if fleet.plan.strategy == "LEAST_OUTSTANDING_REQUESTS":
            fewest = min(instance.outstanding for instance in serving)
            serving = [instance for instance in serving if instance.outstanding == fewest]
        return self._chance.choice(serving)

    def _at(self, base_url: str) -> Instance | None:
        for instance in self._placement.instances():
            if any(container.base_url == base_url for container in instance.containers.values()):
                return instance
        return None

    @staticmethod
    def _refused(message: str) -> ServiceError:
        return ServiceError("ValidationError", message)


def _unavailable(message: str) -> ServiceError:
    return ServiceError("ServiceUnavailable", message, status=503)
