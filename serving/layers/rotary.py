"""Rotary position embeddings and their table. Numerics follow transformers: angles in float32, then the compute type."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from serving.layers.environment import LayerEnvironment


def default_frequencies(head_dim: int, theta: float) -> Tensor:
    """[D/2] inverse frequencies, float32 (RoFormer, section 3.2.2)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / (theta**exponents)


def linear_frequencies(head_dim: int, theta: float, *, factor: float) -> Tensor:
    """Position interpolation: positions are divided by `factor`."""
    return default_frequencies(head_dim, theta) / factor


def llama3_frequencies(
    head_dim: int, theta: float, *, factor: float, low_freq_factor: float, high_freq_factor: float,
    original_max_positions: int,
) -> Tensor:  # fmt: skip
    """Llama 3.1's: long wavelengths are divided by `factor`, short ones kept, those between blended."""
    frequencies = default_frequencies(head_dim, theta)
    wavelengths = 2 * math.pi / frequencies
    low_wavelength = original_max_positions / low_freq_factor
    high_wavelength = original_max_positions / high_freq_factor
    scaled = torch.where(wavelengths > low_wavelength, frequencies / factor, frequencies)
    smooth = (original_max_positions / wavelengths - low_freq_factor) / (high_freq_factor - low_freq_factor)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    between = ~(wavelengths < high_wavelength) & ~(wavelengths > low_wavelength)
    return torch.where(between, blended, scaled)


class RotaryTable:
    """Cosines and sines of every position, so that a position has the same bits in every batch."""

    def __init__(self, frequencies: Tensor, *, environment: LayerEnvironment) -> None:
        positions = torch.arange(environment.max_positions, dtype=torch.float32)
        angles = torch.outer(positions, frequencies)
        table = torch.cat((angles.cos(), angles.sin()), dim=-1)
        self.table = table.to(dtype=environment.dtype, device=environment.device)
        """[max_positions, D]: D/2 cosines, then D/2 sines."""
        self._rotary = environment.kernels.rotary

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [T, H, D] rotated by the angles of positions [T] int64."""
        return self._rotary(x, self.table, positions)
