"""Where fetched models are kept, and how a folder appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.errors import ModelError


def cache_folder(candidates: Sequence[str]) -> Path:
    """The first candidate we can write to and that is ours, created 0700 if need be. Raises `ModelError`."""
    for candidate in candidates:
        folder = Path(candidate)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK) and folder.stat().st_uid == os.geteuid():
            return folder
    raise ModelError(f"no writable folder for model files among {', '.join(candidates)}; set HF_HOME to one")


def build_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """`target`, made by `fill(temporary folder)` if it is not there yet. A failure leaves nothing behind."""
    if target.is_dir():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fill(temporary)
        _sync(temporary)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _sync(folder: Path) -> None:
    """Contents before the name: after a power cut the renamed folder must not hold empty files."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
