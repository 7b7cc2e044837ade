"""What a start is going to do: the environment, the model that the ladder chose, and what lies next to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from container.environment import Environment, read_environment
from container.fields import short
from container.model_layout import ModelLayout, find_layout, read_properties
from container.model_source import ModelSource, find_source, model_folder
from serving.errors import ModelError

_READ_SUFFIXES = {".json", ".safetensors", ".jinja"}


@dataclass(frozen=True, slots=True)
class Plan:
    """`layout` describes the folder next to which, or in which, the model lies; None when there is no such folder."""

    environment: Environment
    source: ModelSource
    layout: ModelLayout | None


def make_plan(environ: Mapping[str, str], unpacked: Path | None = None) -> Plan:
    """Read the environment and the model folder's own `serving.properties`, and walk the ladder.

    `unpacked` is the folder that the ladder's archive became, when it has. Raises `StartupError`.
    """
    environment = read_environment(environ)
    try:
        return _plan(environ, environment, unpacked)
    except OSError as error:
        raise ModelError(
            f"{short(str(error.filename))}: {error.strerror}; the model's folder must be readable for uid {os.geteuid()}"
        ) from error


def _plan(environ: Mapping[str, str], environment: Environment, unpacked: Path | None) -> Plan:
    folder = unpacked or _folder(environment)
    layout = None if folder is None else _layout(folder, environment)
    if layout is not None and layout.properties is not None:
        environment = read_environment(environ, read_properties(layout.properties))
    source = find_source(environment)
    if source.kind == "local":
        _require_readable(Path(source.location))
    return Plan(environment, source, layout)


def _require_readable(folder: Path) -> None:
    """What loads them has other explanations for a file that it may not open."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in _READ_SUFFIXES or os.access(path, os.R_OK):
            continue
        if not path.exists():
            raise ModelError(
                f"{path} is a link that leads nowhere; put the file itself into the model's folder"
            )
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _folder(environment: Environment) -> Path | None:
    """The folder of the first rung that has one; a Hub model may have a mounted folder with code beside it."""
    mounted = Path(environment.base_dir) / "model"
    for name in (environment.model_id, str(mounted), environment.hf_model_id):
        if name and Path(name).expanduser().is_dir():
            return Path(name).expanduser()
    return None


def _layout(folder: Path, environment: Environment) -> ModelLayout:
    """Of `folder`, or of the one below it that holds the model."""
    outer = find_layout(folder, environment.program, environment.submit_directory)
    inner = model_folder(folder)
    if outer.kind != "snapshot" or inner in (None, folder):
        return outer
    return find_layout(inner, environment.program, environment.submit_directory)
