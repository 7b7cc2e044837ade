"""Typed, strict reading of a model folder's config.json. A value we would compute wrongly is an error that names its key.

Torch-free: `serving.resolve` and the planner read configs where torch must not be imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from serving.errors import ModelError

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
_MISSING = object()

RopeType = Literal["default", "linear", "llama3"]
DTypeName = Literal["float32", "bfloat16", "float16"]
_DTYPES: dict[str, DTypeName] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


@dataclass(slots=True, frozen=True)
class RopeConfig:
    """Rotary embedding; the factors are read by the types that have them."""

    type: RopeType
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0


@dataclass(slots=True, frozen=True)
class DecoderConfig:
    """A decoder-only transformer. `layer_windows` has the sliding window of each layer, None for full attention."""

    architecture: str
    dtype: DTypeName
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    layer_windows: tuple[int | None, ...]
    quantization: str | None = None
    remote_code: bool = False
    eos_token_ids: tuple[int, ...] = field(default=())


class ConfigReader:
    """Reads keys of one JSON object and checks their types; `where` prefixes the messages."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values = values
        self.where = where

    def error(self, key: str, problem: str) -> ModelError:
        return ModelError(f"{self.where}: {key} = {self._values.get(key)!r} {problem}")

    def raw(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: Any = _MISSING) -> int:
        value = self._given(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, "must be a positive integer")
        return value

    def number(self, key: str, default: Any = _MISSING) -> float:
        value = self._given(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.error(key, "must be a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._given(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def refuse_unless(self, key: str, *allowed: object) -> None:
        """An absent key, null, or one of `allowed` passes."""
        value = self.raw(key)
        if value is not None and value not in allowed:
            raise self.error(key, f"is not supported; supported: {', '.join(map(repr, allowed)) or 'none'}")

    def _given(self, key: str, default: Any) -> Any:
        value = self.raw(key, default)
        if value is _MISSING:
            raise ModelError(f"{self.where}: {key} is missing")
        return value


def read_json(path: Path) -> dict[str, Any]:
    """Raises ModelError, naming the file, when it is missing or not a JSON object."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; a model folder needs it") from error
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise ModelError(f"{path} is not a JSON object: {error}") from error


def read_architecture(model_dir: str | Path) -> str:
    """The first name of `architectures`."""
    path = Path(model_dir) / CONFIG_FILE
    names = read_json(path).get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError(f"{path}: architectures = {names!r} must be a list with the model's class name")
    return names[0]


def read_decoder_config(model_dir: str | Path) -> DecoderConfig:
    """The config of a Llama-like decoder. Raises ModelError for anything the layers do not compute."""
    path = Path(model_dir) / CONFIG_FILE
    values = read_json(path)
    reader = ConfigReader(values, str(path))
    _refuse_unsupported(reader)
    num_layers, num_heads = reader.integer("num_hidden_layers"), reader.integer("num_attention_heads")
    num_kv_heads = reader.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise reader.error("num_key_value_heads", f"does not divide num_attention_heads = {num_heads}")
    hidden_size = reader.integer("hidden_size")
    if reader.raw("head_dim") is None and hidden_size % num_heads:
        raise reader.error("hidden_size", f"is not a multiple of num_attention_heads = {num_heads}")
    max_positions = reader.integer("max_position_embeddings")
    head_dim = reader.integer("head_dim", hidden_size // num_heads)
    if head_dim % 2:
        raise reader.error("head_dim", f"gives heads of odd size {head_dim}, which cannot be rotated")
    return DecoderConfig(
        architecture=read_architecture(model_dir),
        dtype=_dtype(reader),
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=reader.number("rms_norm_eps"),
        max_positions=max_positions,
        rope=_rope(reader, max_positions),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        attention_bias=reader.flag("attention_bias", False),
        mlp_bias=reader.flag("mlp_bias", False),
        layer_windows=_layer_windows(reader, num_layers),
        quantization=_quantization(reader),
        remote_code=reader.raw("auto_map") is not None,
        eos_token_ids=_eos_token_ids(Path(model_dir), values),
    )


def _refuse_unsupported(reader: ConfigReader) -> None:
    reader.refuse_unless("hidden_act", "silu", "swish")
    reader.refuse_unless("hidden_activation", "silu", "swish")
    reader.refuse_unless("pretraining_tp", 1)
    reader.refuse_unless("partial_rotary_factor", 1, 1.0)
    reader.refuse_unless("is_encoder_decoder", False)
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "attention_chunk_size"):
        reader.refuse_unless(key)
    for key in ("num_experts", "num_local_experts", "n_routed_experts", "use_mrope", "kv_lora_rank"):
        reader.refuse_unless(key, 0, False)


def _dtype(reader: ConfigReader) -> DTypeName:
    key = "torch_dtype" if reader.raw("dtype") is None else "dtype"
    name = _DTYPES.get(str(reader.raw(key, "float32")))
    if name is None:
        raise reader.error(key, f"is not supported; supported: {', '.join(_DTYPES)}")
    return name


def _rope(reader: ConfigReader, max_positions: int) -> RopeConfig:
    """`rope_parameters` (transformers 5) or `rope_scaling` with `rope_theta` beside it."""
    key = "rope_scaling" if reader.raw("rope_parameters") is None else "rope_parameters"
    values = reader.raw(key, {})
    if not isinstance(values, dict):
        raise reader.error(key, "must be an object")
    if any(isinstance(value, dict) for value in values.values()):
        raise reader.error(key, "differs between layer types, which is not supported")
    rope = ConfigReader(values, f"{reader.where}: {key}")
    rope.refuse_unless("partial_rotary_factor", 1, 1.0)
    theta = rope.number("rope_theta", reader.number("rope_theta", 10000.0))
    name = rope.raw("rope_type", rope.raw("type", "default"))
    if name == "default":
        return RopeConfig("default", theta)
    if name == "linear":
        return RopeConfig("linear", theta, factor=rope.number("factor"))
    if name == "llama3":
        return RopeConfig(
            "llama3",
            theta,
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_positions=rope.integer("original_max_position_embeddings", max_positions),
        )
    raise ModelError(f"{reader.where}: {key} has rope_type {name!r}; supported: default, linear, llama3")


def _layer_windows(reader: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
    """`use_sliding_window` (Qwen) switches `sliding_window` off; `layer_types` or `max_window_layers` say where it is."""
    qwen_like = reader.raw("use_sliding_window") is not None
    window = reader.integer("sliding_window") if reader.raw("sliding_window") is not None else None
    if window is None or not reader.flag("use_sliding_window", True):
        return (None,) * num_layers
    types = reader.raw("layer_types")
    if types is None:
        first = reader.raw("max_window_layers", num_layers) if qwen_like else 0
        return tuple(window if layer >= first else None for layer in range(num_layers))
    known: dict[str, int | None] = {"sliding_attention": window, "full_attention": None}
    if not isinstance(types, list) or len(types) != num_layers or any(name not in known for name in types):
        raise reader.error(
            "layer_types", f"must name, for each of {num_layers} layers, one of {', '.join(known)}"
        )
    return tuple(known[name] for name in types)


def _quantization(reader: ConfigReader) -> str | None:
    values = reader.raw("quantization_config")
    if values is None:
        return None
    return str(values.get("quant_method", "unnamed")) if isinstance(values, dict) else "unnamed"


def _eos_token_ids(model_dir: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """generation_config.json's, or config.json's where that file or key is absent."""
    path = model_dir / GENERATION_CONFIG_FILE
    generation = read_json(path) if path.is_file() else {}
    ids = generation.get("eos_token_id")
    ids = config.get("eos_token_id") if ids is None else ids
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in listed):
        raise ModelError(f"{model_dir}: eos_token_id = {ids!r} must be an integer or a list of integers")
    return tuple(listed)
