"""Every CPU implementation against its reference twin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from serving.kernels.cpu import tiled
from serving.kernels.cpu.native import library
from serving.kernels.dispatch import REFERENCE, Kernels, select_kernels

ROWS = [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130]


def _select(monkeypatch: pytest.MonkeyPatch, *, deterministic: bool, compiled: bool) -> Kernels:
    torch.manual_seed(0)
    if not compiled:
        monkeypatch.setattr(library, "load", lambda: None)
    kernels = select_kernels(torch.device("cpu"), deterministic=deterministic)
    assert (kernels.sampler is not None) == compiled
    return kernels


@pytest.fixture(params=[False, True], ids=["torch", "compiled"])
def deterministic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    return _select(monkeypatch, deterministic=True, compiled=request.param)


@pytest.fixture(
    params=[(False, False), (False, True), (True, False), (True, True)],
    ids=["default-torch", "default", "deterministic-torch", "deterministic"],
)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    deterministic, compiled = request.param
    return _select(monkeypatch, deterministic=deterministic, compiled=compiled)


def close(left: Tensor, right: Tensor, tolerance: float = 2e-5) -> bool:
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and bool((left - right).abs().max() < tolerance)
    )


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Shapes are chosen by the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("out_features", [70, 72])
def test_linear(kernels: Kernels, rows: int, with_bias: bool, out_features: int) -> None:
    x, weight = torch.randn(rows, 48), torch.randn(out_features, 48)
    bias = torch.randn(out_features) if with_bias else None
    assert close(kernels.linear(x, weight, bias), REFERENCE.linear(x, weight, bias))


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_linear_of_a_strided_view(kernels: Kernels, rows: int) -> None:
    x, weight = torch.randn(96, rows).t()[:, ::2], torch.randn(70, 48)
    assert close(kernels.linear(x, weight, None), REFERENCE.linear(x, weight, None))


def test_linear_in_half_precision(kernels: Kernels) -> None:
    x, weight = torch.randn(5, 48).bfloat16(), torch.randn(70, 48).bfloat16()
    result = kernels.linear(x, weight, None)
    assert result.dtype is torch.bfloat16
    assert (result.float() - x.float() @ weight.float().t()).abs().max() < 0.2


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_norms(kernels: Kernels, rows: int) -> None:
    x, residual, weight = torch.randn(rows, 48), torch.randn(rows, 48), torch.rand(48)
    assert close(kernels.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
    left, right = residual.clone(), residual.clone()
    added = kernels.add_rms_norm(x, left, weight, 1e-5)
    assert close(added, REFERENCE.add_rms_norm(x, right, weight, 1e-5))
    assert torch.equal(left, right) and torch.equal(left, residual + x)


def test_norm_with_one_weight_per_head(kernels: Kernels) -> None:
    x, weight = torch.randn(5, 6, 16), torch.rand(6, 16)
    result = kernels.rms_norm(x, weight, 1e-6)
    for head in range(6):
        assert close(result[:, head], REFERENCE.rms_norm(x[:, head], weight[head], 1e-6))


def test_norm_of_half_precision_is_computed_in_float32(kernels: Kernels) -> None:
    x = torch.full((2, 64), 300.0).half()
    assert kernels.rms_norm(x, torch.ones(64).half(), 1e-5).tolist() == [[1.0] * 64] * 2


def test_embed(kernels: Kernels) -> None:
    weight = torch.randn(11, 20)
    for ids in ([3], [10, 0, 3, 3, 7]):
        token_ids = torch.tensor(ids)
        found = kernels.embed(token_ids, weight)
        assert torch.equal(found, weight[token_ids])
        found.zero_()
    assert bool(weight.all())
    half = weight.bfloat16()
    assert torch.equal(kernels.embed(token_ids, half), half[token_ids])


@pytest.mark.parametrize("rows", [1, 6])
def test_rotary(kernels: Kernels, rows: int) -> None:
    x = torch.randn(rows, 96).t().contiguous().t().view(rows, 6, 16)
    angle, positions = torch.rand(12, 8), torch.randperm(12)[:rows]
    table = torch.cat((angle.cos(), angle.sin()), dim=1)
    result = kernels.rotary(x, table, positions)
    assert close(result, REFERENCE.rotary(x, table, positions))
    pairs = torch.view_as_complex(torch.stack(x.chunk(2, dim=-1), dim=-1))
    turned = pairs * torch.polar(torch.ones(rows, 1, 8), angle[positions].unsqueeze(1))
    assert close(result, torch.cat((turned.real, turned.imag), dim=-1))
    assert torch.allclose(result.norm(dim=-1), x.norm(dim=-1), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 6, 20])
def test_silu_mul(kernels: Kernels, rows: int) -> None:
    x = torch.randn(rows, 90)
    expected = REFERENCE.silu_mul(x.clone())
    assert close(kernels.silu_mul(x.clone()), expected)
    assert close(kernels.silu_mul(x.t().contiguous().t()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "outputs"), [(48, 60), (100, 61), (2049, 62), (58, 33)])
@pytest.mark.usefixtures("threads")
def test_deterministic_rows_have_the_same_bits_in_every_batch(
    deterministic: Kernels, size: int, outputs: int, dtype: torch.dtype
) -> None:
    kernels, x = deterministic, torch.randn(70, size).to(dtype)
    weight, up = (torch.randn(count, size).to(dtype) for count in (outputs, 2 * 90))
    packed = kernels.pack(torch.randn(96, size).to(dtype))
    norm = torch.rand(size).to(dtype)

    def computed(rows: Tensor) -> Tensor:
        linear = kernels.linear(rows, weight, None)
        gated = kernels.silu_mul(kernels.linear(rows, up, None))
        others = (kernels.linear(rows, packed, None), kernels.rms_norm(rows, norm, 1e-5))
        return torch.cat((linear, gated, *others), dim=-1)

    everything = computed(x)
    for start, stop in ((0, 1), (3, 4), (69, 70), (0, 2), (5, 9), (1, 16), (30, 46), (2, 35)):
        assert torch.equal(computed(x[start:stop]), everything[start:stop]), (start, stop)


def test_deterministic_sums_on_a_gpu_are_those_of_one_program_per_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch's sums there are cut up by the number of rows."""
    from serving.kernels.triton import pointwise

    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    kernels = select_kernels(torch.device("cuda"), deterministic=True)
    assert kernels.rms_norm is pointwise.rms_norm and kernels.add_rms_norm is pointwise.add_rms_norm
    assert kernels.silu_mul is pointwise.silu_mul and kernels.device_sampler is None
    assert kernels.linear is tiled.linear and kernels.normalizers is tiled.normalizers
    capability = (7, 5)
    kernels = select_kernels(torch.device("cuda"), deterministic=True)
    assert kernels.linear is tiled.linear and kernels.rms_norm is tiled.rms_norm


@pytest.mark.parametrize("vocab", [10, 32, 70, 100])
def test_normalizers(kernels: Kernels, vocab: int) -> None:
    logits = torch.randn(5, vocab) * 9
    logits[1, 3:] = -torch.inf
    assert torch.allclose(kernels.normalizers(logits), logits.double().exp().sum(-1).log().float())


@pytest.mark.parametrize("vocab", [10, 32, 70, 100])
def test_mask_tokens(kernels: Kernels, vocab: int) -> None:
    bits = torch.randint(-(2**31), 2**31, (2, 3), dtype=torch.int32)
    for rows, count in (([0, 1], 2), ([0, 2], 4)):
        logits = torch.randn(count, vocab)
        expected = logits.clone()
        REFERENCE.mask_tokens(expected, bits, rows)
        assert torch.isinf(expected).any() and torch.isfinite(expected).any()
        kernels.mask_tokens(logits, bits, rows)
        assert torch.equal(logits, expected)
