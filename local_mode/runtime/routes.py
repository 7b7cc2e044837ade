"""The runtime's part of the emulator: its routes, and what must be started and stopped with the server."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.routing import BaseRoute, Route

from local_mode.contracts import ObjectStorage, Resources, Routing
from local_mode.runtime.async_inference import AsyncInference
from local_mode.runtime.carrier import Carrier
from local_mode.runtime.exchange import Exchange, Handler, Operation
from local_mode.runtime.failures import ErrorAnswer, invalid
from local_mode.runtime.openai_route import OpenAIChatCompletions
from local_mode.runtime.operations import InvokeEndpoint, InvokeEndpointWithResponseStream
from local_mode.runtime.settings import RuntimeSettings

_NOT_EMULATED = {
    "/inference-routers/{name}/invocations": "Inference routers are not emulated: invoke the endpoint itself.",
    "/inference-routers/{name}/async-invocations": "Inference routers are not emulated: invoke the endpoint itself.",
    "/endpoints/{endpoint}/invocations-bidirectional-stream": (
        "InvokeEndpointWithBidirectionalStream needs HTTP/2 and is not emulated: connect to the container's WebSocket "
        "/invocations-bidirectional-stream, or use InvokeEndpointWithResponseStream."
    ),
    "/endpoints/{endpoint}/openai/{path:path}": "Only /openai/v1/chat/completions is routed.",
    "/endpoints/{endpoint}/inference-components/{component}/openai/{path:path}": (
        "Only /openai/v1/chat/completions is routed."
    ),
}


@dataclass(frozen=True, slots=True)
class Runtime:
    routes: list[BaseRoute]
    """They can be put into any Starlette application, and work between `start` and `stop`."""
    _carrier: Carrier
    _async_inference: AsyncInference

    async def start(self) -> None:
        """On the server's loop, when hosting has started: accepted requests of an earlier run are answered then."""
        await self._async_inference.start()

    async def stop(self) -> None:
        """When no request of a client is running any more."""
        await self._async_inference.stop()
        await self._carrier.aclose()


def runtime(
    *,
    routing: Routing,
    storage: ObjectStorage,
    resources: Resources,
    settings: RuntimeSettings | None = None,
) -> Runtime:
    carrier = Carrier(routing, settings or RuntimeSettings())
    async_inference = AsyncInference(carrier, storage, resources)
    openai = Operation(OpenAIChatCompletions(carrier), error_form=ErrorAnswer.for_openai)
    operations = {
        "/endpoints/{endpoint}/invocations": Operation(InvokeEndpoint(carrier)),
        "/endpoints/{endpoint}/invocations-response-stream": Operation(
            InvokeEndpointWithResponseStream(carrier)
        ),
        "/endpoints/{endpoint}/async-invocations": Operation(async_inference),
        "/endpoints/{endpoint}/openai/v1/chat/completions": openai,
        "/endpoints/{endpoint}/inference-components/{component}/openai/v1/chat/completions": openai,
    }
    operations |= {
        path: Operation(
            _refuse(text), error_form=ErrorAnswer.for_openai if "/openai/" in path else ErrorAnswer.of
        )
        for path, text in _NOT_EMULATED.items()
    }
    routes: list[BaseRoute] = [
        Route(path, operation, methods=["POST"]) for path, operation in operations.items()
    ]
    return Runtime(routes, carrier, async_inference)


def _refuse(text: str) -> Handler:
    async def refuse(_: Exchange) -> None:
        raise invalid(text)

    return refuse
