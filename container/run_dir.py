"""The private run directory: configuration, start-up stage and sockets of one server. Removed at exit."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from serving.config import (
    ENGINE_SOCKET,
    HANDLER_FILE,
    MODEL_DIR_FILE,
    RUN_CONFIG_FILE,
    STAGE_FILE,
    HandlerHooks,
    ServerConfig,
    Stage,
)
from serving.errors import StartupError

METRICS_DIR = "metrics"
_MAX_SOCKET_PATH = 107  # bytes of sockaddr_un.sun_path, without its NUL


class RunDirectory:
    """Owned by PID 1, readable by this user only."""

    def __init__(self) -> None:
        """Raises `StartupError` when there is no room for it."""
        try:
            self.path = _make()
        except OSError as error:
            raise StartupError(
                f"no run directory: {error}; set TMPDIR to a folder we may write to"
            ) from error
        self.stage = Stage(stage="starting")

    def write_config(self, config: ServerConfig) -> None:
        self._replace(RUN_CONFIG_FILE, msgspec.json.format(msgspec.json.encode(config)))

    def publish(self, stage: Stage) -> None:
        """Readers see the old stage or the new one, never a part of either."""
        self.stage = stage
        self._replace(STAGE_FILE, msgspec.json.encode(stage))

    def write_model_dir(self, model_dir: str) -> None:
        """For the front, which reads the tokenizer while the engine loads."""
        self._replace(MODEL_DIR_FILE, model_dir.encode())

    def write_handler(self, hooks: HandlerHooks) -> None:
        self._replace(HANDLER_FILE, msgspec.json.encode(hooks))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _replace(self, name: str, content: bytes) -> None:
        temporary = self.path / f"{name}.new"
        temporary.write_bytes(content)
        temporary.replace(self.path / name)


def _make() -> Path:
    path = Path(tempfile.mkdtemp(prefix="textgen-"))
    if len(os.fsencode(path / ENGINE_SOCKET)) > _MAX_SOCKET_PATH:
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix="textgen-", dir="/tmp"))
    (path / METRICS_DIR).mkdir(mode=0o700)
    return path
