"""The attention layer: projections, optional head norms, rotation, and the backend over the paged cache."""

from __future__ import annotations

from torch import Tensor

from serving.contracts import ForwardContext, RotatingAttention
from serving.layers.environment import LayerEnvironment, Shard
from serving.layers.linear import HeadShard, RowParallelLinear, qkv_linear
from serving.layers.norm import HeadNorm
from serving.layers.rotary import RotaryTable
from serving.weights.target import WeightMap


class Attention:
    """Layer `index` of the model; `window` None means full attention. Its KV group is named after that."""

    def __init__(
        self,
        index: int,
        hidden_size: int,
        heads: HeadShard,
        *,
        window: int | None,
        qkv_bias: bool,
        output_bias: bool,
        environment: LayerEnvironment,
        head_norm: HeadNorm | None = None,
    ) -> None:
        self.group = "full" if window is None else "window"
        self._index = index
        self._heads = heads
        self._window = window
        self._scale = heads.head_dim**-0.5
        self._num_rotated = heads.num_heads + heads.num_kv_heads
        self._num_all = self._num_rotated + heads.num_kv_heads
        self._head_norm = head_norm
        self._backend = environment.attention
        self._rotating = self._backend if isinstance(self._backend, RotatingAttention) else None
        self.qkv = qkv_linear(heads, hidden_size, bias=qkv_bias, environment=environment)
        self.output = RowParallelLinear(
            "o_proj",
            hidden_size,
            Shard(
                total=heads.total_heads * heads.head_dim,
                start=heads.first_head * heads.head_dim,
                stop=(heads.first_head + heads.num_heads) * heads.head_dim,
                padded=heads.num_heads * heads.head_dim,
            ),
            bias=output_bias,
            environment=environment,
        )

    def weight_map(self, prefix: str) -> WeightMap:
        norms = {} if self._head_norm is None else self._head_norm.weight_map(prefix)
        return self.qkv.weight_map(prefix) | self.output.weight_map(prefix) | norms

    def finalize(self) -> None:
        self.qkv.finalize()
        self.output.finalize()

    def __call__(
        self,
        x: Tensor,
        positions: Tensor,
        rotary: RotaryTable,
        context: ForwardContext,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """x [T, H] -> [T, H], or of the tokens `wanted` [R] alone [R, H]; positions [T] int64. All go into the cache."""
        heads = self._heads
        qkv = self.qkv(x).contiguous().view(-1, self._num_all, heads.head_dim)
        rotated = qkv[:, : self._num_rotated]
        if self._head_norm is not None:
            rotated = self._head_norm(rotated)
        cache = None if context.caches is None else context.caches[self._index]
        metadata = context.attention[self.group]
        value = qkv[:, self._num_rotated :]
        if self._rotating is not None and cache is not None:
            attended = self._rotating.forward_rotating(
                rotated,
                value,
                rotary_table=rotary.table,
                positions=positions,
                cache=cache,
                metadata=metadata,
                scale=self._scale,
                window=self._window,
            )
        else:
            rotated = rotary(rotated, positions)
            attended = self._backend.forward(
                rotated[:, : heads.num_heads],
                rotated[:, heads.num_heads :],
                value,
                cache=cache,
                metadata=metadata,
                scale=self._scale,
                window=self._window,
            )
        attended = attended.reshape(x.shape[0], -1)
        return self.output(attended if wanted is None else attended[wanted])
