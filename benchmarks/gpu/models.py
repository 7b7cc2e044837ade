"""Random-weight models of a stated shape, written where they are needed: speed depends on shapes, not on meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from torch import Tensor

_SHARD_BYTES = 4 * 2**30
_STD = 0.02


@dataclass(slots=True, frozen=True)
class Shape:
    family: Literal["llama", "qwen3"]
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    tied: bool

    @property
    def body_parameters(self) -> int:
        """Matrices of all layers."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Of one parameter."""
        return 2

    @property
    def kv_bytes_per_token(self) -> int:
        """In a cache of the weights' precision."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.weight_bytes


SHAPES = {
    "qwen3-0.6b": Shape("qwen3", 1024, 28, 16, 8, 128, 3072, 151_936, 16_384, tied=True),
    "llama-3.1-8b": Shape("llama", 4096, 32, 32, 8, 128, 14_336, 128_256, 16_384, tied=False),
    "tiny-qwen3": Shape("qwen3", 64, 2, 4, 2, 16, 128, 512, 512, tied=True),
    "tiny-llama": Shape("llama", 64, 2, 4, 2, 16, 128, 512, 512, tied=False),
}
_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", {"rope_theta": 500_000.0, "rms_norm_eps": 1e-5}),
    "qwen3": ("Qwen3ForCausalLM", {"rope_theta": 1_000_000.0, "rms_norm_eps": 1e-6}),
}


def write_random_model(
    shape: Shape, folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Path:
    """Write config, weights and a tokenizer in Hugging Face layout, once. There is no end-of-sequence token."""
    if (folder / "complete").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(shape, dtype), indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": 0}))
    _write_weights(shape, folder, dtype, seed)
    _write_tokenizer(shape.vocab_size, folder)
    (folder / "complete").touch()
    return folder


def _config(shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    architecture, more = _ARCHITECTURES[shape.family]
    return {
        "architectures": [architecture],
        "model_type": shape.family,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": str(dtype).removeprefix("torch."),
        **more,
    }


def _tensors(shape: Shape, dtype: torch.dtype, seed: int) -> Iterator[tuple[str, Tensor]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    hidden, queries = shape.hidden_size, shape.num_heads * shape.head_dim
    keys = shape.num_kv_heads * shape.head_dim

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=device).normal_(0.0, _STD).cpu()

    def ones(size: int) -> Tensor:
        return torch.ones(size, dtype=dtype)

    yield "model.embed_tokens.weight", matrix(shape.vocab_size, hidden)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", ones(hidden)
        yield f"{prefix}post_attention_layernorm.weight", ones(hidden)
        yield f"{prefix}self_attn.q_proj.weight", matrix(queries, hidden)
        yield f"{prefix}self_attn.k_proj.weight", matrix(keys, hidden)
        yield f"{prefix}self_attn.v_proj.weight", matrix(keys, hidden)
        yield f"{prefix}self_attn.o_proj.weight", matrix(hidden, queries)
        if shape.family == "qwen3":
            yield f"{prefix}self_attn.q_norm.weight", ones(shape.head_dim)
            yield f"{prefix}self_attn.k_norm.weight", ones(shape.head_dim)
        yield f"{prefix}mlp.gate_proj.weight", matrix(shape.intermediate_size, hidden)
        yield f"{prefix}mlp.up_proj.weight", matrix(shape.intermediate_size, hidden)
        yield f"{prefix}mlp.down_proj.weight", matrix(hidden, shape.intermediate_size)
    yield "model.norm.weight", ones(hidden)
    if not shape.tied:
        yield "lm_head.weight", matrix(shape.vocab_size, hidden)


def _write_weights(shape: Shape, folder: Path, dtype: torch.dtype, seed: int) -> None:
    weight_map: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    num_shards = total_bytes = shard_bytes = 0

    def flush() -> None:
        nonlocal num_shards, shard_bytes
        num_shards += 1
        name = f"model-{num_shards:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()
        shard_bytes = 0

    for name, tensor in _tensors(shape, dtype, seed):
        size = tensor.numel() * tensor.element_size()
        if shard and shard_bytes + size > _SHARD_BYTES:
            flush()
        shard[name] = tensor
        shard_bytes += size
        total_bytes += size
    flush()
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_tokenizer(vocab_size: int, folder: Path) -> None:
    """Every id has a text; only single bytes are ever produced from text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    vocabulary |= {f"t{index}": index for index in range(len(alphabet), vocab_size)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    # Names the class, so that no engine adds the special tokens of the architecture's own.
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
