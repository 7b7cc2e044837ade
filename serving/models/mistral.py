"""Mistral: Llama without biases, with a sliding window in every layer."""

from __future__ import annotations

from serving.layers.attention import Attention
from serving.layers.environment import LayerEnvironment
from serving.layers.linear import HeadShard
from serving.models.decoder import DecoderModel
from serving.models.hf_config import DecoderConfig


def build_mistral(config: DecoderConfig, environment: LayerEnvironment) -> DecoderModel:
    def attention(index: int, heads: HeadShard) -> Attention:
        return Attention(
            index,
            config.hidden_size,
            heads,
            window=config.layer_windows[index],
            qkv_bias=False,
            output_bias=False,
            environment=environment,
        )

    return DecoderModel(config, attention, environment=environment)
