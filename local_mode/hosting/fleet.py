"""The instances of a variant or component: as many as wanted, replaced when they fail. Knows no resources."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from local_mode.contracts import Backend, ContainerFailed, ModelData
from local_mode.hosting.instance import Clocks, Folders, Instance
from local_mode.hosting.jobs import all_ended
from local_mode.hosting.logs import note
from local_mode.hosting.model_data import ModelFolders
from local_mode.hosting.plans import Plan
from local_mode.hosting.process_backend import CHANNELS_FOLDER
from local_mode.removal import remove_tree

_ADAPTERS = "adapters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What every fleet needs of this machine."""

    backend: Backend
    folders: ModelFolders
    client: httpx.AsyncClient
    clocks: Clocks
    logs: Path
    """The folder that holds `aws/sagemaker/…`."""
    fleets: set[Fleet] = field(default_factory=set)
    """All that may have something running or on disk: what was cancelled while it cleaned up is found here."""


class Fleet:
    """`changed` is called when the number of serving instances has changed."""

    def __init__(self, plan: Plan, platform: Platform, *, changed: Callable[[], None]) -> None:
        self.plan = plan
        self.instances: list[Instance] = []
        self._platform = platform
        self._changed = changed
        self._home: Path | None = None
        self._data: Mapping[str, Folders] = {}
        self._keepers: dict[Instance, asyncio.Task[None]] = {}
        self._adapters: list[str] = []
        self._leaving: set[asyncio.Task[None]] = set()
        platform.fleets.add(self)

    @property
    def serving(self) -> list[Instance]:
        return [instance for instance in self.instances if instance.serving]

    async def resize(self, count: int) -> None:
        """Start or stop instances until there are `count`. Raises `ContainerFailed`: those that were there go on."""
        if count < len(self.instances):
            await self._dismiss(self.instances[count:])
        if count > len(self.instances):
            await self._prepare()
            fresh = [self._instance() for _ in range(count - len(self.instances))]
            try:
                await together(*(self._start(instance) for instance in fresh))
            except BaseException:
                await self._end(fresh)
                raise
            for instance in fresh:
                self._take(instance)
        self._changed()

    async def stop(self) -> None:
        """Nothing of it runs afterwards, and its model data is gone."""
        try:
            await self._dismiss(self.instances)
        finally:
            if self._leaving:
                await asyncio.wait(self._leaving)
            self._forget_data()
            self._platform.fleets.discard(self)

    async def add_adapter(self, name: str, data: ModelData, *, limit_s: float) -> None:
        """Fetch it and have every instance load it. Raises `ContainerFailed` with the container's words."""
        home = await self._prepare()
        log = self.instances[0].log(self.plan.containers[0].hostname) if self.instances else None
        folder = home / _ADAPTERS / name
        try:
            async with asyncio.timeout(limit_s):
                await self._platform.folders.fetch(
                    data, folder, say=lambda text: note(log, text) if log is not None else None
                )
                await together(*(self._load_adapter(instance, name) for instance in self.serving))
        except TimeoutError as error:
            remove_tree(folder)
            raise ContainerFailed(f"adapter {name} was not ready within {limit_s:g} s") from error
        except BaseException:
            remove_tree(folder)
            raise
        self._adapters.append(name)

    async def remove_adapter(self, name: str) -> None:
        if name not in self._adapters:
            return
        self._adapters.remove(name)
        for instance in self.serving:
            await self._ask(instance, "DELETE", f"/adapters/{name}", None)
        if self._home is not None:
            remove_tree(self._home / _ADAPTERS / name)

    def _instance(self) -> Instance:
        platform = self._platform
        return Instance(
            self.plan, platform.backend, client=platform.client, clocks=platform.clocks, logs=platform.logs
        )

    async def _start(self, instance: Instance) -> None:
        await instance.start(self._data)
        for name in self._adapters:
            await self._load_adapter(instance, name)
        instance.serving = True

    def _take(self, instance: Instance) -> None:
        self.instances.append(instance)
        self._keepers[instance] = asyncio.create_task(self._keep(instance))

    async def _dismiss(self, instances: list[Instance]) -> None:
        leaving = list(instances)
        self.instances = [instance for instance in self.instances if instance not in leaving]
        await self._end(leaving)

    async def _end(self, instances: list[Instance]) -> None:
        """Stop them. It goes on when the caller is cancelled; `stop` waits for it."""
        task = asyncio.create_task(self._stop_all(instances))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        await asyncio.shield(task)

    async def _stop_all(self, instances: list[Instance]) -> None:
        keepers = [self._keepers.pop(instance) for instance in instances if instance in self._keepers]
        for keeper in keepers:
            keeper.cancel()
        if keepers:
            await asyncio.wait(keepers)
        await all_ended(*(instance.stop() for instance in instances))

    async def _keep(self, instance: Instance) -> None:
        """Wait until it fails, then replace it, with growing pauses, until one starts."""
        reason = await instance.ended()
        instance.serving = False
        self._changed()
        log = instance.log(self.plan.containers[0].hostname)
        note(log, f"this instance is replaced: {reason}")
        try:
            await instance.stop()
        except ContainerFailed as error:
            note(log, f"what is left of it could not be stopped: {error}")
        pause_s = self._platform.clocks.first_backoff_s
        while True:
            await asyncio.sleep(pause_s)
            fresh = self._instance()
            try:
                await self._start(fresh)
            except ContainerFailed as error:
                await fresh.stop()
                pause_s = min(2 * pause_s, self._platform.clocks.max_backoff_s)
                note(log, f"the replacement {fresh.id} failed, the next one starts in {pause_s:g} s: {error}")
                continue
            except BaseException:
                await fresh.stop()
                raise
            break
        # Between here and the return there is no await: nobody sees the fleet without either of them.
        self._keepers.pop(instance, None)
        self.instances.remove(instance)
        self._take(fresh)
        self._changed()

    async def _prepare(self) -> Path:
        """Fetch model data, once. Raises `ContainerFailed`; then nothing of it is on disk."""
        if self._home is not None:
            return self._home
        self._home = self._platform.folders.make()
        first = self._instance()
        try:
            async with asyncio.timeout(self.plan.download_limit_s):
                self._data = {
                    spec.hostname: await self._fetch(number, first.log(spec.hostname))
                    for number, spec in enumerate(self.plan.containers)
                }
        except TimeoutError as error:
            self._forget_data()
            raise ContainerFailed(
                f"Model data for {self.plan.label} was not downloaded within {self.plan.download_limit_s:g} s "
                "(ModelDataDownloadTimeoutInSeconds)"
            ) from error
        except BaseException:
            self._forget_data()
            raise
        return self._home

    async def _fetch(self, number: int, log: Path) -> Folders:
        spec = self.plan.containers[number]
        home = (self._home or self._platform.folders.make()) / str(number)
        home.mkdir()
        folders = self._platform.folders

        def say(text: str) -> None:
            note(log, text)

        model = home / "model"
        if spec.model_data is None:
            model.mkdir()
        else:
            model = await folders.fetch(spec.model_data, model, say=say)
        channels = {
            channel: await folders.fetch(data, home / f"channel-{channel}", say=say)
            for channel, data in spec.additional_model_data.items()
        }
        if self.plan.is_component:
            channels[_ADAPTERS] = home.parent / _ADAPTERS
            channels[_ADAPTERS].mkdir(exist_ok=True)
        return Folders(model, channels)

    def _forget_data(self) -> None:
        if self._home is not None:
            remove_tree(self._home)
        self._home, self._data = None, {}

    async def _load_adapter(self, instance: Instance, name: str) -> None:
        base_dir = next(iter(instance.containers.values())).base_dir
        source = f"{base_dir}/{CHANNELS_FOLDER}/{_ADAPTERS}/{name}"
        body = {"name": name, "src": source, "preload": True, "pin": False}
        answer = await self._ask(instance, "POST", "/adapters", body)
        if answer is None:
            raise ContainerFailed(f"Adapter {name}: the base container gave no answer to POST /adapters")
        if not answer.is_success:
            text = " ".join(answer.text.split())[:600]
            raise ContainerFailed(f"Adapter {name}: the base container answered {answer.status_code}: {text}")

    async def _ask(
        self, instance: Instance, method: str, path: str, body: dict[str, object] | None
    ) -> httpx.Response | None:
        url = next(iter(instance.containers.values())).base_url
        try:
            return await self._platform.client.request(
                method, f"{url}{path}", json=body, timeout=self.plan.startup_limit_s
            )
        except httpx.HTTPError:
            return None


async def together(*steps: Awaitable[None]) -> None:
    """Run them side by side. Raises the first failure, after the others have been cancelled and have cleaned up."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    if not tasks:
        return
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    failures = [task.exception() for task in tasks if not task.cancelled()]
    for failure in failures:
        if failure is not None:
            raise failure
