"""What happens to one inference component, or to an adapter on one: placed, updated, rescaled, removed."""

from __future__ import annotations

import logging
from typing import Any

from local_mode.contracts import ContainerFailed, ModelData, Record, Resources, ServiceError
from local_mode.hosting.endpoints import clip
from local_mode.hosting.fleet import Fleet, Platform
from local_mode.hosting.jobs import Leaving
from local_mode.hosting.placement import Placement, key
from local_mode.hosting.plans import DEFAULT_DOWNLOAD_S, Plan, component_plan

_log = logging.getLogger("local_mode.hosting")


class Components:
    """`max_copies` as for endpoints; CurrentCopyCount shows how many there are."""

    def __init__(
        self, resources: Resources, placement: Placement, platform: Platform, *, max_copies: int
    ) -> None:
        self._resources = resources
        self._placement = placement
        self._platform = platform
        self._max_copies = max_copies
        self._leaving = Leaving()

    async def create(self, name: str) -> None:
        """From Creating to InService or Failed; when it is Failed nothing of it runs."""
        try:
            record = self._resources.get("inference-component", name)
            if _base(record) is None:
                await self._place(record)
            else:
                await self._adapt(record)
        except ContainerFailed as error:
            self._change(name, InferenceComponentStatus="Failed", FailureReason=clip(error))

    async def update(self, name: str) -> None:
        """To InService: with what the record says now, or with what was there before and FailureReason."""
        reason = None
        try:
            record = self._resources.get("inference-component", name)
            if _base(record) is not None:
                await self._unload(name)
                await self._adapt(record)
            elif (fleet := self._placement.components.get(key(name))) is None:
                await self._place(record)
            elif fleet.plan == self._plan(record):
                await fleet.resize(self._possible(record))
            else:
                await self._place(record)
        except ContainerFailed as error:
            if key(name) not in self._placement.components:
                self._change(name, InferenceComponentStatus="Failed", FailureReason=clip(error))
                return
            reason = clip(error)
        self._change(name, InferenceComponentStatus="InService", FailureReason=reason)

    async def delete(self, name: str) -> None:
        """Stop it, then remove the resource."""
        await self.stop(name)
        try:
            self._resources.remove("inference-component", name)
        except ServiceError:  # it was removed meanwhile
            return

    async def stop(self, name: str) -> None:
        """The resource stays as it is."""
        await self._unload(name)
        fleet = self._placement.components.get(key(name))
        if fleet is not None:
            await fleet.stop()
        self._placement.components.pop(key(name), None)
        await self._leaving.ended(key(name))

    def fail(self, name: str, error: BaseException) -> None:
        """For what nobody foresaw."""
        _log.error("inference component %s failed", name, exc_info=error)
        reason = ContainerFailed(f"The emulator failed: {type(error).__name__}: {error}")
        try:
            self._change(name, InferenceComponentStatus="Failed", FailureReason=clip(reason))
        except ServiceError:  # it has been removed
            return

    async def _place(self, record: Record) -> None:
        """New containers come up before old ones go."""
        name = record["InferenceComponentName"]
        fleet = Fleet(self._plan(record), self._platform, changed=lambda: self._refresh(name))
        try:
            await fleet.resize(self._possible(record))
            await self._move_adapters(name, fleet)
        except BaseException:
            await fleet.stop()
            raise
        old = self._placement.components.get(key(name))
        self._placement.components[key(name)] = fleet
        self._refresh(name)
        model = self._model(record)
        kept = {"_Deployed": {"model": model}} if model is not None else {}
        self._change(name, InferenceComponentStatus="InService", FailureReason=None, **kept)
        if old is not None:
            self._leaving.begin(key(name), old.stop())

    async def _move_adapters(self, base: str, fleet: Fleet) -> None:
        """Before `fleet` takes the place of another one: whoever invokes an adapter finds it there."""
        for adapter, its_base in list(self._placement.adapters.items()):
            if key(its_base) != key(base):
                continue
            record = self._resources.get("inference-component", adapter)
            try:
                await self._load(record, fleet)
            except ContainerFailed as error:
                del self._placement.adapters[adapter]
                self._change(adapter, InferenceComponentStatus="Failed", FailureReason=clip(error))

    async def _adapt(self, record: Record) -> None:
        name, base = record["InferenceComponentName"], _base(record)
        fleet = self._placement.components.get(key(base or ""))
        if fleet is None or not fleet.serving:
            raise ContainerFailed(f"Inference component {base}, the base of {name}, is not in service")
        await self._load(record, fleet)
        self._placement.adapters[key(name)] = str(base)
        self._change(name, InferenceComponentStatus="InService", FailureReason=None)

    async def _load(self, record: Record, fleet: Fleet) -> None:
        name = record["InferenceComponentName"]
        url = record["Specification"].get("Container", {}).get("ArtifactUrl")
        if not url:
            raise ContainerFailed(
                f"Inference component {name} has no Container.ArtifactUrl to load as an adapter"
            )
        data = ModelData(uri=url, is_prefix=False, is_compressed=True)
        await fleet.add_adapter(name, data, limit_s=DEFAULT_DOWNLOAD_S)

    async def _unload(self, name: str) -> None:
        base = self._placement.adapters.pop(key(name), None)
        fleet = self._placement.components.get(key(base)) if base else None
        if fleet is not None:
            await fleet.remove_adapter(name)

    def _plan(self, record: Record) -> Plan:
        try:
            endpoint = self._resources.get("endpoint", record["EndpointName"])
            model = self._model(record)
        except ServiceError as error:
            raise ContainerFailed(error.message) from error
        config = endpoint.get("_Deployed", {}).get("config", {})
        variants: list[Record] = config.get("ProductionVariants") or endpoint["ProductionVariants"]
        name = record.get("VariantName", variants[0]["VariantName"])
        variant = next((each for each in variants if each["VariantName"] == name), {"VariantName": name})
        return component_plan(
            record, model, variant=variant, isolated=bool(config.get("EnableNetworkIsolation"))
        )

    def _model(self, record: Record) -> Record | None:
        """The model that the specification names; as it was deployed, where it has been deleted since."""
        name = record["Specification"].get("ModelName")
        if name is None:
            return None
        try:
            return self._resources.get("model", name)
        except ServiceError:
            deployed: Record | None = record.get("_Deployed", {}).get("model")
            if deployed is None or deployed["ModelName"].lower() != name.lower():
                raise
            return deployed

    def _possible(self, record: Record) -> int:
        return min(int(record.get("RuntimeConfig", {}).get("DesiredCopyCount", 1)), self._max_copies)

    def _refresh(self, name: str) -> None:
        """CurrentCopyCount after copies have come or gone."""
        fleet = self._placement.components.get(key(name))
        if fleet is None:
            return
        try:
            runtime = self._resources.get("inference-component", name).get("RuntimeConfig", {})
            self._change(name, RuntimeConfig=runtime | {"CurrentCopyCount": len(fleet.serving)})
        except ServiceError:  # it has just been removed
            return

    def _change(self, name: str, **members: Any) -> None:
        self._resources.change("inference-component", name, **members)


def _base(record: Record) -> str | None:
    base: str | None = record["Specification"].get("BaseInferenceComponentName")
    return base
