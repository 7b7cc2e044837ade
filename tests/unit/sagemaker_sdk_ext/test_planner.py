"""The planner's arithmetic against real models, and its verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from sagemaker_sdk_ext import ConfigUnreachable, ConfigurationError, Misfit, plan
from sagemaker_sdk_ext.instances import INSTANCES, cpu_memory_gib, find_instance
from sagemaker_sdk_ext.model_shape import SUPPORTED, read_shape
from sagemaker_sdk_ext.plan_text import main
from sagemaker_sdk_ext.planner import default_ranks

BASE = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "_name_or_path": "llama-8b",
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Llama", {"head_dim": 64}),
        ("Mistral", {"sliding_window": 1024}),
        ("Mistral", {"head_dim": 16, "num_key_value_heads": 8}),
        ("Qwen2", {}),
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 64}),
        ("Qwen3", {"head_dim": 64, "attention_bias": True, "tie_word_embeddings": True}),
    ],
)
def test_parameters_are_those_of_the_real_model(family: str, changes: dict[str, Any]) -> None:
    config = getattr(transformers, f"{family}Config")(**BASE | changes)
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    written = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [type(model).__name__]}
    assert read_shape(written).num_parameters == sum(p.numel() for p in model.parameters())


def test_parameters_and_bytes_are_those_of_the_demo_model_s_files(demo_model_dir: Path) -> None:
    found = plan(demo_model_dir)
    with safe_open(demo_model_dir / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert found.shape.num_parameters == sum(tensor.numel() for tensor in tensors)
    assert found.shape.weight_bytes(found.shape.dtype) == sum(t.numel() * t.element_size() for t in tensors)
    assert not found.from_hub and found.best is not None


def test_kv_cache_bytes() -> None:
    shape = read_shape(LLAMA_8B)
    assert shape.kv_bytes(1, dtype="bfloat16") == 2 * 8 * 128 * 32 * 2
    assert shape.kv_bytes(10, dtype="float32", num_ranks=4) == 10 * 2 * 2 * 128 * 32 * 4
    assert shape.kv_bytes(1, dtype="bfloat16", num_ranks=16) == 2 * 1 * 128 * 32 * 2
    windowed = read_shape(LLAMA_8B | {"sliding_window": 100})
    assert windowed.kv_bytes(4096, dtype="bfloat16") == shape.kv_bytes(100, dtype="bfloat16")
    off = read_shape(LLAMA_8B | {"sliding_window": 100, "use_sliding_window": False})
    assert off.kv_bytes(4096, dtype="bfloat16") == shape.kv_bytes(4096, dtype="bfloat16")
    kinds = ["sliding_attention", "full_attention"] * 16
    mixed = read_shape(LLAMA_8B | {"sliding_window": 96, "layer_types": kinds})
    assert mixed.kv_bytes(4096, dtype="bfloat16") * 2 == shape.kv_bytes(4096 + 96, dtype="bfloat16")
    late = read_shape(LLAMA_8B | {"sliding_window": 96, "use_sliding_window": True, "max_window_layers": 28})
    assert late.layer_windows.count(96) == 4


def test_what_fits_where() -> None:
    small, big = plan(LLAMA_8B), plan(LLAMA_70B)
    assert small.best is not None and small.best.instance_type == "ml.g6.xlarge"
    assert big.best is not None and big.best.num_ranks == 4
    one = big.fit_for("ml.g5.12xlarge")
    assert one is not None and not one.fits and one.problem is not None and "32.9 GiB" in one.problem
    assert all(fit.num_ranks == find_instance(fit.instance_type).num_gpus for fit in big.fits)  # type: ignore[union-attr]
    prices = [fit.price_usd for fit in small.fits if fit.fits and fit.price_usd is not None]
    assert prices == sorted(prices)
    assert {fit.instance_type for fit in small.fits} == {instance.name for instance in INSTANCES}
    more = small.fit_for("ml.g6.12xlarge")
    assert more is not None and small.best is not None and more.kv_tokens > 4 * small.best.kv_tokens


def test_the_server_s_choice_of_ranks_and_what_contradicts_it() -> None:
    assert default_ranks(28, 8) == 7 and default_ranks(32, 8) == 8 and default_ranks(14, 4) == 2
    heads_28 = LLAMA_8B | {"num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584}
    fit = plan(heads_28).fit_for("ml.g5.48xlarge")
    assert fit is not None and fit.num_ranks == 7
    assert plan(heads_28).environment("ml.g5.48xlarge")["SM_NUM_GPUS"] == "7"
    for num_gpus, words in ((8, "exceeds its 4 GPUs"), (3, "does not divide")):
        fit = plan(LLAMA_8B, num_gpus=num_gpus).fit_for("ml.g5.12xlarge")
        assert fit is not None and fit.problem is not None and words in fit.problem


def test_asked_lengths_have_to_fit() -> None:
    fit = plan(LLAMA_8B, max_total_tokens=100_000).fit_for("ml.g6.xlarge")
    assert fit is not None and fit.problem is not None and "fewer than the 100000" in fit.problem
    too_long = plan(LLAMA_8B, max_total_tokens=200_000)
    assert too_long.best is None and "exceeds the model's context" in str(too_long.fits[0].problem)
    with pytest.raises(Misfit, match="allow_misfit=True"):
        too_long.require("ml.p5.48xlarge")
    plan(LLAMA_8B).require("ml.g6.xlarge")
    recommended = int(plan(LLAMA_8B).environment("ml.g6.xlarge")["MAX_TOTAL_TOKENS"])
    assert 0.8 * 27_000 < recommended < 27_361


def test_cpu_instances_are_judged_by_their_memory() -> None:
    assert cpu_memory_gib("ml.c6i.2xlarge") == 16 and cpu_memory_gib("ml.m7i.large") == 8
    assert cpu_memory_gib("ml.g5.xlarge") is None and cpu_memory_gib("ml.trn1.2xlarge") is None
    fit = plan(LLAMA_8B, "ml.c6i.2xlarge").fit_for("ml.c6i.2xlarge")
    assert fit is not None and not fit.fits
    roomy = plan(LLAMA_8B, "ml.r6i.4xlarge").fit_for("ml.r6i.4xlarge")
    assert roomy is not None and roomy.fits and roomy.gpus == "no GPU"
    with pytest.raises(ConfigurationError, match="Inferentia"):
        plan(LLAMA_8B, "ml.inf2.xlarge")


def test_time_limits_grow_with_the_weights() -> None:
    small, big = plan(LLAMA_8B), plan(LLAMA_70B)
    assert 60 <= small.startup_timeout_s < big.startup_timeout_s <= 3600
    assert small.download_timeout_s < big.download_timeout_s


def test_what_the_image_does_not_run_is_said() -> None:
    from serving.models.registry import supported_architectures

    assert sorted(SUPPORTED) == supported_architectures()
    mixtral = plan(LLAMA_8B | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8})
    assert mixtral.best is None and mixtral.shape.num_parameters > 40e9
    assert "MixtralForCausalLM is not built" in str(mixtral) and "experts are counted" in str(mixtral)
    awq = plan(LLAMA_8B | {"quantization_config": {"quant_method": "awq"}})
    assert awq.best is None and "quantized with awq" in str(awq)
    latent = plan(LLAMA_8B | {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "architectures": ["X"]})
    assert latent.kv_bytes_per_token == (512 + 64) * 32 * 2


def test_dtypes_follow_the_server() -> None:
    assert plan(LLAMA_8B | {"torch_dtype": "float32"}).dtype == "bfloat16"
    assert plan(LLAMA_8B, dtype="float32").weight_bytes == 2 * plan(LLAMA_8B).weight_bytes
    with pytest.raises(ConfigurationError, match="int4"):
        plan(LLAMA_8B, dtype="int4")


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreachable, match="config.json is missing"):
        plan(tmp_path)
    with pytest.raises(ConfigUnreachable, match="archive"):
        plan("s3://bucket/model.tar.gz")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="no JSON object"):
        plan(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="not JSON"):
        plan(str(tmp_path))
    with pytest.raises(ConfigurationError, match="hidden_size = None"):
        plan({"num_hidden_layers": 1, "num_attention_heads": 1})


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "8.03 billion",
        "15.0 GiB in bfloat16",
        "128 KiB per token",
        "ml.g6.xlarge",
        "us-east-1",
        "inf and trn",
    ):
        assert words in shown
    assert main([str(tmp_path), "--instance-type", "ml.c6i.large"]) == 1
    assert "ml.c6i.large does not fit" in capsys.readouterr().out
    assert main([str(tmp_path / "absent")]) == 2
    assert "config.json is missing" in capsys.readouterr().err
