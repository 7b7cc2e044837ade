"""Primitive operations laid out for x86 processors and float32. Same signatures as `serving.kernels.reference`."""

from __future__ import annotations

from serving.kernels.cpu.linear import linear
from serving.kernels.cpu.masks import mask_tokens
from serving.kernels.cpu.pointwise import add_rms_norm, rms_norm, rotary, silu_mul
from serving.kernels.reference import embed

__all__ = ["add_rms_norm", "embed", "linear", "mask_tokens", "rms_norm", "rotary", "silu_mul"]
