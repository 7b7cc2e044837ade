"""The emulator's one ASGI application: the control plane at `POST /`, and beside it the routes it is given."""

from __future__ import annotations

import contextlib
import html
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from local_mode.control.protocol import ControlPlane

_NO_TARGET_CODE = "UnknownOperationException"
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
    control: ControlPlane,
    *,
    parts: Sequence[Part] = (),
    routes: Sequence[BaseRoute] = (),
    middleware: Sequence[Middleware] = (),
) -> Starlette:
    """`parts` are started in order before the first request, and stopped the other way round after the last."""

    async def call(request: Request) -> Response:
        target = request.headers.get("x-amz-target")
        if target is None:
            return _no_target(request)
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
    return Starlette(routes=[*own, *routes], middleware=middleware, lifespan=lifespan)


def _no_target(request: Request) -> Response:
    """For another service of AWS, or for no client of AWS at all, in the form in which it looks for errors."""
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        code = f"<Code>{_NO_TARGET_CODE}</Code><Message>{html.escape(_NO_TARGET)}</Message>"
        error = f"<ErrorResponse><Error><Type>Sender</Type>{code}</Error></ErrorResponse>"
        return Response(error, status_code=400, media_type="text/xml")
    return JSONResponse({"__type": _NO_TARGET_CODE, "message": _NO_TARGET}, status_code=400)
