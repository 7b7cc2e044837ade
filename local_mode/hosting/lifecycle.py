"""The `Hosting` role: which job runs for which event, what is brought back after a restart, and the end of everything.

After a restart an endpoint that was in service is SystemUpdating until its containers serve again; meanwhile invocations
get ServiceUnavailable. One that was Creating is created again; an update that had not ended is begun again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from local_mode.contracts import Resources
from local_mode.hosting.components import Components
from local_mode.hosting.endpoints import Endpoints
from local_mode.hosting.fleet import Platform
from local_mode.hosting.jobs import Jobs, all_ended
from local_mode.hosting.placement import Placement

_RUNNING = ("InService", "Updating", "SystemUpdating", "RollingBack", "UpdateRollbackFailed")


class Lifecycle:
    """`clear` removes what an emulator that was killed has left on disk; `close` lets go of clients."""

    def __init__(
        self,
        resources: Resources,
        placement: Placement,
        endpoints: Endpoints,
        components: Components,
        *,
        platform: Platform,
        clear: Callable[[], None],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self._resources = resources
        self._placement = placement
        self._endpoints = endpoints
        self._components = components
        self._platform = platform
        self._clear = clear
        self._close = close
        self._endpoint_jobs = Jobs(endpoints.fail)
        self._component_jobs = Jobs(components.fail)

    async def start(self) -> None:
        self._clear()
        for record in self._resources.all("endpoint"):
            self._bring_back(record)
        components = self._resources.all("inference-component")
        # An adapter waits for its base: jobs of one base run in the order in which they are begun.
        for record in sorted(
            components, key=lambda each: "BaseInferenceComponentName" in each["Specification"]
        ):
            name = record["InferenceComponentName"]
            if record["InferenceComponentStatus"] == "Deleting":
                self.component_deleted(name)
            elif record["InferenceComponentStatus"] != "Failed":
                self._resources.change("inference-component", name, InferenceComponentStatus="Creating")
                self.component_created(name)

    async def stop(self) -> None:
        await self._component_jobs.stop()
        await self._endpoint_jobs.stop()
        stops: list[Awaitable[None]] = [
            self._endpoints.stop(record["EndpointName"]) for record in self._resources.all("endpoint")
        ]
        stops += [self._components.stop(name) for name in list(self._placement.components)]
        try:
            await all_ended(*stops)
        finally:
            try:
                await all_ended(*(fleet.stop() for fleet in list(self._platform.fleets)))
            finally:
                await self._close()
                self._clear()

    def endpoint_created(self, name: str) -> None:
        self._endpoint_jobs.begin(name, lambda: self._endpoints.create(name))

    def endpoint_updated(self, name: str, *, config_name: str) -> None:
        self._endpoint_jobs.begin(name, lambda: self._endpoints.update(name, config_name))

    def endpoint_rescaled(self, name: str) -> None:
        self._endpoint_jobs.begin(name, lambda: self._endpoints.rescale(name))

    def endpoint_deleted(self, name: str) -> None:
        self._endpoint_jobs.begin(name, lambda: self._endpoints.delete(name), instead=True)

    def component_created(self, name: str) -> None:
        self._component_jobs.begin(name, lambda: self._components.create(name), queue=self._queue(name))

    def component_updated(self, name: str) -> None:
        self._component_jobs.begin(name, lambda: self._components.update(name), queue=self._queue(name))

    def component_deleted(self, name: str) -> None:
        queue = self._queue(name)
        self._component_jobs.begin(
            name, lambda: self._components.delete(name), queue=queue, instead=queue == name
        )

    def _queue(self, name: str) -> str:
        """Adapters wait in the queue of their base."""
        specification = self._resources.get("inference-component", name)["Specification"]
        return str(specification.get("BaseInferenceComponentName", name))

    def _bring_back(self, record: dict[str, object]) -> None:
        name = str(record["EndpointName"])
        status = record["EndpointStatus"]
        pending = record.get("PendingDeploymentSummary")
        if status == "Creating":
            self.endpoint_created(name)
        elif status == "Deleting":
            self.endpoint_deleted(name)
        elif status in _RUNNING:
            self._resources.change("endpoint", name, EndpointStatus="SystemUpdating")
            self._endpoint_jobs.begin(name, lambda: self._endpoints.bring_back(name))
            if isinstance(pending, dict):
                config_name = str(pending["EndpointConfigName"])
                self.endpoint_updated(name, config_name=config_name)
