"""Attention backends by name; each is imported only when it is chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch

from serving.contracts import AttentionBackend
from serving.errors import ConfigError


def _sdpa(deterministic: bool) -> AttentionBackend:
    if deterministic:
        from serving.attention.tiled import TiledAttention

        return TiledAttention()
    from serving.attention.sdpa import SdpaAttention

    return SdpaAttention()


def _native(deterministic: bool) -> AttentionBackend:
    from serving.kernels.cpu.native import library

    loaded = library.load()
    if loaded is None:
        return _sdpa(deterministic)
    from serving.attention.native import NativeAttention
    from serving.kernels.cpu.native.operations import NativeKernels

    return NativeAttention(NativeKernels(loaded), deterministic=deterministic)


def _triton(deterministic: bool) -> AttentionBackend:
    from serving.attention.triton import RotatingTritonAttention, TritonAttention

    return TritonAttention(deterministic=True) if deterministic else RotatingTritonAttention()


def _flash_attn(deterministic: bool) -> AttentionBackend:
    from serving.attention.flash_attn import FlashAttention

    return FlashAttention()


def _flash_attn_3(deterministic: bool) -> AttentionBackend:
    from serving.attention.flash_attn_3 import FlashAttention3

    return FlashAttention3()


_CREATORS: dict[str, Callable[[bool], AttentionBackend]] = {
    "native": _native,
    "sdpa": _sdpa,
    "triton": _triton,
    "flash_attn": _flash_attn,
    "flash_attn_3": _flash_attn_3,
}


def choose_attention(
    preferred: str,
    *,
    dtype: torch.dtype,
    head_dim: int,
    block_size: int | None,
    deterministic: bool,
    kv_cache_dtype: torch.dtype | None = None,
    capability: tuple[int, int] = (0, 0),
) -> tuple[str, str]:
    """(name, reason): the device's `preferred` backend, unless a faster one is installed and fits this model.

    `kv_cache_dtype` None: the cache is of `dtype`. Raises ConfigError where nothing here reads such a cache.
    """
    own_cache = kv_cache_dtype is None or kv_cache_dtype == dtype
    if preferred != "triton":
        if not own_cache:
            raise ConfigError(
                f"the attention of this device, {preferred!r}, reads no KV cache of {kv_cache_dtype}; "
                "leave KV_CACHE_DTYPE unset"
            )
        return preferred, "the device's own"
    if deterministic:
        return preferred, "deterministic: one tile shape for all steps"
    if not own_cache:
        return preferred, f"reads a KV cache of {str(kv_cache_dtype).removeprefix('torch.')}"
    if block_size is None:
        return preferred, "the device's own"
    from serving.attention import flash_attn, flash_attn_3

    obstacles = {
        "flash_attn_3": flash_attn_3.fits(dtype=dtype, head_dim=head_dim, capability=capability),
        "flash_attn": flash_attn.fits(dtype=dtype, head_dim=head_dim, block_size=block_size),
    }
    for name, obstacle in obstacles.items():
        if obstacle is None:
            return name, "installed and fits"
    return preferred, "; ".join(obstacle for obstacle in obstacles.values() if obstacle is not None)


def create_attention(name: str, *, deterministic: bool) -> AttentionBackend:
    """Raises ConfigError for a name that is not registered."""
    creator = _CREATORS.get(name)
    if creator is None:
        raise ConfigError(f"attention backend {name!r} does not exist; choose one of {', '.join(_CREATORS)}")
    return creator(deterministic)
