"""A backend that rotates is handed what has not been rotated; everything else stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from serving.attention.sdpa import SdpaAttention
from serving.contracts import AttentionBackend, AttentionMetadata, KVLayerCache, RotatingAttention
from serving.kernels import reference
from serving.models import registry
from serving.sampling_params import SamplingParams
from tests.models.checkpoints import write_checkpoint
from tests.unit.worker.runner_engine import generate, make_core


class RotatingSdpa(SdpaAttention):
    num_calls = 0

    def forward_rotating(
        self,
        query_key: Tensor,
        value: Tensor,
        *,
        rotary_table: Tensor,
        positions: Tensor,
        cache: KVLayerCache,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> Tensor:
        self.num_calls += 1
        rotated = reference.rotary(query_key, rotary_table, positions)
        num_heads = query_key.shape[1] - value.shape[1]
        query, key = rotated[:, :num_heads], rotated[:, num_heads:]
        return self.forward(query, key, value, cache=cache, metadata=metadata, scale=scale, window=window)


@pytest.mark.parametrize("model", ["qwen3", "mistral"])
def test_tokens_stay_the_same(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(model, tmp_path)
    params = SamplingParams(temperature=0.0, max_new_tokens=30)
    requests = {name: ([3 + len(name)] * 7 + [9], params) for name in ("a", "bb", "ccc")}
    expected = generate(make_core(tmp_path), requests)
    backend = RotatingSdpa()
    assert isinstance(backend, RotatingAttention) and not isinstance(SdpaAttention(), RotatingAttention)

    def create(name: str, *, deterministic: bool) -> AttentionBackend:
        return backend

    monkeypatch.setattr(registry, "create_attention", create)
    got = generate(make_core(tmp_path), requests)
    assert backend.num_calls > 30
    for key, (ids, logprobs) in expected.items():
        assert got[key][0] == ids
        assert got[key][1] == pytest.approx(logprobs, abs=1e-5)
