"""Weights as they are: one matrix in the compute type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class UnquantizedMethod:
    """The `QuantMethod` of models without quantization."""

    def __init__(
        self,
        linear: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        pack: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`pack` brings a loaded weight into the form that `linear` reads fastest."""
        self._linear = linear
        self._pack = pack

    def create(
        self, out_features: int, in_features: int, *, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        return {"weight": torch.zeros(out_features, in_features, dtype=dtype, device=device)}

    def finalize(self, parameters: dict[str, Tensor]) -> None:
        if self._pack is not None:
            parameters["weight"] = self._pack(parameters["weight"])

    def apply(self, parameters: dict[str, Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
        return self._linear(x, parameters["weight"], bias)
