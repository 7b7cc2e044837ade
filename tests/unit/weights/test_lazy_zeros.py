from __future__ import annotations

import pytest
import torch

from serving.platform import get_device
from serving.platform.lazy_zeros import LazyZeros

MIB = 2**20


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """What was asked of the device, which gives it."""
    device = get_device("cpu", 0)
    asked: list[tuple[tuple[int, ...], torch.dtype]] = []
    zeros = type(device).zeros

    def note(self: object, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        asked.append((shape, dtype))
        return zeros(device, shape, dtype)

    monkeypatch.setattr(type(device), "zeros", note)
    return asked


def test_large_zeros_come_from_the_device(taken: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    cpu = torch.device("cpu")
    with torch.inference_mode(), LazyZeros(get_device("cpu", 0)):
        made = [
            torch.zeros(1024, 512, dtype=torch.bfloat16, device=cpu),
            torch.zeros((1024, 1024), dtype=torch.float32, device=cpu),
            torch.zeros(MIB),
            torch.zeros(16, dtype=torch.float32),
        ]
    assert taken == [((1024, 512), torch.bfloat16), ((1024, 1024), torch.float32), ((MIB,), torch.float32)]
    assert [(tuple(one.shape), one.dtype) for one in made[:3]] == taken
    assert all(one.eq(0).all() and one.is_contiguous() for one in made)


def test_other_operators_and_later_zeros_are_torchs(taken: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    with LazyZeros(get_device("cpu", 0)):
        assert torch.ones(MIB).add(1).sum().item() == 2 * MIB
    torch.zeros(MIB)
    assert taken == []
