"""Which model: the ladder MODEL_ID -> model folder -> HF_MODEL_ID, and what the winner names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from container.environment import Environment
from container.fields import short
from container.variables import HF_MODEL_ID
from serving.errors import ConfigError, ModelError

DEMO = "demo"
ARCHIVE_NAME = "model.tar.gz"
MODEL_FILES_FILE = "model.json"
# Weights in safetensors, configuration, tokenizer and templates; never pickles, never code.
MODEL_FILE_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*"]
IGNORED_FILE_PATTERNS = ["original/*", "onnx/*", "metal/*", "consolidated*"]  # the weights once more
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`location` is a folder (local), a model.tar.gz (archive), an s3:// URI (s3) or a Hub id (hub)."""

    kind: Literal["local", "archive", "s3", "hub"]
    location: str
    model_id: str
    rung: str
    passed_over: str = field(default="", compare=False)
    """What a lower rung named and did not get, for the log; empty when nothing was."""


class ModelFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The folder the engine loads from, and the commit it holds when the Hub named one."""

    model_dir: str
    revision: str | None = None


def find_source(environment: Environment) -> ModelSource:
    """Walk the ladder. Raises `ConfigError` when no rung holds a model, `ModelError` for a bad winner."""
    mounted = Path(environment.base_dir) / "model"
    if environment.model_id:
        chosen = classify(environment.model_id, environment.model_id_source)
        return _with_loser(chosen, environment.hf_model_id, mounted)
    found = _in_folder(mounted, str(mounted), str(mounted))
    if found is not None:
        return _with_loser(found, environment.hf_model_id, mounted)
    if environment.hf_model_id:
        return classify(environment.hf_model_id, HF_MODEL_ID)
    raise ConfigError(
        f"no model: MODEL_ID unset, no config.json or {ARCHIVE_NAME} in {mounted}, HF_MODEL_ID unset; "
        "set HF_MODEL_ID to a Hub id, a folder, an s3:// prefix or demo"
    )


def _with_loser(chosen: ModelSource, hf_model_id: str | None, mounted: Path) -> ModelSource:
    """`chosen`, and HF_MODEL_ID if it says something else; deploy scripts often set it to the mount point."""
    if hf_model_id is None or hf_model_id in (chosen.model_id, chosen.location, str(mounted)):
        return chosen
    return replace(chosen, passed_over=f"{HF_MODEL_ID}={hf_model_id}")


def classify(name: str, rung: str) -> ModelSource:
    """What `name` (the value of variable `rung`) points at."""
    if name == DEMO:
        return ModelSource("local", str(demo_folder()), DEMO, rung)
    if name.startswith("s3://"):
        return ModelSource("s3", name, name, rung)
    path = Path(name).expanduser()
    if path.is_dir():
        found = _in_folder(path, name, rung)
        if found is None:
            raise ModelError(f"{rung}={short(name)}: the folder holds no config.json and no {ARCHIVE_NAME}")
        return found
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        return ModelSource("archive", str(path.resolve()), name, rung)
    if name.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"{rung}={short(name)} is neither a folder that exists nor a Hub id (owner/name); "
            "allowed: a Hub id, a folder, an s3:// prefix or demo"
        )
    return ModelSource("hub", name, name, rung)


def model_folder(folder: Path) -> Path | None:
    """`folder`, or its only subfolder with a config.json: archives are often made one level too high."""
    if (folder / "config.json").is_file():
        return folder
    if not folder.is_dir():
        return None
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and (path / "config.json").is_file()]
    return inner[0] if len(inner) == 1 else None


def demo_folder() -> Path:
    """Where the embedded demo model lies. Raises `ModelError` when the installation lacks it."""
    folder = Path(str(resources.files("local_mode"))) / "demo_model"
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"the demo model is missing from this installation ({folder}); reinstall textgen-endpoint"
        )
    return folder


def _in_folder(folder: Path, model_id: str, rung: str) -> ModelSource | None:
    found = model_folder(folder)
    if found is not None:
        return ModelSource("local", str(found.resolve()), model_id, rung)
    if (folder / ARCHIVE_NAME).is_file():
        return ModelSource("archive", str((folder / ARCHIVE_NAME).resolve()), model_id, rung)
    return None
