"""How much memory the weights will take, from what can be known of a model before torch is there."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from serving.config import ServerConfig
from serving.torch_import import is_host_build

_STORED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class _Facts(msgspec.Struct):
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization_config: msgspec.Raw | None = None


def bytes_on_host(model_dir: Path, declared: ServerConfig) -> int:
    """Bytes of host memory that this process will fill with weights: those of the files, in the type that is computed in.

    0 where nobody can tell yet: another device may be chosen, the files are quantized or do not say their type, several
    ranks share them, or they are more than half of the free memory. What is wrong with the files is for the loader to say.
    """
    runtime, computed = declared.runtime, declared.model.dtype
    if runtime.device == "cuda" or (declared.parallel.num_ranks or 1) > 1 or not is_host_build():
        return 0
    try:
        facts = msgspec.json.decode((model_dir / "config.json").read_bytes(), type=_Facts)
        stored_bytes = sum(file.stat().st_size for file in model_dir.glob("*.safetensors"))
    except (OSError, msgspec.DecodeError):
        return 0
    per_value = _STORED_BYTES.get(facts.dtype or facts.torch_dtype or "")
    if per_value is None or facts.quantization_config is not None:
        return 0
    needed = stored_bytes // per_value * (4 if computed == "auto" else _STORED_BYTES[computed])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return needed if needed <= free // 2 else 0
