"""The emulator's one ASGI application: the control plane at `POST /`, and beside it the routes it is given.

`application` knows HTTP and roles; it builds nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from local_mode.contracts import Hosting
from local_mode.control.protocol import ControlPlane

_NO_TARGET = (
    "This is the SageMaker emulator of textgen-endpoint. A POST to / needs the header X-Amz-Target: SageMaker.<Operation>; "
    "other services of AWS are not here: set only AWS_ENDPOINT_URL_SAGEMAKER and AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME to this "
    "address, not AWS_ENDPOINT_URL."
)


def application(
    control: ControlPlane,
    hosting: Hosting,
    routes: Sequence[BaseRoute] = (),
    *,
    started: Callable[[], Awaitable[None]] | None = None,
    stopped: Callable[[], Awaitable[None]] | None = None,
) -> Starlette:
    """`started` is awaited when hosting has started and before the first request; `stopped` before hosting stops."""

    async def call(request: Request) -> Response:
        target = request.headers.get("x-amz-target")
        if target is None:
            return JSONResponse(
                {"__type": "UnknownOperationException", "message": _NO_TARGET}, status_code=400
            )
        reply = control.call(target, await request.body())
        return Response(reply.body, status_code=reply.status, headers=dict(reply.headers))

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await hosting.start()
        try:
            if started is not None:
                await started()
            yield
            if stopped is not None:
                await stopped()
        finally:
            await hosting.stop()

    own = [Route("/", call, methods=["POST"]), Route("/healthz", health, methods=["GET"])]
    return Starlette(routes=[*own, *routes], lifespan=lifespan)
