"""The emulator's one ASGI application: the control plane at `POST /`, and beside it the routes it is given."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from local_mode.control.protocol import ControlPlane

_NO_TARGET = (
    "This is the SageMaker emulator of textgen-endpoint. A POST to / needs the header X-Amz-Target: "
    "SageMaker.<Operation>. Other services of AWS are not here: set only AWS_ENDPOINT_URL_SAGEMAKER and "
    "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME to this address, not AWS_ENDPOINT_URL."
)


class Part(Protocol):
    """Something that lives as long as the server."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def application(
    control: ControlPlane, *, parts: Sequence[Part] = (), routes: Sequence[BaseRoute] = ()
) -> Starlette:
    """`parts` are started in order before the first request, and stopped the other way round after the last."""

    async def call(request: Request) -> Response:
        target = request.headers.get("x-amz-target")
        if target is None:
            error = {"__type": "UnknownOperationException", "message": _NO_TARGET}
            return JSONResponse(error, status_code=400)
        reply = control.call(target, await request.body())
        return Response(reply.body, status_code=reply.status, headers=dict(reply.headers))

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for part in parts:
                stack.push_async_callback(part.stop)
                await part.start()
            yield

    own = [Route("/", call, methods=["POST"]), Route("/healthz", health, methods=["GET"])]
    return Starlette(routes=[*own, *routes], lifespan=lifespan)
