"""Supported architectures, and how a model folder becomes a model on this rank."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from serving.attention.registry import choose_attention, create_attention
from serving.contracts import ForwardContext, KVGroupSpec
from serving.distributed import ParallelContext
from serving.errors import ModelError
from serving.kernels.dispatch import select_kernels
from serving.layers.environment import LayerEnvironment
from serving.logs import event
from serving.models.decoder import DecoderModel
from serving.models.hf_config import DecoderConfig, read_architecture, read_decoder_config
from serving.models.llama import build_llama
from serving.models.mistral import build_mistral
from serving.models.qwen2 import build_qwen2
from serving.models.qwen3 import build_qwen3
from serving.platform import Device
from serving.platform.lazy_zeros import LazyZeros
from serving.quantization.unquantized import UnquantizedMethod
from serving.weights.loader import load_weights

_BUILDERS: dict[str, Callable[[DecoderConfig, LayerEnvironment], DecoderModel]] = {
    "LlamaForCausalLM": build_llama,
    "MistralForCausalLM": build_mistral,
    "Qwen2ForCausalLM": build_qwen2,
    "Qwen3ForCausalLM": build_qwen3,
}
_LOGGER = logging.getLogger(__name__)
_RECOMPUTED = r".*\.rotary_emb\.inv_freq"


class Model(Protocol):
    """What the worker knows of a model."""

    kv_groups: list[KVGroupSpec]
    layer_groups: list[str]
    vocab_size: int

    def forward(self, token_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """token_ids, positions [T] int64 -> hidden [T, H], or [R, H] of the tokens that the context wants."""
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor | None:
        """hidden [R, H] -> float32 [R, vocab_size] on rank 0, None on other ranks."""
        ...


def supported_architectures() -> list[str]:
    return sorted(_BUILDERS)


def load_model(
    model_dir: str | Path,
    *,
    dtype: torch.dtype,
    device: Device,
    parallel: ParallelContext,
    deterministic: bool,
    attention_backend: str | None = None,
    block_size: int | None = None,
    kv_cache_dtype: torch.dtype | None = None,
    max_positions: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Build the model of `model_dir` and load this rank's weights.

    `attention_backend` is a name of `serving.attention.registry`, by default the fastest that fits the device, the model
    and KV blocks of `block_size` tokens of `kv_cache_dtype`, by default `dtype`. `max_positions` bounds the positions that
    can be asked for, by default the config's. `progress(done, total)` counts bytes.
    Raises ModelError or ConfigError for what cannot be computed exactly.
    """
    architecture = read_architecture(model_dir)
    builder = _BUILDERS.get(architecture)
    if builder is None:
        raise ModelError(
            f"architecture {architecture!r} is not supported; supported: {', '.join(supported_architectures())}"
        )
    config = read_decoder_config(model_dir)
    if config.quantization is not None:
        raise ModelError(f"{model_dir} is quantized with {config.quantization!r}, which is not built yet")
    if attention_backend is None:
        attention_backend = _choose_attention(
            device, config, dtype=dtype, kv_cache_dtype=kv_cache_dtype, block_size=block_size, deterministic=deterministic
        )  # fmt: skip
    kernels = select_kernels(device.torch_device, deterministic=deterministic)
    environment = LayerEnvironment(
        dtype=dtype,
        device=device.torch_device,
        parallel=dataclasses.replace(parallel, fixed_order=deterministic),
        kernels=kernels,
        quantization=UnquantizedMethod(kernels.linear, kernels.pack),
        attention=create_attention(attention_backend, deterministic=deterministic),
        max_positions=min(config.max_positions, max_positions or config.max_positions),
        kv_cache_dtype=kv_cache_dtype,
    )
    ignored = _RECOMPUTED + (r"|lm_head\.weight" if config.tie_word_embeddings else "")
    times_s = [time.perf_counter()]
    with torch.inference_mode():
        with LazyZeros(device):
            model = builder(config, environment)
        times_s.append(time.perf_counter())
        load_weights(model_dir, model.weight_map(), ignored=re.compile(ignored), progress=progress)
        times_s.append(time.perf_counter())
        model.finalize()
        times_s.append(time.perf_counter())
    built_s, read_s, packed_s = (after - before for before, after in itertools.pairwise(times_s))
    event(_LOGGER, logging.INFO, "weights", built_s=built_s, read_s=read_s, packed_s=packed_s)
    return model


def _choose_attention(
    device: Device,
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    kv_cache_dtype: torch.dtype | None,
    block_size: int | None,
    deterministic: bool,
) -> str:
    name, reason = choose_attention(
        device.default_attention_backend,
        dtype=dtype,
        head_dim=config.head_dim,
        block_size=block_size,
        kv_cache_dtype=kv_cache_dtype,
        capability=device.capability,
        deterministic=deterministic,
    )
    event(_LOGGER, logging.INFO, "attention backend", backend=name, reason=reason)
    return name
