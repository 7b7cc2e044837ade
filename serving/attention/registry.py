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

    loaded = None if deterministic else library.load()
    if loaded is None:
        return _sdpa(deterministic)
    from serving.attention.native import NativeCachePath
    from serving.attention.sdpa import SdpaAttention
    from serving.kernels.cpu.native.operations import NativeKernels

    path = NativeCachePath(NativeKernels(loaded))
    return SdpaAttention(path.write, path.decode)


def _triton(deterministic: bool) -> AttentionBackend:
    from serving.attention.triton import TritonAttention

    return TritonAttention(deterministic=deterministic)


def _flash_attn(deterministic: bool) -> AttentionBackend:
    from serving.attention.flash_attn import FlashAttention

    return FlashAttention()


_CREATORS: dict[str, Callable[[bool], AttentionBackend]] = {
    "native": _native,
    "sdpa": _sdpa,
    "triton": _triton,
    "flash_attn": _flash_attn,
}


def choose_attention(
    preferred: str, *, dtype: torch.dtype, head_dim: int, block_size: int | None, deterministic: bool
) -> tuple[str, str]:
    """(name, reason): the device's `preferred` backend, unless a faster one is installed and fits this model."""
    if preferred != "triton":
        return preferred, "the device's own"
    if deterministic:
        return preferred, "deterministic: one tile shape for all steps"
    from serving.attention import flash_attn

    if block_size is None:
        return preferred, "the device's own"
    obstacle = flash_attn.fits(dtype=dtype, head_dim=head_dim, block_size=block_size)
    return ("flash_attn", "installed and fits") if obstacle is None else (preferred, obstacle)


def create_attention(name: str, *, deterministic: bool) -> AttentionBackend:
    """Raises ConfigError for a name that is not registered."""
    creator = _CREATORS.get(name)
    if creator is None:
        raise ConfigError(f"attention backend {name!r} does not exist; choose one of {', '.join(_CREATORS)}")
    return creator(deterministic)
