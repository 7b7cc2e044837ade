"""Weights reach a GPU through pinned buffers: every type, slice and stride, more pieces than buffers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serving.weights import pieces, transfer
from serving.weights.loader import load_weights
from serving.weights.target import WeightTarget

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16])
def test_slices_arrive_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, wanted: torch.dtype
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 64 * 1024)
    monkeypatch.setattr(transfer, "PIECE_BYTES", 64 * 1024)
    source = torch.randn(1024, 3000).to(stored)
    save_file({"a": source, "b": source[0].clone()}, tmp_path / "model.safetensors")
    rows = torch.zeros(1030, 1500, dtype=wanted, device="cuda")
    wide = torch.zeros(600, 3000, dtype=wanted, device="cuda")
    norm = torch.zeros(3000, dtype=wanted, device="cuda")
    targets = {
        "a": [
            WeightTarget(rows[:1024, :1400], (1024, 3000), (slice(0, 1024), slice(1600, 3000))),
            WeightTarget(wide, (1024, 3000), (slice(424, 1024), slice(0, 3000))),
        ],
        "b": [WeightTarget(norm, (3000,), (slice(0, 3000),))],
    }
    load_weights(tmp_path, targets, ignored=re.compile(r"(?!)"))
    assert torch.equal(rows[:1024, :1400].cpu(), source[:, 1600:].to(wanted))
    assert rows[1024:].eq(0).all() and rows[:, 1400:].eq(0).all(), "padding stays zero"
    assert torch.equal(wide.cpu(), source[424:].to(wanted))
    assert torch.equal(norm.cpu(), source[0].to(wanted))
