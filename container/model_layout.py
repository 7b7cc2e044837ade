"""What a model folder holds besides weights: handlers, other servers' code and properties, adapters, unsafe files.

Recognises; what is run is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from container.families import lmi
from container.readings import Given
from serving.errors import ConfigError, ModelError

PROPERTIES_NAME = "serving.properties"
UNSAFE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_HANDLER_NAME = "inference.py"
_FAST_LOADER = "sagemaker-fast-model-loader-*"
_MAX_PROPERTIES_BYTES = 64 * 1024

LayoutKind = Literal["snapshot", "handler", "lmi", "mhcs", "fast_model_loader"]


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """Facts about one folder. `kind` is the image that it was made for; `snapshot` is a plain Hub snapshot."""

    folder: Path
    kind: LayoutKind = "snapshot"
    handler_script: Path | None = None
    """`code/inference.py`, or what SAGEMAKER_PROGRAM names there."""
    missing_script: Path | None = None
    """What SAGEMAKER_PROGRAM names, where it is not there."""
    model_code: Path | None = None
    """`model.py` of LMI or the model hosting container standards."""
    requirements: Path | None = None
    properties: Path | None = None
    """`serving.properties`."""
    adapters: tuple[str, ...] = ()
    unsafe_files: tuple[str, ...] = ()

    def require_servable(self, *, trusted: bool) -> None:
        """Raises `ModelError` for what would answer differently from what its owner wrote.

        `trusted`: a handler may run.
        """
        if self.kind == "fast_model_loader":
            raise ModelError(
                f"{self.folder} holds the output of Fast Model Loader, whose format is not public; "
                "deploy the original safetensors instead"
            )
        if self.model_code is not None:
            whose = "LMI" if self.kind == "lmi" else "the model hosting container standards"
            raise ModelError(
                f"{self.model_code}: custom model code of {whose} is not run; remove it to serve the weights alone"
            )
        if self.handler_script is not None and not trusted:
            raise ModelError(
                f"{self.handler_script}: a custom handler is run only with HF_MODEL_TRUST_REMOTE_CODE=true; set it if you "
                "trust this code, or remove the script to serve the model alone"
            )

    def warnings(self) -> tuple[str, ...]:
        """What is there and has no effect, a line each."""
        lines = []
        if self.missing_script is not None:
            # No error: SDKs set the variable for images that know nothing of scripts, too.
            lines.append(
                f"SAGEMAKER_PROGRAM names {self.missing_script}, which is not there: no custom handler runs"
            )
        if self.requirements is not None:
            lines.append(
                f"{self.requirements} is not installed: a start has to work without network and the same way each "
                "time; packages that a handler needs belong into its code folder, or into an image made from this one"
            )
        if self.adapters:
            lines.append(
                f"adapters are not built yet, so {', '.join(self.adapters)} in {self.folder / 'adapters'} are not "
                "loaded; requests that name one are refused"
            )
        if self.unsafe_files:
            lines.append(f"only safetensors are loaded; never opened: {_listed(self.unsafe_files)}")
        return tuple(lines)


def find_layout(folder: Path, program: str | None = None, submit_directory: str | None = None) -> ModelLayout:
    """What `folder` holds; an absent folder holds nothing. Reads names only, no content."""
    code = (
        Path(submit_directory) if submit_directory and submit_directory.startswith("/") else folder / "code"
    )
    handler, model_code = _file(code / (program or _HANDLER_NAME)), _file(folder / "model.py")
    properties = _file(folder / PROPERTIES_NAME)
    kind: LayoutKind = "snapshot"
    if any(folder.glob(_FAST_LOADER)):
        kind = "fast_model_loader"
    elif properties is not None:
        kind = "lmi"
    elif model_code is not None:
        kind = "mhcs"
    elif handler is not None:
        kind = "handler"
    return ModelLayout(
        folder=folder,
        kind=kind,
        handler_script=handler,
        missing_script=code / program if program and handler is None else None,
        model_code=model_code,
        requirements=_file(code / "requirements.txt") or _file(folder / "requirements.txt"),
        properties=properties,
        adapters=_names(folder / "adapters"),
        unsafe_files=_unsafe(folder),
    )


def read_properties(path: Path) -> list[Given]:
    """`serving.properties` as names of the LMI family: `option.x` is `OPTION_X`, any other key `SERVING_X`.

    Raises `ConfigError`. The format is java.util.Properties without \\u escapes.
    """
    try:
        if path.stat().st_size > _MAX_PROPERTIES_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_PROPERTIES_BYTES} bytes; keep settings only")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    givens = []
    for line in text.replace("\\\n", "").splitlines():
        if not (line := line.strip()) or line.startswith(("#", "!")):
            continue
        cut = min((line.index(mark) for mark in "=:" if mark in line), default=len(line))
        key, value = line[:cut].strip(), line[cut + 1 :].strip()
        if value:
            givens.append(Given(_family_name(key), value, f"{key} in {path}"))
    return givens


def _family_name(key: str) -> str:
    option = key.removeprefix("option.")
    prefix = lmi.SERVER_PREFIX if option == key else lmi.PREFIX
    return prefix + option.upper().replace(".", "_")


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir())) if folder.is_dir() else ()


def _unsafe(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.suffix.lower() in UNSAFE_SUFFIXES
        )
    )


def _listed(names: tuple[str, ...], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
