"""Tiny random-weight models written by transformers, the oracle of the model tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

VOCAB_SIZE = 203
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOW = 24


def configs() -> dict[str, Any]:
    return {
        "llama2": LlamaConfig(**_SHAPE | {"num_key_value_heads": 8}, tie_word_embeddings=False),
        "llama3": LlamaConfig(**_SHAPE, rope_parameters=_LLAMA3_ROPE, tie_word_embeddings=True),
        "llama_linear": LlamaConfig(
            **_SHAPE,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
            attention_bias=True,
            mlp_bias=True,
        ),
        # Neither KV heads, nor inner features, nor vocabulary divide two ranks.
        "llama_uneven": LlamaConfig(
            **_SHAPE
            | {
                "num_attention_heads": 6,
                "num_key_value_heads": 3,
                "hidden_size": 96,
                "intermediate_size": 175,
            }
        ),
        "mistral": MistralConfig(**_SHAPE, sliding_window=WINDOW),
        "qwen2": Qwen2Config(**_SHAPE, tie_word_embeddings=True),
        "qwen2_mixed": Qwen2Config(
            **_SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
        ),
        "qwen3": Qwen3Config(**_SHAPE, head_dim=32, tie_word_embeddings=False),
    }


def write_checkpoint(name: str, folder: Path, *, max_shard_size: str = "5GB") -> PreTrainedModel:
    """Save the model `name` in `folder` and return it. Norms and biases are random too, so that each one matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs()[name], dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif key.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=generator)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model
