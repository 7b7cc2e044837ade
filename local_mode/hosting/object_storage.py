"""Files by URI, for asynchronous inference: s3:// and file://. Knows no endpoints."""

from __future__ import annotations

import asyncio
import mimetypes
from pathlib import Path
from urllib.parse import unquote, urlsplit

from local_mode.contracts import ContainerFailed, ServiceError
from local_mode.hosting.s3 import S3


class Storage:
    """The `ObjectStorage` role; blocking calls run in threads."""

    def __init__(self, s3: S3) -> None:
        self._s3 = s3

    async def read(self, uri: str, *, limit_bytes: int) -> tuple[bytes, str | None]:
        try:
            if _is_file(uri):
                return await asyncio.to_thread(_read, uri, limit_bytes)
            return await asyncio.to_thread(self._s3.read, uri, limit_bytes=limit_bytes)
        except ContainerFailed as error:
            raise ServiceError("ValidationError", str(error)) from error

    async def write(self, uri: str, content: bytes, *, content_type: str | None = None) -> None:
        try:
            if _is_file(uri):
                await asyncio.to_thread(_write, uri, content)
            else:
                await asyncio.to_thread(self._s3.write, uri, content, content_type=content_type)
        except ContainerFailed as error:
            raise ServiceError("ValidationError", str(error)) from error


def _is_file(uri: str) -> bool:
    return uri[:7].lower() == "file://"


def _path(uri: str) -> Path:
    """Raises `ContainerFailed`."""
    try:
        path = unquote(urlsplit(uri).path)
    except ValueError as error:  # brackets in the place of the host
        raise ContainerFailed(f"{uri} is no location of a file: {error}") from error
    if "\0" in path:
        raise ContainerFailed(f"{uri} is no location of a file: it has a NUL")
    return Path(path)


def _read(uri: str, limit_bytes: int) -> tuple[bytes, str | None]:
    path = _path(uri)
    try:
        size_bytes = path.stat().st_size
        if size_bytes > limit_bytes:
            raise ContainerFailed(f"{uri} has {size_bytes} bytes, the limit is {limit_bytes}")
        return path.read_bytes(), mimetypes.guess_type(path.name)[0]
    except OSError as error:
        raise ContainerFailed(f"{uri}: {error.strerror or error}") from error


def _write(uri: str, content: bytes) -> None:
    """Readers see the whole file or none: who polls for an output must not find a part of it."""
    path = _path(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.part")
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        raise ContainerFailed(f"{uri}: {error.strerror or error}") from error
