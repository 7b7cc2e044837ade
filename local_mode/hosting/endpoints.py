"""What happens to one endpoint: brought up, moved, rescaled, brought back, removed. Writes status and reason to its record.

One of these steps at a time runs per endpoint; components are another file's.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from local_mode.contracts import ContainerFailed, Record, Resources, ServiceError
from local_mode.hosting.fleet import Fleet, Platform, together
from local_mode.hosting.jobs import Leaving, all_ended
from local_mode.hosting.logs import note
from local_mode.hosting.placement import Placement, key
from local_mode.hosting.plans import variant_plan

_log = logging.getLogger("local_mode.hosting")

MAX_REASON = 1024
_SNAPSHOT = "_Deployed"
"""Configuration and models as they were deployed: AWS lets both be deleted under a running endpoint."""


class Endpoints:
    """`max_copies`: instances of a variant that this machine runs at most; Describe shows how many there are."""

    def __init__(
        self, resources: Resources, placement: Placement, platform: Platform, *, max_copies: int
    ) -> None:
        self._resources = resources
        self._placement = placement
        self._platform = platform
        self._max_copies = max_copies
        self._leaving = Leaving()

    async def create(self, name: str) -> None:
        """From Creating to InService or Failed; when it is Failed nothing runs."""
        try:
            snapshot = self._snapshot(self._resources.get("endpoint", name)["EndpointConfigName"])
            await self._bring_up(name, snapshot)
        except ContainerFailed as error:
            self._fail(name, error)

    async def bring_back(self, name: str) -> None:
        """After a restart of the emulator, from what was deployed."""
        record = self._resources.get("endpoint", name)
        try:
            await self._bring_up(name, record.get(_SNAPSHOT) or self._snapshot(record["EndpointConfigName"]))
        except ContainerFailed as error:
            self._fail(name, error)

    async def update(self, name: str, config_name: str) -> None:
        """To InService with the new configuration; or with the old one and FailureReason, as AWS rolls back."""
        old = self._placement.endpoints.get(key(name), {})
        self._change(name, EndpointStatus="Updating")  # after a restart it is not
        try:
            snapshot = self._snapshot(config_name)
            fleets = await self._start(name, snapshot, self._counts(snapshot["config"], {}))
        except ContainerFailed as error:
            self._change(name, EndpointStatus="RollingBack")
            self._change(
                name,
                EndpointStatus="InService",
                FailureReason=clip(error),
                PendingDeploymentSummary=None,
            )
            return
        self._serve(name, snapshot, fleets, {})
        self._retire(name, old)

    async def rescale(self, name: str) -> None:
        """DesiredWeight and DesiredInstanceCount become current, as far as that is possible."""
        fleets = self._placement.endpoints.get(key(name), {})
        variants: list[Record] = self._resources.get("endpoint", name)["ProductionVariants"]
        reason = None
        for variant in variants:
            fleet = fleets.get(variant["VariantName"])
            if fleet is None:
                continue
            try:
                await fleet.resize(self._possible(name, fleet, variant["DesiredInstanceCount"]))
            except ContainerFailed as error:
                reason = clip(error)
                variant["DesiredInstanceCount"] = len(fleet.instances)
                variant["DesiredWeight"] = variant["CurrentWeight"]
        for variant in variants:
            variant["CurrentWeight"] = variant["DesiredWeight"]
            variant["CurrentInstanceCount"] = self._count(fleets, variant)
        self._change(name, EndpointStatus="InService", FailureReason=reason, ProductionVariants=variants)

    async def delete(self, name: str) -> None:
        """Stop all of it, then remove the resource."""
        await self.stop(name)
        try:
            self._resources.remove("endpoint", name)
        except ServiceError:  # it was removed meanwhile
            return

    async def stop(self, name: str) -> None:
        """The resource stays as it is."""
        fleets = self._placement.endpoints.get(key(name), {})
        await all_ended(*(fleet.stop() for fleet in fleets.values()))
        self._placement.endpoints.pop(key(name), None)
        await self._leaving.ended(key(name))

    def fail(self, name: str, error: BaseException) -> None:
        """For what nobody foresaw."""
        _log.error("endpoint %s failed", name, exc_info=error)
        try:
            self._fail(name, ContainerFailed(f"The emulator failed: {type(error).__name__}: {error}"))
        except ServiceError:  # it has been removed
            return

    async def _bring_up(self, name: str, snapshot: Record) -> None:
        known = {
            variant["VariantName"]: variant
            for variant in self._resources.get("endpoint", name).get("ProductionVariants", ())
        }
        fleets = await self._start(name, snapshot, self._counts(snapshot["config"], known))
        self._serve(name, snapshot, fleets, known)

    async def _start(self, name: str, snapshot: Record, counts: dict[str, int]) -> dict[str, Fleet]:
        """Fleets of all variants that have a model. Raises `ContainerFailed`; then nothing of them runs."""
        config: Record = snapshot["config"]
        fleets = {}
        for variant in config["ProductionVariants"]:
            if "ModelName" not in variant:
                continue
            plan = variant_plan(
                name,
                variant,
                snapshot["models"][variant["ModelName"]],
                isolated=bool(config.get("EnableNetworkIsolation")),
            )
            fleets[variant["VariantName"]] = Fleet(plan, self._platform, changed=lambda: self._refresh(name))
        try:
            await together(
                *(fleet.resize(self._possible(name, fleet, counts[each])) for each, fleet in fleets.items())
            )
        except BaseException:
            await all_ended(*(fleet.stop() for fleet in fleets.values()))
            raise
        return fleets

    def _serve(self, name: str, snapshot: Record, fleets: dict[str, Fleet], known: dict[str, Record]) -> None:
        """From here on invocations go to `fleets`."""
        self._placement.endpoints[key(name)] = fleets
        self._change(
            name,
            EndpointStatus="InService",
            EndpointConfigName=snapshot["config"]["EndpointConfigName"],
            ProductionVariants=[
                self._summary(variant, fleets, known.get(variant["VariantName"], {}))
                for variant in snapshot["config"]["ProductionVariants"]
            ],
            FailureReason=None,
            PendingDeploymentSummary=None,
            **{_SNAPSHOT: snapshot},
        )

    def _summary(self, variant: Record, fleets: dict[str, Fleet], known: Record) -> Record:
        """One entry of DescribeEndpoint's ProductionVariants."""
        weight = known.get("DesiredWeight", variant.get("InitialVariantWeight", 1.0))
        summary: Record = {
            "VariantName": variant["VariantName"],
            "CurrentWeight": weight,
            "DesiredWeight": weight,
            "CurrentInstanceCount": self._count(fleets, variant),
            "DesiredInstanceCount": known.get("DesiredInstanceCount", variant.get("InitialInstanceCount", 1)),
        }
        fleet = fleets.get(variant["VariantName"])
        if fleet is not None:
            summary["DeployedImages"] = known.get("DeployedImages") or [
                {"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": round(time.time(), 3)}
                for image in fleet.plan.images
            ]
        summary |= {
            member: variant[member]
            for member in ("RoutingConfig", "ManagedInstanceScaling")
            if member in variant
        }
        return summary

    def _retire(self, name: str, fleets: dict[str, Fleet]) -> None:
        """Stop what has been replaced, without holding up what comes next."""
        for fleet in fleets.values():
            self._leaving.begin(key(name), fleet.stop())

    def _counts(self, config: Record, known: dict[str, Record]) -> dict[str, int]:
        return {
            variant["VariantName"]: int(
                known.get(variant["VariantName"], variant).get(
                    "DesiredInstanceCount", variant.get("InitialInstanceCount", 1)
                )
            )
            for variant in config["ProductionVariants"]
        }

    def _possible(self, name: str, fleet: Fleet, wanted: int) -> int:
        if wanted > self._max_copies:
            note(
                self._platform.logs / fleet.plan.log_group.lstrip("/") / fleet.plan.variant / "platform.log",
                f"endpoint {name}, {fleet.plan.label}: {wanted} instances were asked for, "
                f"this machine runs {self._max_copies}",
            )
        return min(wanted, self._max_copies)

    def _count(self, fleets: dict[str, Fleet], variant: Record) -> int:
        """Instances that serve. Those of a variant for components are this machine, which is always there."""
        fleet = fleets.get(variant["VariantName"])
        if fleet is None:
            return int(variant.get("InitialInstanceCount") or variant.get("DesiredInstanceCount") or 1)
        return len(fleet.serving)

    def _snapshot(self, config_name: str) -> Record:
        try:
            config = self._resources.get("endpoint-config", config_name)
            names = [
                variant["ModelName"] for variant in config["ProductionVariants"] if "ModelName" in variant
            ]
            return {"config": config, "models": {name: self._resources.get("model", name) for name in names}}
        except ServiceError as error:
            raise ContainerFailed(error.message) from error

    def _refresh(self, name: str) -> None:
        """CurrentInstanceCount after instances have come or gone by themselves."""
        fleets = self._placement.endpoints.get(key(name))
        if fleets is None:
            return
        try:
            variants: list[Record] = self._resources.get("endpoint", name)["ProductionVariants"]
            for variant in variants:
                variant["CurrentInstanceCount"] = self._count(fleets, variant)
            self._resources.change("endpoint", name, ProductionVariants=variants)
        except ServiceError:  # it has just been removed
            return

    def _fail(self, name: str, error: ContainerFailed) -> None:
        variants: list[Record] = self._resources.get("endpoint", name).get("ProductionVariants", [])
        for variant in variants:
            variant["CurrentInstanceCount"] = 0
        self._change(
            name, EndpointStatus="Failed", FailureReason=clip(error), ProductionVariants=variants or None
        )

    def _change(self, name: str, **members: Any) -> None:
        self._resources.change("endpoint", name, **members)


def clip(error: ContainerFailed) -> str:
    """As FailureReason, which has at most 1024 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"
