"""Qwen3: Llama with a norm on every query and key head, and windows in the layers that the config names."""

from __future__ import annotations

from serving.layers.attention import Attention
from serving.layers.environment import LayerEnvironment
from serving.layers.linear import HeadShard
from serving.layers.norm import HeadNorm
from serving.models.decoder import DecoderModel
from serving.models.hf_config import DecoderConfig


def build_qwen3(config: DecoderConfig, environment: LayerEnvironment) -> DecoderModel:
    def attention(index: int, heads: HeadShard) -> Attention:
        return Attention(
            index,
            config.hidden_size,
            heads,
            window=config.layer_windows[index],
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            environment=environment,
            head_norm=HeadNorm(
                heads.num_heads, heads.num_kv_heads, heads.head_dim, config.norm_eps, environment=environment
            ),
        )

    return DecoderModel(config, attention, environment=environment)
