"""InvokeEndpointAsync: requests are accepted, wait, and go to their container when it has room; results go to storage.

No notice is sent to SNS topics: clients look at the output and failure locations. Failures always have a location:
where the endpoint's configuration names no S3FailurePath they stand beside the outputs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

from local_mode.contracts import ObjectStorage, Resources, ServiceError, Target
from local_mode.runtime import failures
from local_mode.runtime.async_queue import AsyncQueue, AsyncRequest, new_key
from local_mode.runtime.carrier import Carrier
from local_mode.runtime.exchange import Exchange
from local_mode.runtime.failures import invalid
from local_mode.runtime.request import ASYNC, ASYNC_PLATFORM_HEADERS, PREFIX, Members

_LOG = logging.getLogger(__name__)


class AsyncInference:
    """Accepts requests at any time; answers them between `start` and `stop`."""

    def __init__(self, carrier: Carrier, storage: ObjectStorage, resources: Resources) -> None:
        self._carrier = carrier
        self._settings = carrier.settings
        self._storage = storage
        self._resources = resources
        state_dir = self._settings.state_dir
        self._queue = AsyncQueue(state_dir / "async" if state_dir else None)
        self._running: dict[str, set[asyncio.Task[None]]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._without_notices: set[str] = set()

    async def start(self) -> None:
        self._poller = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """What is running is given up; with a state folder it runs again after the next start."""
        tasks = {task for tasks in self._running.values() for task in tasks}
        if self._poller is not None:
            tasks.add(self._poller)
            self._poller = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def __call__(self, exchange: Exchange) -> None:
        """The operation: 202, or an error that can be told before the container is asked."""
        members = exchange.members(ASYNC)
        config = self._config(members.endpoint)
        try:
            body = await exchange.body(self._settings.async_inline_limit_bytes)
        except ServiceError as error:
            raise invalid(
                f"Body has more than {self._settings.async_inline_limit_bytes} bytes; give larger inputs by InputLocation."
            ) from error
        self._carrier.draw_faults(members.endpoint)
        if bool(body) == bool(members.get("inputLocation")):
            raise invalid("Exactly one of Body and InputLocation must be given to InvokeEndpointAsync.")
        request = self._request(members, config)
        self._queue.add(request, body if body else None)
        self._fill(members.endpoint)
        content = json.dumps({"InferenceId": request.inference_id}).encode()
        locations = [
            (PREFIX + "OutputLocation", request.output_location),
            (PREFIX + "FailureLocation", request.failure_location),
        ]
        await exchange.answer(202, [("content-type", "application/json"), *locations], content)

    def _config(self, endpoint: str) -> dict[str, Any]:
        """The endpoint's AsyncInferenceConfig. Raises `ServiceError` (ValidationError)."""
        record = self._resources.get("endpoint", endpoint)
        config = record.get("_Deployed", {}).get("config")
        if config is None:  # not deployed yet; later the configuration may be deleted
            config = self._resources.get("endpoint-config", record["EndpointConfigName"])
        found: dict[str, Any] | None = config.get("AsyncInferenceConfig")
        if found is None:
            raise invalid(
                f"Endpoint {endpoint} is not asynchronous: its configuration {record['EndpointConfigName']} has no "
                "AsyncInferenceConfig."
            )
        return found

    def _request(self, members: Members, config: dict[str, Any]) -> AsyncRequest:
        output = config.get("OutputConfig", {})
        path = output.get("S3OutputPath")
        if not path:
            raise invalid(
                "AsyncInferenceConfig.OutputConfig.S3OutputPath is missing: the emulator has no bucket of its own. "
                "Set it to s3://… or file://…"
            )
        if output.get("NotificationConfig") and members.endpoint not in self._without_notices:
            self._without_notices.add(members.endpoint)
            _LOG.warning(
                "endpoint %s: notices to SNS topics are not emulated, none is sent", members.endpoint
            )
        arrived_s = time.time()
        inference_id = members.get("inferenceId") or str(uuid.uuid4())
        folder = path.rstrip("/")
        extension = (members.get("s3OutputPathExtension") or "").strip("/")
        if extension:
            folder = f"{folder}/{extension}"
        # An id may hold any printable character: what could leave the folder is replaced.
        file_id = re.sub(r"[^a-zA-Z0-9._-]|^\.+", "-", inference_id)
        failure_folder = (output.get("S3FailurePath") or path).rstrip("/")
        return AsyncRequest(
            endpoint=members.endpoint,
            inference_id=inference_id,
            arrived_s=arrived_s,
            ttl_s=members.seconds("requestTTLSeconds", default=21600, low=60, high=21600),
            timeout_s=members.seconds("invocationTimeoutSeconds", default=900, low=1, high=3600),
            input_location=members.get("inputLocation"),
            output_location=f"{folder}/{members.get('filename') or file_id + '.out'}",
            failure_location=f"{failure_folder}/{file_id}-error.out",
            container_headers=members.container_headers,
            key=new_key(arrived_s),
        )

    async def _poll(self) -> None:
        """Requests also wait for endpoints that are not in service yet, and grow too old."""
        while True:
            for endpoint in self._queue.endpoints:
                self._fill(endpoint)
            await asyncio.sleep(self._settings.async_poll_s)

    def _fill(self, endpoint: str) -> None:
        """Start as many waiting requests as the endpoint takes."""
        if self._poller is None:
            return
        running = self._running.setdefault(endpoint, set())
        for request in self._queue.take_expired(endpoint, time.time()):
            words = b"The request has waited longer than RequestTTLSeconds."
            self._start(running, request, self._fail(request, words))
        num_free = self._capacity(endpoint) - len(running)
        for request in self._queue.take(endpoint, num_free):
            self._start(running, request, self._work(request))

    def _start(
        self, running: set[asyncio.Task[None]], request: AsyncRequest, work: Coroutine[Any, Any, None]
    ) -> None:
        task = asyncio.create_task(work)
        running.add(task)
        task.add_done_callback(running.discard)
        task.add_done_callback(lambda ended: self._note_end(request, ended))

    def _note_end(self, request: AsyncRequest, task: asyncio.Task[None]) -> None:
        """What nobody foresaw must not come again with every start of the emulator."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("asynchronous invocation %s is given up", request.inference_id, exc_info=error)
            self._queue.forget(request)

    def _capacity(self, endpoint: str) -> int:
        """How many of its requests run at once. One that is gone takes what waits, to fail it."""
        try:
            record = self._resources.get("endpoint", endpoint)
            limit = self._config(endpoint).get("ClientConfig", {}).get("MaxConcurrentInvocationsPerInstance")
        except ServiceError:
            return self._settings.async_default_concurrency
        num_instances = sum(
            variant.get("CurrentInstanceCount") or 0 for variant in record.get("ProductionVariants", ())
        )
        return (limit or self._settings.async_default_concurrency) * max(1, num_instances)

    async def _work(self, request: AsyncRequest) -> None:
        """One request, from its container to its location; the next one follows at once."""
        members = Members(request.endpoint, {}, request.container_headers)
        with ExitStack() as routed:
            try:
                target = routed.enter_context(self._carrier.target(members))
            except ServiceError as error:
                if self._exists(request.endpoint):
                    # Not in service, or not yet: it waits for the next look, up to its age limit.
                    self._queue.put_back(request)
                    return
                await self._fail(request, error.message.encode())
            else:
                await self._ask(request, members, target)
        asyncio.get_running_loop().call_soon(self._fill, request.endpoint)

    async def _ask(self, request: AsyncRequest, members: Members, target: Target) -> None:
        limit_bytes = self._settings.async_object_limit_bytes
        try:
            body, stored_type = await self._input(request)
            if stored_type is not None and not any(
                name == "Content-Type" for name, _ in members.container_headers
            ):
                members = Members(
                    members.endpoint, {}, (*members.container_headers, ("Content-Type", stored_type))
                )
            async with (
                asyncio.timeout(request.timeout_s),
                self._carrier.ask(
                    target,
                    members,
                    body,
                    injected=self._carrier.draw_container_faults(members.endpoint),
                    platform_headers=ASYNC_PLATFORM_HEADERS,
                ) as answer,
            ):
                content, complete = await answer.read(limit_bytes)
        except TimeoutError:
            await self._fail(request, failures.container_silent(target).message.encode())
        except ServiceError as error:
            await self._fail(request, error.message.encode())
        else:
            if not complete:
                content = failures.answer_too_large(target, answer.status, limit_bytes).message.encode()
            if complete and answer.is_success:
                await self._succeed(request, content, answer.headers.get("content-type"))
            else:
                await self._fail(request, content, answer.headers.get("content-type"))

    async def _input(self, request: AsyncRequest) -> tuple[bytes, str | None]:
        if request.input_location is None:
            return self._queue.body(request), None
        return await self._storage.read(
            request.input_location, limit_bytes=self._settings.async_object_limit_bytes
        )

    async def _succeed(self, request: AsyncRequest, content: bytes, content_type: str | None) -> None:
        try:
            await self._storage.write(request.output_location, content, content_type=content_type)
        except ServiceError as error:
            await self._fail(request, f"The answer could not be stored: {error.message}".encode())
        else:
            self._queue.forget(request)

    async def _fail(self, request: AsyncRequest, content: bytes, content_type: str | None = None) -> None:
        """The error goes to the failure location, and to the log where even that cannot be written."""
        _LOG.warning("asynchronous invocation %s of %s failed", request.inference_id, request.endpoint)
        try:
            await self._storage.write(request.failure_location, content, content_type=content_type)
        except ServiceError as error:
            _LOG.error("%s could not be written: %s", request.failure_location, error.message)
        self._queue.forget(request)

    def _exists(self, endpoint: str) -> bool:
        try:
            self._resources.get("endpoint", endpoint)
        except ServiceError:
            return False
        return True
