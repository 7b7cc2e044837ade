"""The only reader of the process environment: variables -> `ServerConfig`, secrets, warnings, sources."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from container import variables
from container.fields import is_address, parse_bool, short
from container.readings import Given, from_environment, read
from container.secure_mode import SecureMode, read_secure_mode
from container.variables import VARIABLES
from serving.config import ServerConfig
from serving.errors import ConfigError

DEFAULT_BASE_DIR = "/opt/ml"
_PLATFORM_SECRETS = frozenset(
    {
        "AWS_ACCESS_KEY_ID",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "SAGEMAKER_SERVE_SECRET_KEY",
    }
)
_MAX_NAME_BYTES = 255
_PORT_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A value that no log line, traceback or format string prints."""

    _value: str

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment says. `sources`: field path -> the variable that set it; absent: the default."""

    config: ServerConfig
    sources: Mapping[str, str]
    warnings: tuple[str, ...]
    model_id: str | None
    """First rung of the model ladder: MODEL_ID, or the same under another family's name."""
    model_id_source: str
    """The name that gave it; MODEL_ID when none did."""
    hf_model_id: str | None
    """HF_MODEL_ID, last rung."""
    base_dir: str
    program: str | None
    """File name of a custom handler's script, where it was said."""
    submit_directory: str | None
    """Where that script lies, when it was said."""
    safe_ports: range | None
    """SAGEMAKER_SAFE_PORT_RANGE."""
    secure_mode: SecureMode | None
    caches: tuple[str, ...]
    """Folders for model files, in the order of preference; none is known to be writable."""
    hf_home_chosen: bool
    """The user said where Hub files go."""
    hf_token: Secret | None


def process_environment() -> dict[str, str]:
    """A copy of this process's environment."""
    return dict(os.environ)


