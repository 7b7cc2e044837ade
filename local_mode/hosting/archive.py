"""Unpacks model.tar.gz into an empty folder of plain files, or refuses it. Trusts nothing that an archive says of itself."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from local_mode.contracts import ContainerFailed

MAX_MEMBERS = 10_000
MAX_RATIO = 20
"""Weights hardly compress; whatever grows more than this is an attack or a mistake."""
ALWAYS_ALLOWED_BYTES = 64 * 1024 * 1024
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1024
SPARE_BYTES = 64 * 1024 * 1024
"""Of the disk, left to others."""
_BLOCK_BYTES = 512
_COPY_BYTES = 1024 * 1024


def unpack(archive: Path, folder: Path, *, uri: str, step: Callable[[], None]) -> None:
    """Fill `folder`, which the caller removes when this raises `ContainerFailed` (naming `uri`, the member and the reason).

    `step` is called between pieces of work and may raise to stop it.
    """
    try:
        with archive.open("rb") as compressed, gzip.GzipFile(fileobj=compressed) as plain:
            _Unpacking(uri, folder, archive.stat().st_size, step).run(plain)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ContainerFailed(
            f"{uri} is truncated or damaged: {error}; pack it again with tar -czf"
        ) from error
    except tarfile.TarError as error:
        raise ContainerFailed(
            f"{uri} is no whole tar archive: {error}; pack it again with tar -czf"
        ) from error
    except OSError as error:
        raise ContainerFailed(f"{uri} cannot be unpacked: {error.strerror or error}") from error


class _Unpacking:
    def __init__(self, uri: str, folder: Path, size_bytes: int, step: Callable[[], None]) -> None:
        self._uri = uri
        self._folder = folder
        self._step = step
        self._limit_bytes = MAX_RATIO * size_bytes + ALWAYS_ALLOWED_BYTES
        self._room_bytes = shutil.disk_usage(folder).free - SPARE_BYTES
        self._files: set[PurePosixPath] = set()
        self._folders: set[PurePosixPath] = {PurePosixPath(".")}

    def run(self, plain: gzip.GzipFile) -> None:
        source = _Measured(plain, self._limit_bytes, self._refuse_growth)
        num_members = total_bytes = 0
        # A forward-only stream: headers are counted before tarfile believes their sizes, nothing is read twice.
        with tarfile.open(fileobj=source, mode="r|") as tar:
            for member in tar:
                self._step()
                num_members += 1
                total_bytes += member.size
                if num_members > MAX_MEMBERS:
                    self._refuse(
                        member.name, f"is one of more than {MAX_MEMBERS} members; pack the model only"
                    )
                if total_bytes > self._limit_bytes:
                    self._refuse_growth(member.name)
                if total_bytes > self._room_bytes:
                    self._refuse(member.name, f"does not fit: {self._room_bytes} bytes of disk are free")
                self._take(tar, member)
            if source.block_at(tar.offset).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise ContainerFailed(f"{self._uri} is damaged after {num_members} members; pack it again")
        while source.read(_COPY_BYTES):  # to gzip's own end, where its checksum is
            self._step()

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._place(member)
        if path is None:
            return
        target = self._folder / path
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        content = tar.extractfile(member)
        if content is None:
            self._refuse(member.name, "has no content")
            return
        # By hand, not by TarFile.extract: nothing of a member but its name and content is wanted.
        with content, target.open("xb") as file:
            while piece := content.read(_COPY_BYTES):
                self._step()
                file.write(piece)

    def _place(self, member: tarfile.TarInfo) -> PurePosixPath | None:
        """Where it goes, once it is known to be harmless; None for the folder itself."""
        name = member.name
        if member.issym() or member.islnk():
            kind = "a symbolic link" if member.issym() else "a hard link"
            self._refuse(name, f"is {kind} to {member.linkname!r}; pack plain files (tar -h follows links)")
        if member.issparse() or not (member.isreg() or member.isdir()):
            self._refuse(name, "is neither a plain file nor a folder (a device, a pipe or a sparse file)")
        if name.startswith("/"):
            self._refuse(name, "has an absolute path; pack relative paths")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            self._refuse(name, "leaves its folder (path traversal); pack relative paths")
        if "\0" in name:
            self._refuse(name, "has a NUL in its name")
        if (
            any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts)
            or len(os.fsencode(name)) > MAX_PATH_BYTES
        ):
            self._refuse(name, f"has a name over {MAX_NAME_BYTES} bytes or a path over {MAX_PATH_BYTES}")
        if not parts:
            return None
        path = PurePosixPath(*parts)
        if path in self._files or (path in self._folders and not member.isdir()):
            self._refuse(name, "is there twice; pack each path once")
        for parent in path.parents:
            if parent in self._files:
                self._refuse(name, f"lies below {str(parent)!r}, which is a file")
            self._folders.add(parent)
        (self._folders if member.isdir() else self._files).add(path)
        return path

    def _refuse(self, name: str, reason: str) -> None:
        shown = name if len(name) <= 200 else f"{name[:200]}…"
        raise ContainerFailed(f"{self._uri}: member {shown!r} {reason}")

    def _refuse_growth(self, name: str) -> None:
        self._refuse(
            name,
            f"makes it unpack to over {self._limit_bytes} bytes, {MAX_RATIO} times its size and {ALWAYS_ALLOWED_BYTES}; "
            "no model compresses like that",
        )


class _Measured(io.RawIOBase):
    """Reads what gzip unpacks, up to a limit: a header of tar's extensions may claim gigabytes too."""

    def __init__(
        self, plain: BinaryIO | gzip.GzipFile, limit_bytes: int, refuse: Callable[[str], None]
    ) -> None:
        self._plain = plain
        # Headers and padding, besides the contents that `_Unpacking` counts.
        self._limit_bytes = limit_bytes + MAX_MEMBERS * 2 * _BLOCK_BYTES
        self._refuse = refuse
        self._num_bytes = 0
        self._last = b""

    def read(self, num_bytes: int = -1, /) -> bytes:
        content = self._plain.read(num_bytes)
        self._num_bytes += len(content)
        if self._num_bytes > self._limit_bytes:
            self._refuse("(headers)")
        self._last = (self._last + content)[-2 * tarfile.RECORDSIZE :]
        return content

    def block_at(self, offset: int) -> bytes:
        """The block at `offset`, which must be among the last two records read."""
        start = offset - (self._num_bytes - len(self._last))
        return self._last[max(0, start) :][:_BLOCK_BYTES]
