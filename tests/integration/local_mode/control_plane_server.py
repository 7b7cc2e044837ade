"""The control plane alone on a real port, in this process: hosting only writes down what a real one would at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from local_mode.app import application
from local_mode.control.arns import Arns
from local_mode.control.operations import operations
from local_mode.control.protocol import ControlPlane
from local_mode.control.resources import SqliteResources
from local_mode.control.server import bind
from local_mode.sessions import LocalSession

REGION = "eu-central-1"
_DELAY_S = 0.2


class QuickHosting:
    """The `Hosting` role without containers: what was asked has come true after a moment."""

    def __init__(self, resources: SqliteResources) -> None:
        self._resources = resources
        self.events: list[str] = []

    async def start(self) -> None:
        self.events.append("start")

    async def stop(self) -> None:
        self.events.append("stop")

    def endpoint_created(self, name: str) -> None:
        status = "Failed" if name.startswith("bad") else "InService"
        self._later(
            lambda: self._resources.change("endpoint", name, EndpointStatus=status, FailureReason="because")
        )

    def endpoint_updated(self, name: str, *, config_name: str) -> None:
        self._later(
            lambda: self._resources.change(
                "endpoint",
                name,
                EndpointStatus="InService",
                EndpointConfigName=config_name,
                PendingDeploymentSummary=None,
            )
        )

    def endpoint_rescaled(self, name: str) -> None:
        self._later(lambda: self._resources.change("endpoint", name, EndpointStatus="InService"))

    def endpoint_deleted(self, name: str) -> None:
        self._later(lambda: self._resources.remove("endpoint", name))

    def component_created(self, name: str) -> None:
        self.component_updated(name)

    def component_updated(self, name: str) -> None:
        self._later(
            lambda: self._resources.change("inference-component", name, InferenceComponentStatus="InService")
        )

    def component_deleted(self, name: str) -> None:
        self._later(lambda: self._resources.remove("inference-component", name))

    def _later(self, act: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_later(_DELAY_S, act)


@contextmanager
def control_plane(state_dir: Path) -> Iterator[tuple[LocalSession, QuickHosting]]:
    """Clients for it, and the hosting behind it."""
    resources = SqliteResources(state_dir, Arns(REGION))
    hosting = QuickHosting(resources)
    app = application(ControlPlane(operations(resources, hosting)), parts=[hosting])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=5))
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield LocalSession(f"http://127.0.0.1:{bound.getsockname()[1]}", REGION), hosting
        finally:
            server.should_exit = True
            thread.join()
            resources.close()
