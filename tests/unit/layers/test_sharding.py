"""How weights are cut over ranks, checked without processes: the ranks' parts are put together again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from serving.attention.registry import create_attention
from serving.distributed import ParallelContext
from serving.errors import ConfigError
from serving.kernels.dispatch import select_kernels
from serving.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from serving.layers.environment import LayerEnvironment, Shard
from serving.layers.linear import HeadShard, qkv_linear
from serving.layers.mlp import GatedMLP
from serving.layers.rotary import RotaryTable, default_frequencies, linear_frequencies, llama3_frequencies
from serving.quantization.unquantized import UnquantizedMethod
from serving.weights.target import WeightMap

CPU = torch.device("cpu")


def environment(rank: int = 0, size: int = 1) -> LayerEnvironment:
    kernels = select_kernels(CPU, deterministic=False)
    return LayerEnvironment(
        dtype=torch.float32,
        device=CPU,
        parallel=ParallelContext(rank=rank, size=size),
        kernels=kernels,
        quantization=UnquantizedMethod(kernels.linear, kernels.pack),
        attention=create_attention("sdpa", deterministic=False),
        max_positions=64,
    )


def fill(weight_map: WeightMap, tensors: dict[str, Tensor]) -> None:
    assert weight_map.keys() == tensors.keys()
    for name, targets in weight_map.items():
        for target in targets:
            assert target.shape == tuple(tensors[name].shape)
            target.destination.copy_(tensors[name][target.index])


@pytest.mark.parametrize(("total", "size"), [(8, 2), (7, 2), (7, 3), (2, 4), (1, 1)])
def test_shards_cover_everything_once(total: int, size: int) -> None:
    shards = [Shard.of(total, ParallelContext(rank=rank, size=size)) for rank in range(size)]
    assert [index for shard in shards for index in range(shard.start, shard.stop)] == list(range(total))
    assert len({shard.padded for shard in shards}) == 1
    assert all(0 <= shard.length <= shard.padded for shard in shards)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "expected"),
    [
        (8, 4, 1, [(0, 1, 2, 3)]),
        (8, 4, 2, [(0, 1), (2, 3)]),
        (8, 2, 4, [(0,), (0,), (1,), (1,)]),
        (8, 1, 2, [(0,), (0,)]),
        (12, 3, 2, [(0, 0, 1), (1, 2, 2)]),
        (6, 6, 3, [(0, 1), (2, 3), (4, 5)]),
    ],
)
def test_kv_heads_serve_their_query_heads(
    heads: int, kv_heads: int, size: int, expected: list[tuple[int, ...]]
) -> None:
    for rank in range(size):
        shard = HeadShard.of(heads, kv_heads, 4, rank, size)
        assert shard.kv_heads == expected[rank]
        local_group = shard.num_heads // shard.num_kv_heads
        for head in range(shard.num_heads):
            wanted = (shard.first_head + head) // (heads // kv_heads)
            assert shard.kv_heads[head // local_group] == wanted


def test_query_heads_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="9 query heads cannot be divided over 2 ranks"):
        HeadShard.of(9, 3, 4, 0, 2)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_fused_qkv_equals_three_products(size: int) -> None:
    torch.manual_seed(0)
    dim, hidden = 4, 10
    shapes = {"q_proj": 8 * dim, "k_proj": 2 * dim, "v_proj": 2 * dim}
    tensors = {f"x.{name}.weight": torch.randn(rows, hidden) for name, rows in shapes.items()}
    tensors |= {f"x.{name}.bias": torch.randn(rows) for name, rows in shapes.items()}
    x = torch.randn(3, hidden)
    whole = {
        name: torch.nn.functional.linear(x, tensors[f"x.{name}.weight"], tensors[f"x.{name}.bias"]).view(
            3, -1, dim
        )
        for name in shapes
    }
    for rank in range(size):
        heads = HeadShard.of(8, 2, dim, rank, size)
        layer = qkv_linear(heads, hidden, bias=True, environment=environment(rank, size))
        fill(layer.weight_map("x."), tensors)
        kv = list(heads.kv_heads)
        expected = torch.cat(
            (
                whole["q_proj"][:, heads.first_head : heads.first_head + heads.num_heads],
                whole["k_proj"][:, kv],
                whole["v_proj"][:, kv],
            ),
            dim=1,
        )
        assert torch.allclose(layer(x).view(3, -1, dim), expected, atol=1e-5)


class _AddOne:
    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def add(self, x: Tensor, output: Tensor) -> None:
        self.inputs.append(x)
        output.add_(1.0)


def test_a_lora_slot_adds_to_the_output_of_its_layer() -> None:
    layer = qkv_linear(HeadShard.of(2, 2, 4, 0, 1), 6, bias=False, environment=environment())
    x = torch.randn(3, 6)
    slot = _AddOne()
    layer.lora = slot
    assert torch.equal(layer(x), torch.ones(3, 24))
    assert slot.inputs == [x]


def test_mlp_parts_of_uneven_size_sum_to_the_whole() -> None:
    torch.manual_seed(0)
    hidden, inner, size = 6, 7, 2
    tensors = {
        "gate_proj.weight": torch.randn(inner, hidden),
        "up_proj.weight": torch.randn(inner, hidden),
        "down_proj.weight": torch.randn(hidden, inner),
    }
    x = torch.randn(3, hidden)
    whole = GatedMLP(hidden, inner, bias=False, environment=environment())
    fill(whole.weight_map(""), tensors)
    parts = []
    for rank in range(size):
        part = GatedMLP(hidden, inner, bias=False, environment=environment(rank, size))
        fill(part.weight_map(""), tensors)
        parts.append(part(x))
    assert torch.allclose(sum(parts, torch.zeros(())), whole(x), atol=1e-5)


def test_vocabulary_that_does_not_divide() -> None:
    torch.manual_seed(0)
    weight, hidden, ids = torch.randn(7, 4), torch.randn(2, 4), torch.arange(7)
    embedded, logits = torch.zeros(7, 4), []
    for rank in range(2):
        layer = VocabParallelEmbedding(7, 4, environment=environment(rank, 2))
        fill(layer.weight_map("e"), {"e": weight})
        embedded += layer(ids)
        head = ParallelLMHead(7, 4, environment=environment(rank, 2), tied_to=None)
        fill(head.weight_map("h"), {"h": weight})
        logits.append(hidden @ head.weight.t())
    assert torch.equal(embedded, weight)
    assert torch.cat(logits, dim=-1).shape == (2, 32)
    whole = ParallelLMHead(7, 4, environment=environment(), tied_to=None)
    fill(whole.weight_map("h"), {"h": weight})
    result = whole(hidden)
    assert result is not None
    assert torch.allclose(result, hidden @ weight.t(), atol=1e-5)


def test_a_tied_head_shares_the_embedding() -> None:
    embedding = VocabParallelEmbedding(7, 4, environment=environment())
    head = ParallelLMHead(7, 4, environment=environment(), tied_to=embedding)
    assert head.weight is embedding.weight
    assert head.weight_map("h") == {}


def test_rotary_frequencies() -> None:
    plain = default_frequencies(8, 100.0)
    assert torch.allclose(plain, torch.tensor([1.0, 100**-0.25, 0.1, 100**-0.75]))
    assert torch.equal(linear_frequencies(8, 100.0, factor=2.0), plain / 2)
    scaled = llama3_frequencies(
        64, 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
    )
    unscaled = default_frequencies(64, 500000.0)
    assert torch.equal(scaled[0], unscaled[0])
    assert torch.equal(scaled[-1], unscaled[-1] / 8)
    assert bool((scaled[:-1] > scaled[1:]).all())


def test_rotary_table_rows_are_positions() -> None:
    frequencies = default_frequencies(8, 100.0)
    rotary = RotaryTable(frequencies, environment=environment())
    assert rotary.table.shape == (64, 8)
    assert torch.equal(rotary.table[5], torch.cat(((5 * frequencies).cos(), (5 * frequencies).sin())))
    x = torch.randn(2, 3, 8)
    rotated = rotary(x, torch.tensor([5, 0]))
    assert torch.equal(rotated[1], x[1])
    turned = torch.complex(x[0, :, :4], x[0, :, 4:]) * torch.polar(torch.ones(4), 5 * frequencies)
    assert torch.allclose(rotated[0], torch.cat((turned.real, turned.imag), dim=-1), atol=1e-6)
