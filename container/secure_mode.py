"""SageMaker's secure mode: controls that forbid what a model's own files may bring, checked before any is used.

The names are those of LMI's secure mode.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from container.fields import parse_bool
from container.model_layout import PROPERTIES_NAME, UNSAFE_SUFFIXES
from container.variables import SECURE_MODE, SECURITY_CONTROLS, UNTRUSTED_CHANNELS
from serving.config import ServerConfig
from serving.errors import ConfigError, ModelError

NO_PICKLE = "DISALLOW_PICKLE_FILES"
NO_REQUIREMENTS = "DISALLOW_REQUIREMENTS_TXT"
NO_REMOTE_CODE = "DISALLOW_TRUST_REMOTE_CODE"
NO_SCRIPTS = "DISALLOW_CUSTOM_INFERENCE_SCRIPTS"
NO_CHAT_TEMPLATE = "DISALLOW_CHAT_TEMPLATE"
CONTROLS: dict[str, str] = {
    NO_PICKLE: "files that hold pickled objects (" + ", ".join(sorted(UNSAFE_SUFFIXES)) + ")",
    NO_REQUIREMENTS: "a requirements.txt",
    NO_REMOTE_CODE: "`HF_MODEL_TRUST_REMOTE_CODE=true`",
    NO_SCRIPTS: "Python files",
    NO_CHAT_TEMPLATE: "a chat template of the model's own",
}
_CHANNELS = ("model", "additional-model-data-sources")


@dataclass(frozen=True, slots=True)
class SecureMode:
    """What is forbidden, and in which folders."""

    controls: frozenset[str]
    channels: tuple[str, ...]

    def check(self, config: ServerConfig, sources: Mapping[str, str], served: Path | None) -> None:
        """Raises `ConfigError` or `ModelError` that names the first violation, with its control.

        `served` is the folder that the model is loaded from, which is checked wherever it lies: what was unpacked or
        downloaded is no more trusted than what is mounted. None: it came with this image.
        """
        if NO_REMOTE_CODE in self.controls and config.model.trust_remote_code:
            source = sources.get("model.trust_remote_code")
            raise ConfigError(f"secure mode: {NO_REMOTE_CODE} forbids {source}=true; set it to false")
        folders = [*map(Path, self.channels), *([] if served is None else [served])]
        if NO_CHAT_TEMPLATE in self.controls:
            self._check_chosen_template(config.model.chat_template, sources, folders)
        for folder in dict.fromkeys(folders):
            for path in _files(folder):
                if (control := self._forbidden_by(path)) is not None:
                    raise ModelError(
                        f"secure mode: {control} forbids {CONTROLS[control]}, but {path} is there; remove it"
                    )

    def _check_chosen_template(
        self, template: str | None, sources: Mapping[str, str], folders: list[Path]
    ) -> None:
        """A template of the environment's own is trusted; one that a file gives, or that lies in a channel, is not."""
        source = sources.get("model.chat_template")
        inside = template is not None and any(
            _lies_in(template, folder) for folder in folders if folder.is_dir()
        )
        if source is not None and (inside or PROPERTIES_NAME in source):
            raise ConfigError(
                f"secure mode: {NO_CHAT_TEMPLATE} forbids {CONTROLS[NO_CHAT_TEMPLATE]}, but {source} names one; "
                "give the template itself in the environment"
            )

    def _forbidden_by(self, path: Path) -> str | None:
        suffix = path.suffix.lower()
        if suffix in UNSAFE_SUFFIXES and NO_PICKLE in self.controls:
            return NO_PICKLE
        if path.name == "requirements.txt" and NO_REQUIREMENTS in self.controls:
            return NO_REQUIREMENTS
        if suffix == ".py" and NO_SCRIPTS in self.controls:
            return NO_SCRIPTS
        if NO_CHAT_TEMPLATE in self.controls and _has_chat_template(path):
            return NO_CHAT_TEMPLATE
        return None


def read_secure_mode(present: Mapping[str, str], base_dir: str) -> SecureMode | None:
    """None when it is off. Raises `ConfigError` when it is on without controls, or with unknown ones."""
    text = present.get(SECURE_MODE, "false")
    is_on = parse_bool(text)
    if is_on is None:
        raise ConfigError(f"{SECURE_MODE}={text} is not valid; allowed: true or false")
    if not is_on:
        return None
    controls = [
        word.strip().upper() for word in present.get(SECURITY_CONTROLS, "").split(",") if word.strip()
    ]
    if not controls:
        raise ConfigError(
            f"{SECURE_MODE}=true needs {SECURITY_CONTROLS}: one or more of {', '.join(CONTROLS)}"
        )
    for control in controls:
        if control not in CONTROLS:
            raise ConfigError(f"{SECURITY_CONTROLS} names {control!r}; allowed: {', '.join(CONTROLS)}")
    channels = [word.strip() for word in present.get(UNTRUSTED_CHANNELS, "").split(",") if word.strip()]
    for channel in channels:
        if not channel.startswith("/"):
            raise ConfigError(f"{UNTRUSTED_CHANNELS} names {channel!r}; allowed: absolute paths of folders")
        if not Path(channel).is_dir():  # a misspelt path must not pass as checked
            raise ConfigError(
                f"{UNTRUSTED_CHANNELS} names {channel}, which is no folder here; correct or remove it"
            )
    return SecureMode(
        frozenset(controls), tuple(channels) or tuple(f"{base_dir}/{channel}" for channel in _CHANNELS)
    )


def _lies_in(template: str, folder: Path) -> bool:
    return (
        template.startswith("/")
        and "\n" not in template
        and Path(template).resolve().is_relative_to(folder.resolve())
    )


def _files(folder: Path) -> Iterator[Path]:
    """Also below links to folders, each folder once: what a loader can open must have been looked at."""
    seen: set[str] = set()
    for path, names, files in os.walk(folder, followlinks=True):
        real_path = os.path.realpath(path)
        if real_path in seen:
            names.clear()
            continue
        seen.add(real_path)
        names.sort()
        yield from (Path(path, name) for name in sorted(files))


def _has_chat_template(path: Path) -> bool:
    if path.name.startswith("chat_template.") or path.parent.name == "additional_chat_templates":
        return True
    if path.name != "tokenizer_config.json":
        return False
    try:
        return "chat_template" in json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"secure mode: {path} cannot be read ({error}); mend or remove it") from error
