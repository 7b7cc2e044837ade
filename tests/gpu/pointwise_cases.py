"""The pointwise Triton kernels against their reference twins, on GPUs and interpreted on a CPU: the largest errors."""

from __future__ import annotations

import torch
from torch import Tensor

from serving.kernels import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
UNITS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Two roundings at the size of the results."""


def errors(device: str = "cpu") -> dict[str, float]:
    """Largest difference by operation, type and shape, over the unit of the type."""
    torch.manual_seed(0)
    found = {}
    for dtype in DTYPES:
        for tokens, size in ((1, 64), (5, 100), (3, 2049)):
            for name, value in _differences(tokens, size, dtype, device).items():
                found[f"{name}-{str(dtype)[6:]}-{tokens}x{size}"] = value / UNITS[dtype]
    return found


def _differences(tokens: int, size: int, dtype: torch.dtype, device: str) -> dict[str, float]:
    from serving.kernels.triton import pointwise

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).clamp(-2, 2).to(dtype)

    heads, half = 7, min(size, 128) // 4
    fused = draw(tokens, heads + 2, 2 * half)
    strided, weights = fused[:, :heads], draw(heads, 2 * half)
    x, weight, residual = draw(tokens, size), draw(size), draw(tokens, size)
    sums = residual.clone(), residual.clone()
    table, positions = draw(50, 2 * half), torch.randint(50, (tokens,), device=device)
    gate_up = draw(tokens, 2 * size)
    pairs = {
        "norm": (pointwise.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5)),
        "head_norm": (pointwise.rms_norm(strided, weights, 1e-6), reference.rms_norm(strided, weights, 1e-6)),
        "add_norm": (
            pointwise.add_rms_norm(x, sums[0], weight, 1e-5),
            reference.add_rms_norm(x, sums[1], weight, 1e-5),
        ),
        "sum": sums,
        "rotary": (pointwise.rotary(strided, table, positions), reference.rotary(strided, table, positions)),
        "gate": (pointwise.silu_mul(gate_up), reference.silu_mul(gate_up)),
    }
    return {name: _largest(*pair) for name, pair in pairs.items()}


def _largest(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape and result.dtype == expected.dtype
    return float(
        (result.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1)
    )
