"""The emulator as a process: its folder, its socket, its parts put together, until a signal ends it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from local_mode.app import application
from local_mode.control.arns import ACCOUNT, Arns
from local_mode.control.greeting import greeting
from local_mode.control.operations import operations
from local_mode.control.protocol import BotocoreTooOld, ControlPlane
from local_mode.control.resources import SqliteResources, StateUnreadable
from local_mode.control.server import StartFailed, bind, serve
from local_mode.control.state_folder import FolderTaken, StateFolder, url_of
from local_mode.hosting import NoDocker, build
from local_mode.playground import BrowserGuard, Playground
from local_mode.runtime import Fault, RuntimeSettings, parse_fault, runtime
from local_mode.settings import Settings, has_credentials

if TYPE_CHECKING:
    from starlette.applications import Starlette


class EmulatorFailed(Exception):
    """The emulator cannot run. The message is for the user."""


def run(settings: Settings, *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT; then its containers have ended. Raises `EmulatorFailed`."""
    _log_to_stderr()
    faults = _faults(settings)
    folder = StateFolder(settings.state_dir)
    try:
        bound = bind(host, port)
    except OSError as error:
        raise EmulatorFailed(
            f"port {port} of {host} cannot be used ({error.strerror}): give another --port, or 0 for a free one"
        ) from error
    port = bound.getsockname()[1]
    text = greeting(
        url_of(host, port),
        region=settings.region,
        state_dir=str(folder.path),
        has_credentials=has_credentials(settings.environment),
    )
    with bound:
        try:
            with (
                folder.taken(host=host, port=port, region=settings.region),
                _composed(settings, folder, faults, host=host) as app,
            ):
                serve(app, bound, ready=lambda: say(text))
        except (FolderTaken, StateUnreadable, StartFailed, NoDocker, BotocoreTooOld) as error:
            raise EmulatorFailed(str(error)) from error


@contextlib.contextmanager
def _composed(
    settings: Settings, folder: StateFolder, faults: tuple[Fault, ...], *, host: str
) -> Iterator[Starlette]:
    resources = SqliteResources(folder.path, Arns(settings.region))
    try:
        built = build(
            resources,
            state_dir=folder.path,
            backend=settings.backend,
            region=settings.region,
            account=ACCOUNT,
            environment=settings.environment,
        )
        invocations = runtime(
            routing=built.routing,
            storage=built.storage,
            resources=resources,
            settings=RuntimeSettings(faults=faults, state_dir=folder.path),
        )
        control = ControlPlane(operations(resources, built.hosting))
        playground = Playground(resources=resources, containers=built.placement, logs=built.logs)
        yield application(
            control,
            parts=[built.hosting, invocations, playground],
            routes=[*invocations.routes, *playground.routes],
            middleware=[Middleware(BrowserGuard, host=host)],
        )
    finally:
        resources.close()


def _faults(settings: Settings) -> tuple[Fault, ...]:
    try:
        return tuple(parse_fault(text) for text in settings.faults)
    except ValueError as error:
        raise EmulatorFailed(str(error)) from error


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in ("httpx", "httpcore", "botocore", "uvicorn", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
