"""Muon: momentum whose matrix updates are orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

torch.optim.Muon orthogonalises in bfloat16, which CPUs without bfloat16 units emulate ten times slower.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch


class Muon:
    """Optimizer for matrices only; updates have the root mean square of AdamW's, so both share a learning rate."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        self._by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self._by_shape[parameter.shape].append(parameter)
        self._momenta = {shape: torch.zeros(len(ps), *shape) for shape, ps in self._by_shape.items()}
        self._momentum = momentum
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for shape, parameters in self._by_shape.items():
            gradients = torch.stack([_gradient(p) for p in parameters])
            momenta = self._momenta[shape].lerp_(gradients, 1 - self._momentum)
            updates = orthogonalised(gradients.lerp_(momenta, self._momentum))
            scale = 0.2 * max(shape) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - lr * self._weight_decay).sub_(update, alpha=lr * scale)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices [n, rows, columns] with singular values pushed to about 1 by five quintic Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        raise ValueError(
            f"a parameter of shape {tuple(parameter.shape)} has no gradient: call backward() first"
        )
    return parameter.grad
