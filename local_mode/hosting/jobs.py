"""One job at a time per queue, in the order they were asked for, and steps side by side. Knows nothing of what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

Job = Callable[[], Awaitable[None]]


async def all_ended(*steps: Awaitable[None]) -> None:
    """Run them side by side, each to its end whatever becomes of the others. Raises the first failure after that."""
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


class Leaving:
    """What has been replaced and is being stopped, by the name of its resource, while its successor serves."""

    def __init__(self) -> None:
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}

    def begin(self, name: str, stop: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(stop)
        tasks = self._tasks.setdefault(name, set())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def ended(self, name: str) -> None:
        """Returns when nothing of it is left."""
        if tasks := self._tasks.pop(name, None):
            await asyncio.wait(tasks)


class Jobs:
    """`failed` is told of every exception that a job did not handle itself, with the name of the job's resource."""

    def __init__(self, failed: Callable[[str, BaseException], None]) -> None:
        self._failed = failed
        self._last: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str, job: Job, *, queue: str | None = None, instead: bool = False) -> None:
        """Run `job` after those before it in `queue` (that of `name` by default); with `instead` these are cancelled."""
        place = queue or name
        previous = self._last.get(place)
        task = asyncio.create_task(self._run(previous, job, instead=instead))
        self._last[place] = task
        task.add_done_callback(lambda ended: self._ended(name, place, ended))

    async def stop(self) -> None:
        """Cancel all and wait until they have cleaned up."""
        tasks = list(self._last.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, previous: asyncio.Task[None] | None, job: Job, *, instead: bool) -> None:
        if previous is not None and not previous.done():
            if instead:
                previous.cancel()
            try:
                await asyncio.wait([previous])
            except asyncio.CancelledError:
                # Whoever cancels the last job of a name cancels those that wait before it.
                previous.cancel()
                await asyncio.wait([previous])
                raise
        await job()

    def _ended(self, name: str, place: str, task: asyncio.Task[None]) -> None:
        if self._last.get(place) is task:
            del self._last[place]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(name, error)
