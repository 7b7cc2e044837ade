"""The one place that unpacks archives: model.tar.gz -> a folder of plain files, or an error and nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zlib
from pathlib import Path

from container.folders import build_folder
from container.progress import Progress, Report, require_space
from serving.errors import ModelError

MAX_MEMBERS = 10_000
# Weights hardly compress; whatever grows more than this is an attack or a mistake.
MAX_RATIO = 20
_ALWAYS_ALLOWED_BYTES = 64 * 1024 * 1024
_COPY_BYTES = 1024 * 1024


def unpack(archive: Path, cache: Path, report: Report) -> Path:
    """The unpacked folder in `cache`. Raises `ModelError` that names the member or number that is wrong."""
    facts = archive.stat()
    key = hashlib.sha256(f"{archive}\0{facts.st_size}\0{facts.st_mtime_ns}".encode()).hexdigest()[:24]
    try:
        return build_folder(cache / "archives" / key, lambda folder: _extract(archive, folder, report))
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ModelError(f"{archive} cannot be unpacked: {error}; create it again with tar -czf") from error
    except OSError as error:
        raise ModelError(f"{archive} cannot be unpacked: {error.strerror or error}") from error


def _extract(archive: Path, folder: Path, report: Report) -> None:
    size_bytes = archive.stat().st_size
    limit_bytes = MAX_RATIO * size_bytes + _ALWAYS_ALLOWED_BYTES
    require_space(folder, size_bytes, what=str(archive))
    total_bytes = num_members = 0
    with archive.open("rb") as compressed, tarfile.open(fileobj=compressed, mode="r:gz") as tar:
        progress = Progress(report, total_bytes=size_bytes, verb="unpacking ")
        read_bytes = 0
        for member in tar:
            num_members += 1
            total_bytes += member.size
            if num_members > MAX_MEMBERS:
                raise ModelError(
                    f"{archive} holds more than {MAX_MEMBERS} members; pack the model's files only"
                )
            if total_bytes > limit_bytes:
                raise ModelError(
                    f"{archive} ({size_bytes} bytes) unpacks to more than {limit_bytes} bytes, "
                    f"{MAX_RATIO} times its size; no model compresses like that"
                )
            _extract_member(tar, member, folder, archive)
            progress.add(compressed.tell() - read_bytes)
            read_bytes = compressed.tell()


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, archive: Path) -> None:
    if not (member.isreg() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "neither a file nor a folder"
        raise ModelError(
            f"{archive}: member {member.name!r} is {kind}; pack plain files (tar -h follows links)"
        )
    target = folder / os.path.normpath(member.name.lstrip("/"))
    if not target.is_relative_to(folder) or ".." in target.parts:
        raise ModelError(f"{archive}: member {member.name!r} leaves its folder; pack relative paths")
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    if content is None:
        raise ModelError(f"{archive}: member {member.name!r} has no content")
    # Written by hand, not by TarFile.extract: its `filter` is missing before Python 3.11.4, and nothing of a member
    # but its name and content is wanted.
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file, _COPY_BYTES)
