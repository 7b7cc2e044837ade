"""What the emulator is told by its command line and its environment; the one reader of the environment in local_mode."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

BackendName = Literal["auto", "process", "docker"]

DEFAULT_PORT = 8090
DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything `local_mode.app.build` needs."""

    state_dir: Path
    region: str = DEFAULT_REGION
    backend: BackendName = "auto"
    faults: tuple[str, ...] = ()
    """As `--fault` gives them."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What child processes inherit: PATH, HOME, proxies, where S3 is, credentials."""


def process_environment() -> dict[str, str]:
    """A copy of this process's environment."""
    return dict(os.environ)


def default_region(environment: Mapping[str, str]) -> str:
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or DEFAULT_REGION


def default_state_dir(environment: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/textgen-endpoint/local`, as the XDG base directory specification has it."""
    base = environment.get("XDG_STATE_HOME", "")
    # The specification: a relative path is invalid, to be ignored.
    root = (
        Path(base)
        if base.startswith("/")
        else Path(environment.get("HOME") or "~").expanduser() / ".local/state"
    )
    return root / "textgen-endpoint" / "local"


def has_credentials(environment: Mapping[str, str]) -> bool:
    """Whether boto3 will find a key to sign with, as far as the environment tells."""
    named = (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    if any(environment.get(name) for name in named):
        return True
    home = Path(environment.get("HOME") or "~").expanduser()
    return Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials").is_file()
