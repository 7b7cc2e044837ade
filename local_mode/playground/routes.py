"""The page's files, and what it asks that no client of SageMaker does: endpoints at a glance, occupancy, logs.

All of it is GET and changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import httpx
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from local_mode.contracts import Record, Resources, ServiceError
from local_mode.playground.gauges import reduced
from local_mode.playground.log_tail import BadCursor, tail
from local_mode.playground.overview import overview

_FILES = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Trusted types: the browser itself refuses to let a script turn text into markup.
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
_ANSWER_LIMIT_S = 2.0


class Containers(Protocol):
    """Where the containers of an endpoint are."""

    def base_urls(self, endpoint: str, component: str | None = None) -> list[str]:
        """Of those that serve now; those of one component where one is named."""
        ...


class Playground:
    """`logs` is the folder that holds `aws/sagemaker/…`. Its routes work between `start` and `stop`."""

    def __init__(self, *, resources: Resources, containers: Containers, logs: Path) -> None:
        self._resources = resources
        self._containers = containers
        self._logs = logs / "aws" / "sagemaker"
        self._client = httpx.AsyncClient(trust_env=False, timeout=_ANSWER_LIMIT_S)
        self.routes: list[BaseRoute] = [
            Route("/", _page),
            Route("/playground/endpoints", self._endpoints),
            Route("/playground/endpoints/{name}/metrics", self._metrics),
            Route("/playground/endpoints/{name}/logs", self._log),
            Route("/playground/{file}", _file),
        ]

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        await self._client.aclose()

    async def _endpoints(self, request: Request) -> Response:
        return _json(overview(self._resources))

    async def _metrics(self, request: Request) -> Response:
        try:
            name = self._endpoint(request)["EndpointName"]
        except ServiceError as error:
            return _refused(404, error.message)
        urls = self._containers.base_urls(name, request.query_params.get("component"))
        pages = await asyncio.gather(*(self._page_of(url) for url in urls))
        answered = [page for page in pages if page is not None]
        return _json(
            {"at_s": time.time(), "containers": len(urls), "answered": len(answered), **reduced(answered)}
        )

    async def _page_of(self, url: str) -> str | None:
        try:
            answer = await self._client.get(f"{url}/metrics")
        except httpx.HTTPError:
            return None
        return answer.text if answer.is_success else None

    async def _log(self, request: Request) -> Response:
        try:
            name = self._endpoint(request)["EndpointName"]
            components = [
                component["InferenceComponentName"]
                for component in self._resources.all("inference-component")
                if component["EndpointName"] == name
            ]
            folders = [
                self._logs / "Endpoints" / name,
                *(self._logs / "InferenceComponents" / component for component in components),
            ]
            read = await asyncio.to_thread(tail, folders, request.query_params.get("after"))
        except ServiceError as error:
            return _refused(404, error.message)
        except BadCursor as error:
            return _refused(400, str(error))
        return _json(asdict(read))

    def _endpoint(self, request: Request) -> Record:
        """Raises `ServiceError` when there is none of that name."""
        return self._resources.get("endpoint", request.path_params["name"])


async def _page(request: Request) -> Response:
    return _sent(_FILES / "index.html")


async def _file(request: Request) -> Response:
    name = request.path_params["file"]
    known = {path.name: path for path in _FILES.iterdir() if path.suffix in _TYPES}
    return _sent(known[name]) if name in known else _refused(404, f"There is no file {name}.")


def _sent(path: Path) -> Response:
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)


def _json(content: object) -> Response:
    return JSONResponse(content, headers=_HEADERS | {"cache-control": "no-store"})


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status_code=status, headers=_HEADERS)
