"""Reading config.json: both spellings of transformers 4 and 5, and a named refusal of what we would compute wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.distributed import ParallelContext
from serving.errors import ModelError
from serving.models.hf_config import read_decoder_config
from serving.models.registry import load_model
from serving.platform import get_device

MINIMAL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 100,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(MINIMAL | changes))
    return folder


def test_defaults_of_an_old_llama(tmp_path: Path) -> None:
    config = read_decoder_config(write(tmp_path))
    assert (config.num_kv_heads, config.head_dim, config.dtype) == (4, 16, "float32")
    assert (config.rope.type, config.rope.theta) == ("default", 10000.0)
    assert config.layer_windows == (None,) * 4
    assert not config.tie_word_embeddings and not config.attention_bias and config.quantization is None


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"type": "llama3"}},
        {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}},
    ],
)
def test_rope_in_both_spellings(tmp_path: Path, changes: dict[str, Any]) -> None:
    rope = read_decoder_config(write(tmp_path, **changes)).rope
    assert (rope.type, rope.theta, rope.factor) == ("llama3", 5e5, 8.0)
    assert rope.original_max_positions == 128


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_in_both_spellings(tmp_path: Path, key: str) -> None:
    assert read_decoder_config(write(tmp_path, **{key: "bfloat16"})).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 8}, (8, 8, 8, 8)),
        ({"sliding_window": None}, (None,) * 4),
        ({"sliding_window": 8, "use_sliding_window": False}, (None,) * 4),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 8)),
        (
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 8, None, 8),
        ),
    ],
)
def test_layer_windows(tmp_path: Path, changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert read_decoder_config(write(tmp_path, **changes)).layer_windows == windows


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 2}, (7, 9)),
        ({"eos_token_id": 7}, {}, (7,)),
        ({}, {"eos_token_id": 2}, (2,)),
        (None, {"eos_token_id": [2, 0]}, (2, 0)),
        (None, {}, ()),
    ],
)
def test_eos_token_ids(
    tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    write(tmp_path, **config)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_decoder_config(tmp_path).eos_token_ids == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; supported: 'silu', 'swish'"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling has rope_type 'yarn'; supported",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling has rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differs between layer types"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear' must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"pretraining_tp": 2}, "pretraining_tp = 2 is not supported"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not supported"),
        ({"num_experts": 8}, "num_experts = 8 is not supported"),
        ({"dtype": "float64"}, "dtype = 'float64' is not supported"),
        ({"vocab_size": 0}, "vocab_size = 0 must be a positive integer"),
        ({"vocab_size": True}, "vocab_size = True must be a positive integer"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small' must be a positive number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3 does not divide num_attention_heads = 4"),
        ({"hidden_size": 66}, "hidden_size = 66 is not a multiple of num_attention_heads = 4"),
        ({"head_dim": 15}, "heads of odd size 15"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes' must be true or false"),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, "layer_types"),
        ({"eos_token_id": "</s>"}, "eos_token_id = '</s>' must be an integer"),
        ({"architectures": []}, "architectures"),
    ],
)
def test_refusals_name_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_decoder_config(write(tmp_path, **changes))
    assert message in caught.value.message
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_config_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match="config.json is not a JSON object"):
        read_decoder_config(tmp_path)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="config.json is missing"):
        read_decoder_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "'GPT2LMHeadModel' is not supported; supported: LlamaForCausalLM, ",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized with 'awq', which is not built yet"),
    ],
)
def test_models_that_cannot_be_loaded(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(
            write(tmp_path, **changes),
            dtype=torch.float32,
            device=get_device("cpu"),
            parallel=ParallelContext.single(),
            deterministic=False,
        )
    assert message in caught.value.message
