"""Llama 1 to 3: plain attention, biases where the config asks for them."""

from __future__ import annotations

from serving.layers.attention import Attention
from serving.layers.environment import LayerEnvironment
from serving.layers.linear import HeadShard
from serving.models.decoder import DecoderModel
from serving.models.hf_config import DecoderConfig


def build_llama(config: DecoderConfig, environment: LayerEnvironment) -> DecoderModel:
    def attention(index: int, heads: HeadShard) -> Attention:
        return Attention(
            index,
            config.hidden_size,
            heads,
            window=None,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            environment=environment,
        )

    return DecoderModel(config, attention, environment=environment)
