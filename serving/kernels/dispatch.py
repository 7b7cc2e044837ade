"""Which implementation of each primitive operation runs on a device. Knows no layer; layers are handed a `Kernels`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from serving.contracts import TokenSampler
from serving.kernels import cpu, reference
from serving.kernels.cpu import tiled
from serving.kernels.cpu.native.packing import DecodePacker
from serving.kernels.cpu.native.sampling import NativeSampler


@dataclass(slots=True, frozen=True)
class Kernels:
    """Primitive operations with the signatures of their twins in `serving.kernels.reference`."""

    pack: Callable[[Tensor], Tensor]
    """The form of a loaded weight [out, in] that `linear` and `embed` of this set read fastest, in the same memory; the
    argument is void afterwards."""
    embed: Callable[[Tensor, Tensor], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    mask_tokens: Callable[[Tensor, Tensor, list[int]], None]
    normalizers: Callable[[Tensor], Tensor] = reference.normalizers
    sampler: Callable[[], NativeSampler] | None = None
    """Makes a compiled sampler; without one `serving.sampling` works in torch."""
    decode_packer: Callable[[], DecodePacker] | None = None
    """Makes what packs the inputs of decodes in one call; without one `serving.worker` does it in numpy."""
    device_sampler: Callable[[int, int, torch.device], TokenSampler] | None = None
    """Makes a sampler for so many rows of a vocabulary that works where the logits are; without one the host waits."""


REFERENCE = Kernels(
    pack=reference.pack,
    embed=reference.embed,
    linear=reference.linear,
    rms_norm=reference.rms_norm,
    add_rms_norm=reference.add_rms_norm,
    rotary=reference.rotary,
    silu_mul=reference.silu_mul,
    mask_tokens=reference.mask_tokens,
)
_CPU = Kernels(
    pack=reference.pack,
    embed=reference.embed,
    linear=cpu.linear,
    rms_norm=cpu.rms_norm,
    add_rms_norm=cpu.add_rms_norm,
    rotary=cpu.rotary,
    silu_mul=cpu.silu_mul,
    mask_tokens=cpu.mask_tokens,
)
_TILED = Kernels(
    pack=reference.pack,
    embed=reference.embed,
    linear=tiled.linear,
    rms_norm=tiled.rms_norm,
    add_rms_norm=tiled.add_rms_norm,
    rotary=reference.rotary,
    silu_mul=tiled.silu_mul,
    mask_tokens=reference.mask_tokens,
    normalizers=tiled.normalizers,
)


def select_kernels(device: torch.device, *, deterministic: bool) -> Kernels:
    """With `deterministic`, the bits of a row never depend on the other rows of the batch."""
    if device.type == "cpu":
        return _compiled(_TILED if deterministic else _CPU)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):  # what Triton needs
        return _TILED if deterministic else REFERENCE
    return deterministic_triton_kernels() if deterministic else triton_kernels()


def deterministic_triton_kernels() -> Kernels:
    """A program of these has one row, or part of one. torch's sums on a GPU are cut up by the number of rows."""
    known = triton_kernels()
    return replace(_TILED, rms_norm=known.rms_norm, add_rms_norm=known.add_rms_norm, silu_mul=known.silu_mul)


def triton_kernels() -> Kernels:
    """Triton's pointwise kernels, for Ampere GPUs and newer ones, or interpreted on a CPU; products and gathers are the
    vendor's."""
    from serving.kernels.triton import pointwise
    from serving.kernels.triton.sampler_launch import TritonSampler

    return replace(
        REFERENCE,
        rms_norm=pointwise.rms_norm,
        add_rms_norm=pointwise.add_rms_norm,
        rotary=pointwise.rotary,
        silu_mul=pointwise.silu_mul,
        device_sampler=TritonSampler,
    )


def _compiled(twins: Kernels) -> Kernels:
    """Compiled kernels where this machine can compile them, and `twins` for what they do not cover."""
    from serving.kernels.cpu.native import library
    from serving.kernels.cpu.native.operations import NativeKernels

    loaded = library.load()
    if loaded is None:
        return twins
    native = NativeKernels(loaded, twins)
    return replace(
        twins,
        pack=native.pack,
        embed=native.embed,
        linear=native.linear,
        rms_norm=native.rms_norm,
        add_rms_norm=native.add_rms_norm,
        rotary=native.rotary,
        silu_mul=native.silu_mul,
        mask_tokens=native.mask_tokens,
        sampler=partial(NativeSampler, loaded),
        decode_packer=partial(DecodePacker, loaded),
    )
