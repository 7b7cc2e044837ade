"""Takes one invocation to its container: routing, injected faults, the platform's headers, sessions, and the errors
that a container's behaviour is to the client. Knows nothing of how the client is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from local_mode.contracts import Routing, ServiceError, Target
from local_mode.runtime import failures
from local_mode.runtime.container_client import (
    Answer,
    AnswerBroken,
    ContainerClient,
    NotAccepted,
    NotAnswered,
)
from local_mode.runtime.faults import FaultPlan, Injected
from local_mode.runtime.request import NEW_SESSION, PLATFORM_HEADERS, PREFIX, Members
from local_mode.runtime.settings import RuntimeSettings

_INJECTED_ERROR = b'{"error":"injected by a fault of the emulator","error_type":"fault"}'


class Carrier:
    def __init__(self, routing: Routing, settings: RuntimeSettings) -> None:
        self.settings = settings
        self._routing = routing
        self._plan = FaultPlan(settings.faults, seed=settings.seed)
        self._client = ContainerClient(accept_s=settings.clocks.accept_s)

    async def aclose(self) -> None:
        await self._client.aclose()

    def draw_faults(self, endpoint: str) -> Injected:
        """Once for each invocation. Raises the `ServiceError` of a fault of the platform."""
        injected = self._plan.draw(endpoint)
        error = _platform_error(endpoint, injected)
        if error is not None:
            raise error
        return injected

    def draw_container_faults(self, endpoint: str) -> Injected:
        """For an invocation that the platform has accepted before."""
        return self._plan.draw(endpoint)

    @contextmanager
    def target(self, members: Members, *, component: str | None = None) -> Iterator[Target]:
        """Raises `ServiceError` (ValidationError) when there is none."""
        session_id = members.get("sessionId")
        target = self._routing.target(
            members.endpoint,
            variant=members.get("targetVariant"),
            component=component or members.get("inferenceComponentName"),
            hostname=members.get("targetContainerHostname"),
            session_id=None if session_id == NEW_SESSION else session_id,
        )
        try:
            yield target
        finally:
            self._routing.finished(target)

    @asynccontextmanager
    async def ask(
        self,
        target: Target,
        members: Members,
        body: bytes,
        *,
        injected: Injected,
        platform_headers: Iterable[tuple[str, str]] = PLATFORM_HEADERS,
    ) -> AsyncIterator[Answer]:
        """The container's answer. Leaving the context early closes the connection to the container.

        Raises `ServiceError` (ModelError) for a container that gives none, or breaks off while the caller reads.
        """
        try:
            await self._inject(target, injected)
            async with self._client.post(
                f"{target.base_url}/invocations",
                headers=(*platform_headers, *members.container_headers, *_adapter_header(target)),
                body=body,
            ) as answer:
                yield answer
        except (NotAccepted, NotAnswered) as error:
            raise failures.container_failed(target, str(error)) from error
        except AnswerBroken as error:
            raise failures.container_failed(target, "The connection was closed within the answer") from error

    async def refuse_errors(self, target: Target, answer: Answer) -> None:
        """Raises `ServiceError` (ModelError) unless the status is a success."""
        if answer.is_success:
            return
        body, complete = await answer.read(failures.MAX_QUOTED_BYTES)
        raise failures.container_answered(target, answer.status, body, complete=complete)

    def note_sessions(self, members: Members, target: Target, answer: Answer) -> list[tuple[str, str]]:
        """Tell routing of sessions that the container opened or closed; returns the headers for the client.

        Containers say a new session's id in either of two headers: the second is also LMI's for any answer within a
        session, so that it counts only where a new one was asked for.
        """
        opened = answer.headers.get(PREFIX + "New-Session-Id")
        if opened is None and members.get("sessionId") == NEW_SESSION:
            opened = answer.headers.get(PREFIX + "Session-Id")
        closed = answer.headers.get(PREFIX + "Closed-Session-Id")
        headers = []
        if opened:
            self._routing.opened_session(opened.partition(";")[0].strip(), target)
            headers.append((PREFIX + "New-Session-Id", opened))
        if closed:
            self._routing.closed_session(closed.strip())
            headers.append((PREFIX + "Closed-Session-Id", closed))
        return headers

    async def _inject(self, target: Target, injected: Injected) -> None:
        """Faults between the platform and the container; the clocks of the caller run meanwhile."""
        accept_s = self.settings.clocks.accept_s
        if injected.has("latency"):
            await asyncio.sleep(injected.number("latency") / 1000)
        if injected.has("no-accept") or injected.has("slow-accept"):
            slow_s = injected.number("slow-accept") / 1000 if injected.has("slow-accept") else accept_s
            await asyncio.sleep(min(slow_s, accept_s))
            if slow_s >= accept_s:
                raise NotAccepted("The connection was not accepted in time")
        if injected.has("timeout"):
            raise_after_s = injected.number("timeout")
            if raise_after_s:
                await asyncio.sleep(raise_after_s)
                raise TimeoutError
            await asyncio.get_running_loop().create_future()
        if injected.has("model-error"):
            raise failures.container_answered(target, int(injected.number("model-error")), _INJECTED_ERROR)


def _adapter_header(target: Target) -> tuple[tuple[str, str], ...]:
    return ((PREFIX + "Adapter-Identifier", target.adapter),) if target.adapter is not None else ()


def _platform_error(endpoint: str, injected: Injected) -> ServiceError | None:
    if injected.has("internal-failure"):
        return ServiceError("InternalFailure", "An internal failure occurred.", status=500)
    if injected.has("model-not-ready"):
        return ServiceError("ModelNotReadyException", f"Model for {endpoint} is not ready.", status=429)
    if injected.number("throttling") == 429:
        return ServiceError("ThrottlingException", "Rate exceeded", status=429)
    if injected.has("throttling"):
        return ServiceError(
            "ServiceUnavailable", "The service is unavailable. Try your call again.", status=503
        )
    return None


def answer_headers(target: Target, answer: Answer) -> list[tuple[str, str]]:
    """What clients of every operation see of an answer beside its content."""
    headers = [("x-Amzn-Invoked-Production-Variant", target.variant)]
    attributes = answer.headers.get(PREFIX + "Custom-Attributes")
    if attributes is not None:
        headers.append((PREFIX + "Custom-Attributes", attributes))
    return headers
