"""Main of the engine process: boot, then poll fronts, step, deliver, until a stop or a failure.

Owns the order of these and the ways the process ends. It must not know models or scheduling.

PID 1 decides when it ends: SIGTERM finishes the current step, ends what is left with an error and exits with
0; SIGINT (a Ctrl-C meant for PID 1) is ignored. Whatever breaks is logged once and exits with 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, Protocol

import msgspec
from setproctitle import setproctitle

from serving import huge_pages, logs
from serving.config import ENGINE_SOCKET, RUN_CONFIG_FILE, ServerConfig, Stage
from serving.engine.pages_ahead import PagesAhead
from serving.engine.rank_group import RankDied
from serving.engine.weights_ahead import bytes_on_host
from serving.errors import InvalidRequest, RequestError, ServingError, StartupError, to_wire
from serving.ipc.lifeline import die_with_parent
from serving.ipc.server import EngineHub, FrontClosed, FrontEvent, front_of
from serving.messages import (
    AbortRequest,
    AddRequest,
    CloseSession,
    CommandReply,
    EngineFailed,
    EngineReady,
    OpenSession,
    Ping,
    RequestAccepted,
    SequenceOutput,
    SessionOpened,
    StepOutputs,
)
from serving.torch_import import put_off_meta_kernels

if TYPE_CHECKING:
    from serving.engine.core import EngineCore

_RANK_DEATH_GRACE_S = 0.25
_LAST_WORDS_S = 0.5
_STOPPING = "the server is stopping"

logger = logging.getLogger(__name__)


class BootOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the model lies and who wants to know how loading goes."""

    declared: ServerConfig
    model_dir: str
    model_id: str
    revision: str | None
    run_dir: Path
    report: Callable[[Stage], None]
    on_rank_death: Callable[[str], None]


class BuildCore(Protocol):
    def __call__(self, options: BootOptions) -> tuple[EngineCore, EngineReady]: ...


def build_core(options: BootOptions) -> tuple[EngineCore, EngineReady]:
    """From the declared configuration to an engine that can serve. Raises `StartupError`."""
    from serving.engine.start_clock import StartClock

    clock = StartClock(since_exec=True)
    clock.mark("interpreter")
    if num_bytes := bytes_on_host(Path(options.model_dir), options.declared):
        huge_pages.touch_ahead(num_bytes)
    put_off_meta_kernels()
    from serving.engine.boot import boot
    from serving.kernels.cpu.native.placement import main_core

    booted = boot(
        options.declared,
        model_dir=options.model_dir,
        model_id=options.model_id,
        revision=options.revision,
        run_dir=options.run_dir,
        report=options.report,
        on_rank_death=options.on_rank_death,
        clock=clock,
    )
    return booted.core, booted.core.ready(architecture=booted.architecture, planning_core=main_core())


def main(arguments: Sequence[str] | None = None, *, build: BuildCore = build_core) -> int:
    """Returns 0 after a stop; any failure ends the process with status 1 from within."""
    options = _parse(arguments)
    setproctitle("engine")
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    declared = msgspec.json.decode((options.run_dir / RUN_CONFIG_FILE).read_bytes(), type=ServerConfig)
    logs.configure("engine", level=declared.runtime.log_level, json_output=declared.runtime.json_logs)
    process = EngineProcess(options.run_dir / ENGINE_SOCKET, stage_fd=options.stage_fd)
    threading.excepthook = process.thread_died
    try:
        process.run(
            build,
            BootOptions(
                declared=declared,
                model_dir=options.model_dir,
                model_id=options.model_id,
                revision=options.revision,
                run_dir=options.run_dir,
                report=process.report,
                on_rank_death=process.rank_died,
            ),
        )
    except Exception as error:
        process.fail(error)
    return 0


class EngineProcess:
    """The process around the loop: what PID 1 and the fronts are told, and how it ends."""

    def __init__(self, socket_path: Path, *, stage_fd: int | None = None) -> None:
        self._socket_path = socket_path
        self._stage_fd = stage_fd
        self._hub: EngineHub | None = None
        self._loop: EngineLoop | None = None
        self._failing = threading.Lock()

    def run(self, build: BuildCore, options: BootOptions) -> None:
        """Boot, serve until SIGTERM, close. What it raises goes to `fail`."""
        core, ready = build(options)
        hub = self._hub = EngineHub(self._socket_path, ready)
        pages = PagesAhead(core.share_of_cache_ever_used, core.has_work)
        loop = self._loop = EngineLoop(core, hub, when_done=pages.engine_is_idle)

        def stop(number: int, frame: FrameType | None) -> None:
            loop.stop()

        signal.signal(signal.SIGTERM, stop)
        self.report(Stage(stage="ready"))
        logs.event(logger, logging.INFO, "ready", **_facts(ready))
        loop.run()
        logs.event(logger, logging.INFO, "stopped")
        hub.close()
        core.close()

    def report(self, stage: Stage) -> None:
        """One line of JSON for PID 1."""
        if self._stage_fd is not None:
            os.write(self._stage_fd, msgspec.json.encode(stage) + b"\n")

    def rank_died(self, reason: str) -> None:
        """Called in a thread of its own. The main thread gets a moment to end by itself: it may be idle, in a
        collective that breaks, or in one that never returns."""
        if self._loop is not None:
            self._loop.break_off(reason)
        threading.Event().wait(_RANK_DEATH_GRACE_S)
        self.fail(RankDied(reason))

    def thread_died(self, arguments: threading.ExceptHookArgs) -> None:
        """A thread ended by an error nobody expected: somebody would wait for its work for ever."""
        if isinstance(arguments.exc_value, Exception):
            self.fail(arguments.exc_value)

    def fail(self, error: Exception) -> NoReturn:
        """Log once, tell the fronts and PID 1, end the process. No clean-up: after a failure, closing a device
        or a group of ranks may never return. A second thread that comes here waits for the end."""
        self._failing.acquire()
        expected = isinstance(error, StartupError | RankDied)
        logger.error("engine failed: %s", error, exc_info=None if expected else error)
        try:
            if self._hub is not None:
                self._hub.broadcast(EngineFailed(reason=_public_reason(error)))
                self._hub.flush(_LAST_WORDS_S)
            detail = error.message if isinstance(error, ServingError) else f"{type(error).__name__}: {error}"
            self.report(Stage(stage="failed", detail=detail))
        finally:
            logging.shutdown()
            os._exit(1)


