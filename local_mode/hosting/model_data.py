"""Model data: what a ContainerDefinition says of it, and its way onto this disk, whole or not at all."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from local_mode.contracts import ContainerFailed, ModelData
from local_mode.hosting.archive import SPARE_BYTES, unpack
from local_mode.hosting.s3 import S3, S3Object
from local_mode.removal import remove_tree

_PROGRESS_EVERY_S = 5.0


def from_definition(definition: Mapping[str, Any]) -> ModelData | None:
    """Of ModelDataUrl or ModelDataSource. Raises `ContainerFailed` for a source without S3Uri."""
    source = (definition.get("ModelDataSource") or {}).get("S3DataSource")
    if source:
        return from_source(source)
    url = definition.get("ModelDataUrl")
    return ModelData(uri=url, is_prefix=False, is_compressed=True) if url else None


def from_source(source: Mapping[str, Any]) -> ModelData:
    """Of an S3DataSource."""
    if not source.get("S3Uri"):
        raise ContainerFailed("an S3DataSource has no S3Uri")
    return ModelData(
        uri=source["S3Uri"],
        is_prefix=source.get("S3DataType", "S3Prefix") == "S3Prefix",
        is_compressed=source.get("CompressionType", "None") == "Gzip",
    )


class ModelFolders:
    """Fetches model data into folders below `root` and removes them."""

    def __init__(self, root: Path, s3: S3) -> None:
        self._root = root
        self._s3 = s3

    def make(self) -> Path:
        """A new empty folder, the caller's to remove."""
        self._root.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="m-", dir=self._root))

    async def fetch(self, data: ModelData, into: Path, *, say: Callable[[str], None]) -> Path:
        """The folder that holds the model: `into`, or the user's own where `data` is a folder of this disk.

        `into` is a new path. Raises `ContainerFailed`; then, as when cancelled, nothing is left at `into`.
        """
        into.mkdir()
        work = _Fetch(self._s3, data, into, say)
        running = asyncio.create_task(asyncio.to_thread(work.run))
        try:
            return await asyncio.shield(running)
        except BaseException:
            work.stopped = True
            await asyncio.wait([running])  # the thread writes there until it has seen the flag
            if not running.cancelled():
                running.exception()
            remove_tree(into)
            raise


class _Fetch:
    """One download, in a thread of its own. `stopped` ends it soon."""

    def __init__(self, s3: S3, data: ModelData, into: Path, say: Callable[[str], None]) -> None:
        self._s3 = s3
        self._data = data
        self._into = into
        self._say = say
        self.stopped = False
        self._total_bytes = 0
        self._arrived_bytes = 0
        self._said_s = time.monotonic()

    def run(self) -> Path:
        try:
            return self._fetch()
        except OSError as error:
            raise ContainerFailed(f"model data {self._data.uri}: {error.strerror or error}") from error
        except ValueError as error:  # a location that is none
            raise ContainerFailed(f"model data {self._data.uri}: {error}") from error

    def _fetch(self) -> Path:
        started_s = time.monotonic()
        uri = self._data.uri
        self._say(f"model data {uri}: fetching")
        scheme = uri.partition("://")[0].lower()
        if scheme == "s3":
            folder = self._from_s3()
        elif scheme == "file":
            folder = self._from_disk()
        else:
            raise ContainerFailed(f"model data {uri} is neither s3://… nor file://…")
        self._say(f"model data {uri}: ready after {time.monotonic() - started_s:.1f} s")
        return folder

    def _from_disk(self) -> Path:
        uri = self._data.uri
        path = Path(unquote(urlsplit(uri).path))
        if self._data.is_prefix and not self._data.is_compressed:
            if not path.is_dir():
                raise ContainerFailed(f"model data {uri}: there is no such folder")
            return path
        if path.is_dir():
            path /= "model.tar.gz"
        if not path.is_file():
            raise ContainerFailed(f"model data {uri}: there is no such file")
        if self._data.is_compressed:
            self._unpack(path)
        else:
            self._require_room(path.stat().st_size)
            shutil.copyfile(path, self._into / path.name)
        return self._sealed()

    def _from_s3(self) -> Path:
        uri = self._data.uri
        if self._data.is_prefix and not self._data.is_compressed:
            if not uri.endswith("/"):
                raise ContainerFailed(f"model data {uri}: an S3Prefix must end in /")
            objects = self._s3.list(uri)
            if not objects:
                raise ContainerFailed(f"model data {uri}: there is no object under this prefix")
            self._download(objects)
            return self._sealed()
        if not self._data.is_prefix and uri.endswith("/") and not self._s3.list(uri):
            # SDK 3's ModelBuilder names such a folder in ModelDataUrl when it has nothing to upload.
            self._say(f"model data {uri}: there is nothing, the container gets an empty folder")
            return self._sealed()
        item = self._one_archive() if self._data.is_prefix else self._s3.head(uri)
        self._download([item])
        if self._data.is_compressed:
            archive = self._into.with_name(f"{self._into.name}.tar.gz")
            (self._into / item.name).replace(archive)
            try:
                self._unpack(archive)
            finally:
                archive.unlink()
        return self._sealed()

    def _one_archive(self) -> S3Object:
        """S3Prefix with Gzip: a key, or a prefix under which there is one object."""
        uri = self._data.uri
        if not uri.endswith("/"):
            return self._s3.head(uri)
        objects = self._s3.list(uri)
        if len(objects) != 1 or "/" in objects[0].name:
            raise ContainerFailed(
                f"model data {uri}: with Gzip there must be one archive under the prefix, not {len(objects)}"
            )
        return objects[0]

    def _download(self, objects: list[S3Object]) -> None:
        self._total_bytes = sum(item.size_bytes for item in objects)
        self._require_room(self._total_bytes)
        for item in objects:
            target = self._into / item.name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._s3.download(self._data.uri, item, target, arrived=self._arrived)

    def _unpack(self, archive: Path) -> None:
        unpack(archive, self._into, uri=f"model data {self._data.uri}", step=self._step)

    def _require_room(self, num_bytes: int) -> None:
        room_bytes = shutil.disk_usage(self._into).free - SPARE_BYTES
        if num_bytes > room_bytes:
            raise ContainerFailed(
                f"model data {self._data.uri} has {num_bytes} bytes, {max(0, room_bytes)} bytes of disk are free"
            )

    def _arrived(self, num_bytes: int) -> None:
        self._arrived_bytes += num_bytes
        self._step()
        if time.monotonic() - self._said_s > _PROGRESS_EVERY_S:
            self._said_s = time.monotonic()
            self._say(f"model data {self._data.uri}: {self._arrived_bytes} of {self._total_bytes} bytes")

    def _step(self) -> None:
        if self.stopped:
            raise ContainerFailed(f"model data {self._data.uri}: stopped")

    def _sealed(self) -> Path:
        """Files and folders without write permission, as the platform's mount is."""
        for path, names, files in os.walk(self._into):
            for name in files:
                os.chmod(os.path.join(path, name), stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
            for name in names:
                os.chmod(os.path.join(path, name), 0o555)
        return self._into