def read_environment(environ: Mapping[str, str], from_files: Sequence[Given] = ()) -> Environment:
    """Read every variable of the tables, and what a model's own files give under the same names.

    Raises `ConfigError` for the first one whose value we refuse.
    """
    present = {name: text.strip() for name, text in environ.items() if text.strip()}
    _refuse_multi_model(present)
    settings, unheard = _without_trust(from_files)
    readings = read([*from_environment(environ), *settings])
    model_id = readings.values.pop("model.model_id", None)
    model_id_source = readings.sources.pop("model.model_id", variables.MODEL_ID)
    config = _build(readings.values)
    _check(config, readings.sources)
    _check_file_names(present, {} if model_id is None else {model_id_source: str(model_id)})
    base_dir = present.get(variables.BASE_DIR, DEFAULT_BASE_DIR)
    token, token_warning = _token(present)
    return Environment(
        config=config,
        sources=readings.sources,
        warnings=tuple(line for line in (token_warning, *unheard, *readings.warnings) if line),
        model_id=None if model_id is None else str(model_id),
        model_id_source=model_id_source,
        hf_model_id=present.get(variables.HF_MODEL_ID),
        base_dir=base_dir,
        program=present.get(variables.PROGRAM),
        submit_directory=present.get(variables.SUBMIT_DIRECTORY),
        safe_ports=_port_range(present.get(variables.SAFE_PORT_RANGE)),
        secure_mode=read_secure_mode(present, base_dir),
        caches=_caches(present),
        hf_home_chosen=any(name in present for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")),
        hf_token=token,
    )


def _without_trust(from_files: Sequence[Given]) -> tuple[list[Given], list[str]]:
    """A model's own files do not decide whether they are trusted: what they say of it is left out, with a warning each."""
    names = variables.names_of("model.trust_remote_code")
    lines = [
        f"{given.source} has no effect because a model's own files cannot ask to be trusted; set "
        f"{names[0]}={given.text} in the environment"
        for given in from_files
        if given.name in names
    ]
    return [given for given in from_files if given.name not in names], lines


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment a child may see that needs neither the Hub nor AWS; the API key is in its configuration."""
    hidden = _PLATFORM_SECRETS | set(variables.HF_TOKENS) | set(variables.names_of("http.api_key"))
    return {name: text for name, text in environ.items() if name not in hidden}


def overlay(environ: Mapping[str, str], flags: Mapping[str, str]) -> dict[str, str]:
    """`environ` with command-line flags on top: a flag replaces every variable that sets the same field.

    Raises `ConfigError` for a flag that would be ignored as a variable.
    """
    merged = dict(environ)
    for flag, text in flags.items():
        if flag == "hostname" and not is_address(text):
            raise ConfigError(f"--hostname {text} is not valid; allowed: an IP address such as 127.0.0.1")
        names = variables.names_of(_field_of_flag(flag))
        for name in names:
            merged.pop(name, None)
        same_name = flag.upper().replace("-", "_")
        merged[same_name if same_name in names else names[0]] = text
    return merged


def _field_of_flag(flag: str) -> str:
    if flag == "model-id":
        return "model.model_id"
    return next(variable.field for variable in VARIABLES if variable.flag == flag)


def _refuse_multi_model(present: Mapping[str, str]) -> None:
    text = present.get(variables.MULTI_MODEL)
    if text is not None and parse_bool(text) is not False:
        raise ConfigError(
            f"{variables.MULTI_MODEL}={short(text)}: multi-model endpoints are not served; "
            "create one inference component per model instead, they share an endpoint's instances"
        )


def _check_file_names(present: Mapping[str, str], model: Mapping[str, str]) -> None:
    """No file system takes longer names; asking one fails in ways that name no variable."""
    names = (variables.HF_MODEL_ID, variables.BASE_DIR, variables.PROGRAM, variables.SUBMIT_DIRECTORY)
    for name, text in {**{name: present[name] for name in names if name in present}, **model}.items():
        longest = max(len(os.fsencode(part)) for part in text.split("/"))
        if longest > _MAX_NAME_BYTES and not text.startswith("s3://"):
            raise ConfigError(
                f"{name}={short(text)} holds a name of {longest} bytes; at most {_MAX_NAME_BYTES} can be"
            )


def _port_range(text: str | None) -> range | None:
    if text is None:
        return None
    found = _PORT_RANGE.fullmatch(text.replace(" ", ""))
    lowest, highest = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= lowest <= highest <= 65535:
        raise ConfigError(
            f"{variables.SAFE_PORT_RANGE}={short(text)} is not valid; allowed: two ports with a hyphen, such as 23000-23999"
        )
    return range(lowest, highest + 1)


def _build(values: Mapping[str, object]) -> ServerConfig:
    slices: dict[str, dict[str, object]] = {}
    for path, value in values.items():
        slice_name, field_name = path.split(".")
        slices.setdefault(slice_name, {})[field_name] = value
    defaults = ServerConfig()
    changed: dict[str, Any] = {
        name: msgspec.structs.replace(getattr(defaults, name), **fields) for name, fields in slices.items()
    }
    return msgspec.structs.replace(defaults, **changed)


def _check(config: ServerConfig, sources: Mapping[str, str]) -> None:
    """Pairs that can never work together, found before anything is downloaded."""
    longest, total = config.limits.max_input_tokens, config.limits.max_total_tokens
    if longest is not None and total is not None and longest >= total:
        raise ConfigError(
            f"{sources['limits.max_input_tokens']}={longest} must be below MAX_TOTAL_TOKENS={total}: "
            "at least one token is generated"
        )
    key = config.http.api_key
    if key is not None and not all(char == " " or char.isprintable() for char in key):
        raise ConfigError(
            "API_KEY holds a character that no header can carry; use letters, digits and punctuation"
        )
    capacity = config.cache.max_batch_total_tokens
    if total is not None and capacity is not None and total > capacity:
        raise ConfigError(
            f"MAX_TOTAL_TOKENS={total} is above MAX_BATCH_TOTAL_TOKENS={capacity}: some could never fit; "
            "lower the first or raise the second"
        )


def _caches(present: Mapping[str, str]) -> tuple[str, ...]:
    chosen = [os.path.join(present["HF_HOME"], "textgen-endpoint")] if "HF_HOME" in present else []
    home = present.get("XDG_CACHE_HOME") or (
        os.path.join(present["HOME"], ".cache") if "HOME" in present else None
    )
    if home:
        chosen.append(os.path.join(home, "textgen-endpoint"))
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ConfigError(
            "no folder for temporary files can be written to; set TMPDIR to one, or mount a tmpfs at /tmp"
        ) from error
    return (*chosen, os.path.join(temporary, f"textgen-endpoint-{os.geteuid()}"))


def _token(present: Mapping[str, str]) -> tuple[Secret | None, str | None]:
    names = [name for name in variables.HF_TOKENS if name in present]
    if not names:
        return None, None
    token = Secret(present[names[0]])
    others = [name for name in names[1:] if present[name] != token.reveal()]
    warning = f"{', '.join(names)} hold different tokens; {names[0]} is used" if others else None
    return token, warning