class EngineLoop:
    """Between two steps it answers the fronts; with nothing to do it sleeps until a front speaks. `when_done` is called
    whenever the last request is done."""

    def __init__(
        self, core: EngineCore, hub: EngineHub, *, when_done: Callable[[], None] | None = None
    ) -> None:
        self._core = core
        self._hub = hub
        self._when_done = when_done
        self._has_worked = False
        self._stopping = False
        self._broken_reason: str | None = None
        self._checked = False
        core.call_on_compiled(hub.wake)

    def run(self) -> None:
        """Serve until `stop`, then end what is left. Raises what escapes a step, or `RankDied`."""
        while not self._stopping:
            self._turn()
        self._hub.deliver(self._core.fail_all(_STOPPING))
        self._hub.flush(_LAST_WORDS_S)

    def stop(self) -> None:
        """End after the current step. Safe in signal handlers and other threads."""
        self._stopping = True
        self._hub.wake()

    def break_off(self, reason: str) -> None:
        """A rank died: the next turn raises `RankDied`. For other threads."""
        self._broken_reason = reason
        self._hub.wake()

    def _turn(self) -> None:
        busy = self._core.has_work()
        if not busy and not self._checked:
            self._core.check()
        self._checked = not busy
        if self._has_worked and not busy:
            self._has_worked = False
            if self._when_done is not None:
                self._when_done()
        sessions = self._core.sessions
        events = self._hub.poll(0.0 if busy else sessions.seconds_to_expiry(time.monotonic()))
        sessions.expire(time.monotonic())
        for event in events:
            self._take(event)
        if self._broken_reason is not None:
            raise RankDied(self._broken_reason)
        for request_id, error in self._core.take_admissions():
            self._answer(front_of(request_id), request_id, error)
        if self._core.has_work():
            self._hub.deliver(self._core.step())
            self._has_worked = True

    def _take(self, event: FrontEvent) -> None:
        front_id, message = event
        if isinstance(message, AddRequest):
            self._admit(front_id, message)
        elif isinstance(message, AbortRequest):
            self._core.abort(message.request_id, message.index)
        elif isinstance(message, Ping):
            self._hub.send(front_id, CommandReply(nonce=message.nonce, stats=self._core.stats()))
        elif isinstance(message, FrontClosed):
            self._core.abort_front(front_id)
        elif isinstance(message, OpenSession | CloseSession):
            self._hub.send(front_id, self._manage(message))
        else:
            refusal = InvalidRequest("adapters are not served by this version", field="adapter_id")
            self._hub.send(front_id, CommandReply(nonce=message.nonce, error=to_wire(refusal)))

    def _manage(self, message: OpenSession | CloseSession) -> CommandReply:
        sessions = self._core.sessions
        try:
            if isinstance(message, CloseSession):
                sessions.close(message.session_id)
                return CommandReply(nonce=message.nonce)
            session_id = sessions.open(time.monotonic())
        except RequestError as error:
            return CommandReply(nonce=message.nonce, error=to_wire(error))
        opened = SessionOpened(session_id=session_id, expires_at_s=time.time() + sessions.ttl_s)
        return CommandReply(nonce=message.nonce, session=opened)

    def _admit(self, front_id: str, message: AddRequest) -> None:
        try:
            admitted = self._core.add_request(message)
        except RequestError as error:
            self._answer(front_id, message.request_id, error)
            return
        if admitted:
            self._answer(front_id, message.request_id, None)

    def _answer(self, front_id: str, request_id: str, error: RequestError | None) -> None:
        if error is None:
            self._hub.send(front_id, RequestAccepted(request_id=request_id))
            return
        refusal = SequenceOutput(request_id=request_id, finish_reason="error", error=to_wire(error))
        self._hub.send(front_id, StepOutputs(outputs=[refusal]))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="engine", description="The engine process; started by the container."
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="private folder with server.json")
    parser.add_argument("--model-dir", required=True, help="folder of the model files")
    parser.add_argument("--model-id", required=True, help="name the model is served under")
    parser.add_argument("--revision", help="commit of the model files")
    parser.add_argument("--stage-fd", type=int, help="descriptor for one JSON stage per line")
    return parser.parse_args(arguments)


def _public_reason(error: Exception) -> str:
    """What clients may read: no paths, no addresses."""
    return "a rank of the engine died" if isinstance(error, RankDied) else "the engine failed"


def _facts(ready: EngineReady) -> dict[str, object]:
    return {name: value for name, value in msgspec.structs.asdict(ready).items() if value not in (None, "")}


if __name__ == "__main__":
    sys.exit(main())
