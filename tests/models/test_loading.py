"""Loading real checkpoints: sharded, with missing or superfluous tensors, tied, in another type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serving.distributed import ParallelContext
from serving.errors import ModelError
from serving.models.registry import load_model
from serving.platform import get_device
from tests.models.checkpoints import VOCAB_SIZE, write_checkpoint
from tests.models.harness import PagedHarness, load, random_tokens

TOKENS = random_tokens(20, VOCAB_SIZE, seed=5)
NAME = "model.safetensors"


def test_shards_give_the_same_model_as_one_file(tmp_path: Path) -> None:
    write_checkpoint("llama2", tmp_path / "one")
    write_checkpoint("llama2", tmp_path / "many", max_shard_size="200KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    one, many = (PagedHarness(load(tmp_path / folder)).step({0: TOKENS}) for folder in ("one", "many"))
    assert one is not None and many is not None
    assert torch.equal(one, many)


def test_a_tensor_that_is_gone_or_unknown(tmp_path: Path) -> None:
    write_checkpoint("qwen2", tmp_path)
    tensors = load_file(tmp_path / NAME)
    bias = tensors.pop("model.layers.1.self_attn.k_proj.bias")
    save_file(tensors, tmp_path / NAME)
    with pytest.raises(
        ModelError, match=r"lacks 1 tensors the model needs: model\.layers\.1\.self_attn\.k_proj\.bias"
    ):
        load(tmp_path)
    save_file(
        tensors | {"model.layers.1.self_attn.k_proj.bias": bias, "score.weight": bias.clone()},
        tmp_path / NAME,
    )
    with pytest.raises(ModelError, match=r"1 tensors the model has no place for: score\.weight"):
        load(tmp_path)


def test_config_and_weights_of_different_sizes(tmp_path: Path) -> None:
    write_checkpoint("llama2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 180}))
    with pytest.raises(
        ModelError, match=r"down_proj\.weight' has shape \[64, 176\], the config needs \[64, 180\]"
    ):
        load(tmp_path)


def test_a_tied_head_in_the_file_and_old_rotary_tables_are_ignored(tmp_path: Path) -> None:
    write_checkpoint("llama3", tmp_path)
    before = PagedHarness(load(tmp_path)).step({0: TOKENS})
    tensors = load_file(tmp_path / NAME)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / NAME)
    after = PagedHarness(load(tmp_path)).step({0: TOKENS})
    assert before is not None and after is not None
    assert torch.equal(before, after)


def test_bfloat16_weights_compute_in_either_type(tmp_path: Path) -> None:
    reference = write_checkpoint("llama3", tmp_path)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / NAME).items()}
    save_file(tensors, tmp_path / NAME)
    reference.load_state_dict(tensors, strict=False)
    with torch.inference_mode():
        expected = reference(torch.tensor([TOKENS])).logits[0]
    wide = PagedHarness(load(tmp_path)).step({0: TOKENS})
    assert wide is not None
    assert (wide - expected).abs().max() < 1e-4
    model = load_model(
        tmp_path,
        dtype=torch.bfloat16,
        device=get_device("cpu"),
        parallel=ParallelContext.single(),
        deterministic=False,
    )
    narrow = PagedHarness(model).step({0: TOKENS})
    assert narrow is not None
    assert narrow.dtype is torch.float32
    assert (narrow - expected).abs().mean() < 0.1 * expected.std()


def test_group_facts(tmp_path: Path) -> None:
    write_checkpoint("qwen2_mixed", tmp_path)
    model = load(tmp_path)
    assert model.layer_groups == ["full", "window", "window"]
    groups = {group.name: group for group in model.kv_groups}
    assert (groups["full"].num_layers, groups["full"].window) == (1, None)
    assert (groups["window"].num_layers, groups["window"].window) == (2, 24)
    assert groups["window"].bytes_per_token == 2 * 2 * 4 * 8 * 4


def test_the_model_path_needs_no_transformers_and_the_config_reader_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; import serving.models.hf_config, serving.resolve; assert 'torch' not in sys.modules; "
        "import serving.models.registry; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=60)
