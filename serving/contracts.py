"""The roles that layers are built against. Concrete attention, quantization and LoRA code implements these; layers and
models know nothing else of them. Tensors only: no requests, no files.

Shapes: T = tokens of the step (all rows packed), B = rows, Hq/Hkv = query/KV heads of this rank, D = head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(slots=True, frozen=True)
class KVGroupSpec:
    """A set of layers that share one block table. `window` None means full attention.

    `bytes_per_token` is what one token costs in all layers of the group on this rank.
    """

    name: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    window: int | None = None

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(slots=True, frozen=True)
class KVLayerCache:
    """One layer's paged cache. key, value: [num_blocks, block_size, Hkv, D]. Block 0 is padding and stays finite.

    Of float8_e4m3fn they hold key / key_scale and value / value_scale, float32 [1]; None is 1.
    """

    key: Tensor
    value: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None


@dataclass(slots=True)
class AttentionMetadata:
    """Where the step's queries and keys live, for one KV group.

    query_start [B+1] int32: row b owns tokens query_start[b]:query_start[b+1] of the packed T.
    seq_lens [B] int32: context length of each row after this step (its queries are the last query_lens of it).
    block_tables [B, max_blocks] int32; slot_mapping [T] int64: block * block_size + offset for each new token.
    The `*_list` fields are host copies (no device sync needed to read them).
    """

    query_start: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    slot_mapping: Tensor
    query_lens_list: list[int]
    seq_lens_list: list[int]
    block_size: int
    scratch: dict[str, Tensor] = field(default_factory=dict)
    """Tensors a backend derives once per step (masks, gather indices) and reuses in every layer of the group."""

    @property
    def max_query_len(self) -> int:
        return max(self.query_lens_list)

    @property
    def max_seq_len(self) -> int:
        return max(self.seq_lens_list)


@dataclass(slots=True)
class ForwardContext:
    """What a forward pass hands to the layers: per KV group the metadata, per layer index its cache.

    `caches` is None in the memory warm-up, where attention runs without a cache over the packed tokens. `wanted` [R] int64,
    R >= 1, are the packed indices of the tokens whose hidden states are asked for, None all of them.
    """

    attention: dict[str, AttentionMetadata]
    caches: list[KVLayerCache] | None
    wanted: Tensor | None = None


class AttentionBackend(Protocol):
    """Paged causal attention with the KV write included."""

    name: str

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        cache: KVLayerCache | None,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """query [T, Hq, D], key/value [T, Hkv, D] (already rotated) -> [T, Hq, D].

        Writes key/value to `cache` at `metadata.slot_mapping` first. A query at position p sees keys max(0, p-window+1)..p.
        With `cache` None the step's own keys are the whole context.
        """
        ...


@runtime_checkable
class RotatingAttention(Protocol):
    """A backend that also rotates, in one pass with the KV write."""

    def forward_rotating(
        self,
        query_key: Tensor,
        value: Tensor,
        *,
        rotary_table: Tensor,
        positions: Tensor,
        cache: KVLayerCache,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """`AttentionBackend.forward` of query_key [T, Hq + Hkv, D] rotated as `kernels.reference.rotary` does by
        `rotary_table` [P, D] and `positions` [T] int64, its first Hq heads being the queries."""
        ...


class QuantMethod(Protocol):
    """How a linear layer stores its weight and multiplies by it. Owns the shape of what it stores."""

    def create(
        self, out_features: int, in_features: int, *, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        """Empty parameters by name; the loader fills them by slices."""
        ...

    def finalize(self, parameters: dict[str, Tensor]) -> None:
        """Called once after loading: repack for the kernel."""
        ...

    def apply(self, parameters: dict[str, Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, in] -> [T, out]."""
        ...


class LoraSlot(Protocol):
    """Low-rank additions for the rows of this step; data, never a branch in a layer."""

    def add(self, x: Tensor, output: Tensor) -> None:
        """Add B(Ax) of each row's adapter to `output` in place."""
        ...


class StepGraph(Protocol):
    """One captured run. Replays on the very tensors it was captured with: inputs are copied into them first."""

    def replay(self) -> None: ...


class GraphBackend(Protocol):
    """Captures what the device does in one run, so that the host can ask for all of it at once: a CUDA graph, or the list
    of kernel calls that the compiled CPU kernels work off in one call."""

    def padded_rows(self, num_rows: int) -> int | None:
        """The size that a batch of `num_rows` decodes is captured for, at least as many; None: not captured."""
        ...

    def capture(self, run: Callable[[], Tensor]) -> tuple[StepGraph, Tensor] | None:
        """Run `run` and capture it. The tensor that it returned is where every replay leaves its result. None when it did
        something that cannot be replayed; the reason is in the log."""
        ...


MAX_LIKELIEST = 64
"""Likeliest tokens that a `TokenSampler` gives for a row, those that tie with the last included."""


@dataclass(slots=True, frozen=True)
class SamplerSteps:
    """What any row of a step asks of a `TokenSampler`. `likeliest`: some want the most likely tokens too."""

    draws: bool = False
    top_k: bool = False
    top_p: bool = False
    raw: bool = False
    likeliest: bool = False


@dataclass(slots=True, frozen=True)
class DeviceSamples:
    """On the device: ids [R] int64, logprobs [R] float32. Row r has `num_top[r]` likeliest tokens, of which the first are in
    top_ids and top_logprobs [R, MAX_LIKELIEST]."""

    ids: Tensor
    logprobs: Tensor
    num_top: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None


class TokenSampler(Protocol):
    """Chooses tokens where the logits are, of up to `max_rows` rows; nobody waits for it."""

    max_rows: int
    vocab_size: int

    def launch(
        self, logits: Tensor, params: Tensor, steps: SamplerSteps, *, bits: Tensor | None = None
    ) -> DeviceSamples:
        """logits [R, V], left as they are; params [R, 9] int64 as `serving.sampling.device_params` writes them; `bits`
        [M, W] int32 are masks of permitted tokens. The result is overwritten by the next launch."""
        ...


class PeerMemory(Protocol):
    """Memory of this rank's device that the processes of other ranks on the machine can map. Raises `DeviceError`, which
    says why, where that is impossible."""

    def allocate(self, num_bytes: int) -> int:
        """Address of new memory that holds zeros."""
        ...

    def export(self, address: int) -> bytes:
        """At most 256 bytes that let another process `open` what was allocated at `address`."""
        ...

    def open(self, exported: bytes) -> int:
        """Address at which this process sees another's memory."""
        ...


class SmallSums(Protocol):
    """Sums over the ranks of what is too small for the general way to be worth it. All ranks pass equal shapes."""

    def accepts(self, x: Tensor) -> bool: ...

    def add(self, x: Tensor) -> Tensor:
        """Replace `x`, which was accepted, by its sum over the ranks; the same bits on all of them."""
        ...
