"""What config.json says of a decoder-only model's size: parameters, and KV bytes per token. Arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sagemaker_sdk_ext.errors import ConfigurationError

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures that the image of this version runs."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """`layer_windows` has each layer's sliding window in tokens, None for full attention.

    `problems` are reasons why the image of this version cannot run the model; `doubts` say what is only estimated.
    """

    architecture: str
    dtype: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    num_parameters: int
    layer_windows: tuple[int | None, ...]
    latent_kv_size: int | None = None
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def kv_bytes(self, num_tokens: int, *, dtype: str, num_ranks: int = 1) -> int:
        """KV cache of one sequence on one of `num_ranks` GPUs. KV heads that are fewer than ranks are repeated."""
        if self.latent_kv_size is not None:
            per_layer = self.latent_kv_size
        else:
            per_layer = 2 * -(-self.num_kv_heads // num_ranks) * self.head_dim
        tokens = sum(
            num_tokens if window is None else min(window, num_tokens) for window in self.layer_windows
        )
        return per_layer * tokens * DTYPE_BYTES[dtype]

    def weight_bytes(self, dtype: str) -> int:
        return self.num_parameters * DTYPE_BYTES[dtype]


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Raises `ConfigurationError` naming the key that is missing or unusable."""
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else "unknown"
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, Mapping) else dict(config)
    num_layers = _integer(values, "num_hidden_layers")
    num_heads = _integer(values, "num_attention_heads")
    hidden_size = _integer(values, "hidden_size")
    shape = _Sizes(
        vocab_size=_integer(values, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(values, "intermediate_size", 4 * hidden_size),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_integer(values, "num_key_value_heads", num_heads),
        head_dim=_integer(values, "head_dim", hidden_size // num_heads),
    )
    problems, doubts = _problems(architecture, config, values)
    latent = values.get("kv_lora_rank")
    return ModelShape(
        architecture=architecture,
        dtype=_dtype(values),
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_positions=_integer(values, "max_position_embeddings", 4096),
        num_parameters=_num_parameters(architecture, shape, values),
        layer_windows=_layer_windows(values, num_layers),
        latent_kv_size=latent + values.get("qk_rope_head_dim", 0) if isinstance(latent, int) else None,
        problems=problems,
        doubts=doubts,
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


def _num_parameters(architecture: str, sizes: _Sizes, values: Mapping[str, Any]) -> int:
    """Exact for the supported architectures, without rotary tables, which are computed."""
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    queries, keys = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    attention = hidden * queries + 2 * hidden * keys + queries * hidden
    if architecture == "Qwen2ForCausalLM":
        attention += queries + 2 * keys
    elif values.get("attention_bias"):
        attention += queries + 2 * keys + hidden
    if architecture.startswith("Qwen3"):
        attention += 2 * sizes.head_dim
    mlp = 3 * hidden * inner + (2 * inner + hidden if values.get("mlp_bias") else 0)
    experts = _experts(values)
    if experts:
        expert_size = _integer(values, "moe_intermediate_size", inner)
        shared = values.get("n_shared_experts") or 0
        mlp = 3 * hidden * expert_size * (experts + shared) + hidden * experts
    embeddings = sizes.vocab_size * hidden * (1 if values.get("tie_word_embeddings") else 2)
    return embeddings + sizes.num_layers * (attention + mlp + 2 * hidden) + hidden


def _experts(values: Mapping[str, Any]) -> int:
    return next((values[key] for key in _EXPERT_KEYS if isinstance(values.get(key), int) and values[key]), 0)


def _problems(
    architecture: str, config: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    problems, doubts = [], []
    if architecture not in SUPPORTED:
        problems.append(
            f"architecture {architecture} is not built; the image of this version runs {', '.join(SUPPORTED)}"
        )
        doubts.append("parameters are counted as if it were a Llama-like decoder")
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = (
            quantization.get("quant_method", "unnamed") if isinstance(quantization, Mapping) else "unnamed"
        )
        problems.append(
            f"the checkpoint is quantized with {method}; the image of this version loads unquantized ones"
        )
        doubts.append("weights are counted unquantized")
    if _experts(values):
        doubts.append("experts are counted in every layer")
    if isinstance(values.get("kv_lora_rank"), int):
        doubts.append("the KV cache is counted as latent attention's compressed one")
    return tuple(problems), tuple(doubts)


def _dtype(values: Mapping[str, Any]) -> str:
    name = str(values.get("dtype") or values.get("torch_dtype") or "float32").removeprefix("torch.")
    return name if name in DTYPE_BYTES else "bfloat16"


def _layer_windows(values: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """As the server reads them: Qwen's `use_sliding_window`, `layer_types` or `max_window_layers` say where it is."""
    window = values.get("sliding_window")
    if not isinstance(window, int) or values.get("use_sliding_window") is False:
        return (None,) * num_layers
    types = values.get("layer_types")
    if isinstance(types, list) and len(types) == num_layers:
        return tuple(window if name == "sliding_attention" else None for name in types)
    qwen_like = values.get("use_sliding_window") is not None
    first = values.get("max_window_layers", num_layers) if qwen_like else 0
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _integer(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"config.json: {key} = {value!r} must be a positive integer")
    return value
