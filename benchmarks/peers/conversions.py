"""The same weights in each engine's own format, beside the model, made again only when the model has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.peers.contracts import EngineFailed
from benchmarks.peers.environments import REPOSITORY, Environment, LlamaBuild

_READ_BYTES = 1 << 22
_ERROR_CHARS = 3000


def gguf(model: Path, build: LlamaBuild) -> Path:
    """A GGUF file, float32."""
    return _converted(
        model,
        f"{build.version()} f32",
        "model-f32.gguf",
        lambda target: [
            str(build.python),
            "-m",
            "benchmarks.peers.runners.convert_gguf",
            str(build.source),
            str(model),
            str(target),
        ],
    )


def openvino(model: Path, environment: Environment) -> Path:
    """A folder with OpenVINO's intermediate representation, float32; no tokenizer, as prompts are token ids."""
    command = str(environment.python.parent / "optimum-cli")
    options = [
        "--task",
        "text-generation-with-past",
        "--weight-format",
        "fp32",
        "--disable-convert-tokenizer",
    ]
    return _converted(
        model,
        f"{environment.version()} fp32",
        "openvino-f32",
        lambda target: [command, "export", "openvino", "-m", str(model), *options, str(target)],
    )


def onnx(model: Path, environment: Environment) -> Path:
    """A folder with ONNX and the configuration of onnxruntime-genai, float32."""
    converter = [str(environment.python), "-m", "benchmarks.peers.runners.convert_onnx"]
    return _converted(
        model,
        f"{environment.version()} fp32",
        "onnx-f32",
        lambda target: [*converter, str(model), str(target)],
    )


def converted_folder(model: Path) -> Path:
    """Where the conversions of a model lie, each in a folder of its own."""
    return model.with_name(f"{model.name}.converted")


def _converted(model: Path, recipe: str, name: str, command: Callable[[Path], Sequence[str]]) -> Path:
    """`MODEL.converted/NAME`, made by `command(where to write)` unless it is there for this content and recipe.

    Raises EngineFailed with the end of what the converter printed.
    """
    folder = converted_folder(model)
    target, marker = folder / name, folder / f"{name}.made-of"
    wanted = f"{fingerprint(model)} {recipe}"
    if target.exists() and marker.exists() and marker.read_text() == wanted:
        return target
    folder.mkdir(exist_ok=True)
    marker.unlink(missing_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    line = command(target)
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        line,
        cwd=REPOSITORY,
        env=offline,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if ended.returncode or not target.exists():
        raise EngineFailed(
            f"{shlex.join(line)} ended with {ended.returncode}:\n{ended.stdout[-_ERROR_CHARS:]}"
        )
    marker.write_text(wanted)
    return target


def fingerprint(model: Path) -> str:
    """Of everything in the model's folder itself; kept with sizes and times, so that 2 GB are read once."""
    files = sorted(path for path in model.iterdir() if path.is_file() and path.name != "fingerprint.json")
    seen = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    note = model / "fingerprint.json"
    if note.exists() and (known := json.loads(note.read_text()))["files"] == seen:
        return str(known["digest"])
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as content:
            while block := content.read(_READ_BYTES):
                digest.update(block)
    note.write_text(json.dumps({"files": seen, "digest": digest.hexdigest()}))
    return digest.hexdigest()
