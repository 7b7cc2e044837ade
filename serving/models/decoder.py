"""The skeleton of decoder-only transformers. What differs between architectures is passed in as layer objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from serving.contracts import ForwardContext, KVGroupSpec
from serving.layers.attention import Attention
from serving.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from serving.layers.environment import LayerEnvironment
from serving.layers.linear import HeadShard
from serving.layers.mlp import GatedMLP
from serving.layers.norm import RMSNorm
from serving.layers.rotary import RotaryTable, default_frequencies, linear_frequencies, llama3_frequencies
from serving.models.hf_config import DecoderConfig
from serving.weights.target import WeightMap


@dataclass(slots=True)
class DecoderLayer:
    input_norm: RMSNorm
    attention: Attention
    post_attention_norm: RMSNorm
    mlp: GatedMLP

    def weight_map(self, prefix: str) -> WeightMap:
        return (
            self.input_norm.weight_map(f"{prefix}input_layernorm.weight")
            | self.attention.weight_map(f"{prefix}self_attn.")
            | self.post_attention_norm.weight_map(f"{prefix}post_attention_layernorm.weight")
            | self.mlp.weight_map(f"{prefix}mlp.")
        )

    def finalize(self) -> None:
        self.attention.finalize()
        self.mlp.finalize()


class DecoderModel:
    """A causal language model on one rank.

    `kv_groups` are the sets of layers that share a block table, `layer_groups` the group name of each layer.
    """

    def __init__(
        self,
        config: DecoderConfig,
        attention: Callable[[int, HeadShard], Attention],
        *,
        environment: LayerEnvironment,
    ) -> None:
        parallel = environment.parallel
        heads = HeadShard.of(
            config.num_heads, config.num_kv_heads, config.head_dim, parallel.rank, parallel.size
        )
        self.vocab_size = config.vocab_size
        self._rotary = RotaryTable(rope_frequencies(config), environment=environment)
        self._embedding = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, environment=environment
        )
        self._layers = [
            DecoderLayer(
                input_norm=RMSNorm(config.hidden_size, config.norm_eps, environment=environment),
                attention=attention(index, heads),
                post_attention_norm=RMSNorm(config.hidden_size, config.norm_eps, environment=environment),
                mlp=GatedMLP(
                    config.hidden_size,
                    config.intermediate_size,
                    bias=config.mlp_bias,
                    environment=environment,
                ),
            )
            for index in range(config.num_layers)
        ]
        self._norm = RMSNorm(config.hidden_size, config.norm_eps, environment=environment)
        self._next_norms = [layer.input_norm for layer in self._layers[1:]] + [self._norm]
        self._head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            environment=environment,
            tied_to=self._embedding if config.tie_word_embeddings else None,
        )
        self.layer_groups = [layer.attention.group for layer in self._layers]
        self.kv_groups = _kv_groups(config, self.layer_groups, heads, environment)

    def weight_map(self) -> WeightMap:
        """Checkpoint names, as Hugging Face writes them, to parameters."""
        targets = self._embedding.weight_map("model.embed_tokens.weight")
        for index, layer in enumerate(self._layers):
            targets |= layer.weight_map(f"model.layers.{index}.")
        return targets | self._norm.weight_map("model.norm.weight") | self._head.weight_map("lm_head.weight")

    def finalize(self) -> None:
        for layer in self._layers:
            layer.finalize()
        self._head.finalize()

    def forward(self, token_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """token_ids, positions [T] int64 -> hidden states after the final norm, [T, H] or [R, H] of the wanted tokens.

        Of the others the last layer computes keys and values alone: nobody reads what comes after its attention.
        """
        residual = self._embedding(token_ids)
        x = self._layers[0].input_norm(residual)
        for layer, next_norm in zip(self._layers, self._next_norms, strict=True):
            wanted = context.wanted if layer is self._layers[-1] else None
            x = layer.attention(x, positions, self._rotary, context, wanted)
            if wanted is not None:
                residual = residual[wanted]
            x = layer.post_attention_norm.add(x, residual)
            x = next_norm.add(layer.mlp(x), residual)
        return x

    def compute_logits(self, hidden: Tensor) -> Tensor | None:
        """hidden [R, H] -> float32 [R, vocab_size] on rank 0, None on the others."""
        return self._head(hidden)


def rope_frequencies(config: DecoderConfig) -> Tensor:
    """[D/2] inverse frequencies of the config's rope type."""
    rope = config.rope
    if rope.type == "linear":
        return linear_frequencies(config.head_dim, rope.theta, factor=rope.factor)
    if rope.type == "llama3":
        return llama3_frequencies(
            config.head_dim,
            rope.theta,
            factor=rope.factor,
            low_freq_factor=rope.low_freq_factor,
            high_freq_factor=rope.high_freq_factor,
            original_max_positions=rope.original_max_positions,
        )
    return default_frequencies(config.head_dim, rope.theta)


def _kv_groups(
    config: DecoderConfig, layer_groups: list[str], heads: HeadShard, environment: LayerEnvironment
) -> list[KVGroupSpec]:
    windows = dict(zip(layer_groups, config.layer_windows, strict=True))
    return [
        KVGroupSpec(
            name=name,
            num_layers=layer_groups.count(name),
            num_kv_heads=heads.num_kv_heads,
            head_dim=heads.head_dim,
            dtype=environment.kv_cache_dtype or environment.dtype,
            window=window,
        )
        for name, window in sorted(windows.items())
    ]
