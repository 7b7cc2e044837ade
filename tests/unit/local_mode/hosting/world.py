"""A whole hosting on a folder, with fake containers and resources in memory."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import psutil

from local_mode.contracts import Kind, Record, ServiceError, Target
from local_mode.hosting import Clocks, build

FAKE = (sys.executable, "-I", str(Path(__file__).with_name("fake_container.py")))
QUICK = Clocks(
    first_poll_s=0.02,
    poll_s=0.05,
    watch_s=0.1,
    unhealthy_after=2,
    first_backoff_s=0.05,
    max_backoff_s=0.2,
    grace_s=1.0,
)
ACCOUNT = "123456789012"


class MemoryResources:
    """The `Resources` role."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], Record] = {}

    def add(self, kind: Kind, name: str, record: Record) -> None:
        self._records[kind, name.lower()] = deepcopy(record)

    def get(self, kind: Kind, name: str) -> Record:
        if (kind, name.lower()) not in self._records:
            raise ServiceError("ValidationException", f'Could not find {kind} "{name}".')
        return deepcopy(self._records[kind, name.lower()])

    def change(self, kind: Kind, name: str, **members: Any) -> Record:
        record = self.get(kind, name) | deepcopy(members)
        self.add(kind, name, {member: value for member, value in record.items() if value is not None})
        return self.get(kind, name)

    def remove(self, kind: Kind, name: str) -> None:
        self.get(kind, name)
        del self._records[kind, name.lower()]

    def all(self, kind: Kind) -> list[Record]:
        return [deepcopy(record) for (its_kind, _), record in self._records.items() if its_kind == kind]


class World:
    """`state` is the emulator's folder. Use within one event loop."""

    def __init__(
        self,
        state: Path,
        *,
        resources: MemoryResources | None = None,
        environment: Mapping[str, str] | None = None,
        clocks: Clocks = QUICK,
        max_copies: int = 2,
    ) -> None:
        self.state = state
        self.resources = resources or MemoryResources()
        self.built = build(
            self.resources,
            state_dir=state,
            region="us-east-1",
            account=ACCOUNT,
            environment={"PATH": "/usr/bin:/bin", "SECRET_OF_THE_USER": "1"} | dict(environment or {}),
            backend="process",
            command=FAKE,
            clocks=clocks,
            max_copies=max_copies,
            chance=random.Random(1),
        )
        self.hosting = self.built.hosting
        self.routing = self.built.routing

    def model(self, name: str = "m", behaviour: str = "good", **members: Any) -> None:
        container = {"Image": f"image-of-{name}", "Environment": {"BEHAVIOUR": behaviour}} | members
        self.resources.add("model", name, {"ModelName": name, "PrimaryContainer": container})

    def config(self, name: str = "c", *variants: Record, **members: Any) -> None:
        record = {"EndpointConfigName": name, "ProductionVariants": list(variants) or [variant()]} | members
        self.resources.add("endpoint-config", name, record)

    def create(self, name: str = "e", config: str = "c") -> None:
        record = {"EndpointName": name, "EndpointConfigName": config, "EndpointStatus": "Creating"}
        self.resources.add("endpoint", name, record)
        self.hosting.endpoint_created(name)

    def component(self, name: str, specification: Record, *, copies: int = 1, endpoint: str = "e") -> None:
        record = {
            "InferenceComponentName": name,
            "EndpointName": endpoint,
            "VariantName": "AllTraffic",
            "Specification": specification,
            "RuntimeConfig": {"DesiredCopyCount": copies, "CurrentCopyCount": 0},
            "InferenceComponentStatus": "Creating",
        }
        self.resources.add("inference-component", name, record)
        self.hosting.component_created(name)

    def endpoint(self, name: str = "e") -> Record:
        return self.resources.get("endpoint", name)

    async def settled(self, name: str = "e") -> Record:
        return await self._at_rest(lambda: self.endpoint(name), "EndpointStatus")

    async def component_settled(self, name: str) -> Record:
        return await self._at_rest(
            lambda: self.resources.get("inference-component", name), "InferenceComponentStatus"
        )

    async def _at_rest(self, record: Callable[[], Record], status: str) -> Record:
        await until(lambda: record()[status] in ("InService", "Failed"))
        return record()

    async def gone(self, kind: Kind, name: str) -> None:
        await until(lambda: name not in [next(iter(record.values())) for record in self.resources.all(kind)])

    async def invoke(self, **choice: str) -> Record:
        target = self.routing.target("e", **choice)
        self.routing.finished(target)
        return await ask(target)

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted((self.state / "logs").rglob("*.log")))

    def left_on_disk(self) -> list[str]:
        """Everything but logs."""
        return [
            str(path.relative_to(self.state))
            for folder in ("containers", "model-data")
            for path in (self.state / folder).rglob("*")
        ]


def variant(name: str = "AllTraffic", model: str | None = "m", **members: Any) -> Record:
    record: Record = {"VariantName": name, "InitialInstanceCount": 1, "InitialVariantWeight": 1.0}
    return record | ({"ModelName": model} if model else {}) | members


async def ask(target: Target, path: str = "/invocations") -> Record:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(f"{target.base_url}{path}", json={})
        record: Record = answer.json()
        return record


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError("it did not come to pass in time")
        await asyncio.sleep(0.02)


def descendants() -> list[str]:
    """Command lines of what runs below this process. Those that ended, waited for or not, have none."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(child.cmdline()))
    return found


def run(state: Path, story: Callable[[World], Awaitable[None]], **options: Any) -> World:
    """Play `story`, end the hosting, and see that nothing runs and nothing but logs is on disk."""

    async def play() -> World:
        world = World(state, **options)
        await world.hosting.start()
        try:
            await story(world)
        finally:
            await world.hosting.stop()
        return world

    world = asyncio.run(play())
    fakes = [line for line in descendants() if "fake_container" in line]
    if fakes:
        raise AssertionError(f"left running: {fakes}")
    if world.left_on_disk():
        raise AssertionError(f"left on disk: {world.left_on_disk()}")
    return world
