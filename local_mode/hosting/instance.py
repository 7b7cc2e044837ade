"""One instance of a variant, or one copy of a component: its containers, started, pinged and stopped together.

Knows no resources and no other instances.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from local_mode.contracts import Backend, Container, ContainerFailed
from local_mode.hosting.jobs import all_ended
from local_mode.hosting.logs import last_words
from local_mode.hosting.plans import Plan

_PING_HEADERS = {"User-Agent": "AHC/2.0", "Host": "model.aws.local:8080", "Accept": "*/*"}
_MAX_BODY = 300
_LOOK_S = 0.2
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The platform's times (spec section 1.5), settable for tests."""

    ping_limit_s: float = 2.0
    first_poll_s: float = 0.1
    first_polls_for_s: float = 60.0
    poll_s: float = 2.0
    """Between pings of a container that is slow to start; the platform's are 5 s apart at most."""
    watch_s: float = 5.0
    """Between pings of a container in service."""
    unhealthy_after: int = 3
    """Pings in a row that failed before a container in service is replaced."""
    first_backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    grace_s: float = 30.0
    """From SIGTERM to SIGKILL."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Model data of one container."""

    model: Path
    channels: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Pong:
    status: int
    """0: no answer."""
    text: str

    def __str__(self) -> str:
        return f"{self.status} {self.text}".strip() if self.status else self.text


class Instance:
    """Started once, stopped once. `serving` and `outstanding` are for routing."""

    def __init__(
        self, plan: Plan, backend: Backend, *, client: httpx.AsyncClient, clocks: Clocks, logs: Path
    ) -> None:
        self.plan = plan
        self.id = f"i-{secrets.token_hex(9)[:17]}"
        self.serving = False
        self.outstanding = 0
        self.containers: dict[str, Container] = {}
        self._backend = backend
        self._client = client
        self._clocks = clocks
        self._logs = logs

    @property
    def log_stream(self) -> str:
        return f"{self.plan.variant}/{self.id}"

    def log(self, hostname: str) -> Path:
        """`<variant>/<instance>.log` of the only container, `<variant>/<instance>/<container>.log` of one among several."""
        stream = f"{self.log_stream}/{hostname}" if self.plan.takes_hostname else self.log_stream
        return self._logs / self.plan.log_group.lstrip("/") / f"{stream}.log"

    async def start(self, folders: Mapping[str, Folders]) -> None:
        """Until every container answers /ping with 200. Raises `ContainerFailed`; then nothing of it runs."""
        try:
            for spec in self.plan.containers:
                place = folders[spec.hostname]
                self.containers[spec.hostname] = await self._backend.start(
                    dataclasses.replace(spec, name=f"{spec.name}/{next(_numbers)}"),
                    model_dir=place.model,
                    channels=place.channels,
                    log=self.log(spec.hostname),
                )
            deadline_s = time.monotonic() + self.plan.startup_limit_s
            for hostname in self.containers:
                await self._until_ready(hostname, deadline_s)
        except BaseException:
            await self.stop()
            raise

    async def ended(self) -> str:
        """Waits while it serves well; returns why it must be replaced."""
        failed = dict.fromkeys(self.containers, 0)
        while True:
            await self._pause(self._clocks.watch_s)
            for hostname, container in self.containers.items():
                if container.ending is not None:
                    return self._dead(hostname)
                pong = await self.ping(hostname)
                failed[hostname] = 0 if pong.status == httpx.codes.OK else failed[hostname] + 1
                if failed[hostname] >= self._clocks.unhealthy_after:
                    return f"{self._unhealthy(hostname)} /ping answered: {pong}"

    async def stop(self) -> None:
        self.serving = False
        await all_ended(
            *(container.stop(grace_s=self._clocks.grace_s) for container in self.containers.values())
        )

    async def ping(self, hostname: str) -> Pong:
        """One attempt, as the platform makes it."""
        try:
            async with asyncio.timeout(self._clocks.ping_limit_s):
                answer = await self._client.get(
                    f"{self.containers[hostname].base_url}/ping", headers=_PING_HEADERS
                )
        except TimeoutError:
            return Pong(0, f"nothing within {self._clocks.ping_limit_s:g} s")
        except httpx.HTTPError as error:
            return Pong(0, f"nothing ({type(error).__name__})")
        return Pong(answer.status_code, " ".join(answer.text.split())[:_MAX_BODY])

    async def _until_ready(self, hostname: str, deadline_s: float) -> None:
        began_s = time.monotonic()
        while (pong := await self.ping(hostname)).status != httpx.codes.OK:
            for name, container in self.containers.items():
                if container.ending is not None:
                    raise ContainerFailed(self._dead(name))
            now_s = time.monotonic()
            if now_s >= deadline_s:
                raise ContainerFailed(
                    f"{self._unhealthy(hostname)} Within {self.plan.startup_limit_s:g} s /ping last answered: {pong}"
                )
            early = now_s - began_s < self._clocks.first_polls_for_s
            pause_s = self._clocks.first_poll_s if early else self._clocks.poll_s
            await self._pause(min(pause_s, deadline_s - now_s))

    async def _pause(self, limit_s: float) -> None:
        """Shorter when a container ends meanwhile."""
        until_s = time.monotonic() + limit_s
        while (left_s := until_s - time.monotonic()) > 0:
            if any(container.ending is not None for container in self.containers.values()):
                return
            await asyncio.sleep(min(left_s, _LOOK_S))

    def _unhealthy(self, hostname: str) -> str:
        return (
            f"The {hostname} container for {self.plan.label} did not pass the ping health check. "
            "Please check CloudWatch logs for this endpoint."
        )

    def _dead(self, hostname: str) -> str:
        words = last_words(self.log(hostname))
        because = f": {words}" if words else " and logged nothing"
        return f"{self._unhealthy(hostname)} It {self.containers[hostname].ending}{because}"
