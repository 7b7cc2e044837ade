"""What serves which endpoint and component now: written by lifecycle, read by routing. Starts and stops nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from local_mode.hosting.fleet import Fleet
from local_mode.hosting.instance import Instance


@dataclass(slots=True)
class Placement:
    """Keys are names in lower case, as AWS compares them."""

    endpoints: dict[str, dict[str, Fleet]] = field(default_factory=dict)
    """By endpoint, then by variant; an endpoint of components has no fleets."""
    components: dict[str, Fleet] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)
    """Component of an adapter -> its base component."""

    def instances(self) -> Iterator[Instance]:
        for fleets in self.endpoints.values():
            for fleet in fleets.values():
                yield from fleet.instances
        for fleet in self.components.values():
            yield from fleet.instances

    def base_urls(self, endpoint: str, component: str | None = None) -> list[str]:
        """Of all containers that serve an endpoint, or one component."""
        if component is not None:
            fleet = self.components.get(key(self.adapters.get(key(component), component)))
            fleets = [fleet] if fleet is not None else []
        else:
            fleets = list(self.endpoints.get(key(endpoint), {}).values())
        return [
            container.base_url
            for fleet in fleets
            for instance in fleet.serving
            for container in instance.containers.values()
        ]


def key(name: str) -> str:
    return name.lower()
