"""Names of other images: what each becomes, what is refused, what is said to have no effect, and conflicts."""

from __future__ import annotations

import pytest

from container import variables
from container.environment import overlay, read_environment, without_secrets
from container.families import FAMILIES, NoEffect, Refusal
from container.fields import all_fields
from container.readings import Given
from serving.config import ServerConfig
from serving.errors import ConfigError

# name -> (text, field, value)
ALIASES = [
    ("HF_REVISION", "v2", "model.revision", "v2"),
    ("HF_TRUST_REMOTE_CODE", "True", "model.trust_remote_code", True),
    ("OPTION_REVISION", "v2", "model.revision", "v2"),
    ("OPTION_TRUST_REMOTE_CODE", "true", "model.trust_remote_code", True),
    ("OPTION_DTYPE", "fp16", "model.dtype", "float16"),
    ("OPTION_TENSOR_PARALLEL_DEGREE", "2", "parallel.num_ranks", 2),
    ("OPTION_TENSOR_PARALLEL_DEGREE", "max", "parallel.num_ranks", None),
    ("TENSOR_PARALLEL_DEGREE", "4", "parallel.num_ranks", 4),
    ("OPTION_MAX_MODEL_LEN", "2048", "limits.max_total_tokens", 2048),
    ("OPTION_MAX_ROLLING_BATCH_SIZE", "32", "scheduler.max_num_seqs", 32),
    ("OPTION_MAX_NUM_SEQS", "32", "scheduler.max_num_seqs", 32),
    ("MAX_BATCH_SIZE", "32", "scheduler.max_num_seqs", 32),
    ("OPTION_MAX_ROLLING_BATCH_PREFILL_TOKENS", "1024", "scheduler.max_batch_prefill_tokens", 1024),
    ("OPTION_MAX_NUM_BATCHED_TOKENS", "1024", "scheduler.max_batch_prefill_tokens", 1024),
    ("OPTION_GPU_MEMORY_UTILIZATION", "0.8", "cache.memory_fraction", 0.8),
    ("OPTION_ENABLE_PREFIX_CACHING", "false", "cache.prefix_caching", False),
    ("OPTION_BLOCK_SIZE", "32", "cache.block_size", 32),
    ("OPTION_KV_CACHE_DTYPE", "fp8", "cache.dtype", "fp8_e4m3"),
    ("OPTION_CHAT_TEMPLATE", "/t.jinja", "model.chat_template", "/t.jinja"),
    ("OPTION_SERVED_MODEL_NAME", "a", "model.served_names", ("a",)),
    ("OPTION_OUTPUT_FORMATTER", "jsonlines", "http.default_accept", "application/jsonlines"),
    ("OPTION_OUTPUT_FORMATTER", "SSE", "http.default_accept", "text/event-stream"),
    ("OPTION_OUTPUT_FORMATTER", "json", "http.default_accept", None),
    ("OPTION_PREDICT_TIMEOUT", "120", "http.unary_deadline_s", 120.0),
    ("SERVING_PREDICT_TIMEOUT", "30", "http.unary_deadline_s", 30.0),
    ("SERVING_JOB_QUEUE_SIZE", "1000", "limits.max_concurrent_requests", 1000),
    ("SERVING_MAX_REQUEST_SIZE", "5000", "limits.payload_limit_bytes", 5000),
    ("SERVING_CORS_ALLOWED_ORIGIN", "https://a", "http.cors_allow_origin", ("https://a",)),
    ("OPTION_ENABLE_STATEFUL_SESSIONS", "false", "sessions.enabled", False),
    ("OPTION_SESSIONS_EXPIRATION", "90.5", "sessions.ttl_s", 90.5),
    ("SM_VLLM_REVISION", "v2", "model.revision", "v2"),
    ("SM_VLLM_TRUST_REMOTE_CODE", "true", "model.trust_remote_code", True),
    ("SM_VLLM_DTYPE", "half", "model.dtype", "float16"),
    ("SM_VLLM_DTYPE", "float", "model.dtype", "float32"),
    ("SM_VLLM_TENSOR_PARALLEL_SIZE", "2", "parallel.num_ranks", 2),
    ("SM_VLLM_MAX_MODEL_LEN", "4096", "limits.max_total_tokens", 4096),
    ("SM_VLLM_MAX_MODEL_LEN", "8k", "limits.max_total_tokens", 8000),
    ("SM_VLLM_MAX_MODEL_LEN", "8K", "limits.max_total_tokens", 8192),
    ("SM_VLLM_MAX_MODEL_LEN", "-1", "limits.max_total_tokens", None),
    ("SM_VLLM_MAX_MODEL_LEN", "auto", "limits.max_total_tokens", None),
    ("SM_VLLM_GPU_MEMORY_UTILIZATION", "0.85", "cache.memory_fraction", 0.85),
    ("SM_VLLM_MAX_NUM_SEQS", "64", "scheduler.max_num_seqs", 64),
    ("SM_VLLM_MAX_NUM_BATCHED_TOKENS", "2048", "scheduler.max_batch_prefill_tokens", 2048),
    ("SM_VLLM_ENABLE_PREFIX_CACHING", "false", "cache.prefix_caching", False),
    ("SM_VLLM_NO_ENABLE_PREFIX_CACHING", "true", "cache.prefix_caching", False),
    ("SM_VLLM_DISABLE_CUSTOM_ALL_REDUCE", "true", "parallel.one_shot_all_reduce", False),
    ("SM_VLLM_BLOCK_SIZE", "32", "cache.block_size", 32),
    ("SM_VLLM_KV_CACHE_DTYPE", "auto", "cache.dtype", "auto"),
    ("SM_VLLM_SERVED_MODEL_NAME", "a", "model.served_names", ("a",)),
    ("SM_VLLM_SERVED_MODEL_NAME", '["a", "b"]', "model.served_names", ("a", "b")),
    ("SM_VLLM_CHAT_TEMPLATE", "/t.jinja", "model.chat_template", "/t.jinja"),
    ("SM_VLLM_TOOL_CALL_PARSER", "llama4_pythonic", "model.tool_format", "pythonic"),
    ("SM_VLLM_REASONING_PARSER", "deepseek_r1", "model.reasoning_format", "think"),
    ("SM_VLLM_API_KEY", "secret", "http.api_key", "secret"),
    ("SM_VLLM_PORT", "9001", "http.port", 9001),
    ("SM_VLLM_HOST", "127.0.0.1", "http.host", "127.0.0.1"),
    ("SM_VLLM_ALLOWED_ORIGINS", '["https://a"]', "http.cors_allow_origin", ("https://a",)),
    ("SM_VLLM_MAX_LOGPROBS", "20", "limits.max_top_n_tokens", 20),
    ("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "3600", "http.unary_deadline_s", 3600.0),
    ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "60", "http.unary_deadline_s", 58.0),
    ("MMS_DEFAULT_RESPONSE_TIMEOUT", "500", "http.unary_deadline_s", 500.0),
    ("SAGEMAKER_NUM_MODEL_WORKERS", "2", "http.api_workers", 2),
    ("SAGEMAKER_MODEL_SERVER_WORKERS", "2", "http.api_workers", 2),
    ("MMS_MAX_REQUEST_SIZE", "1000000000", "limits.payload_limit_bytes", 10**9),
]

REFUSED_VALUES = [
    ("OPTION_DTYPE", "int8", "bf16"),
    ("OPTION_KV_CACHE_DTYPE", "fp8_e5m2", "fp8_e4m3"),
    ("OPTION_TENSOR_PARALLEL_DEGREE", "all", "max"),
    ("OPTION_OUTPUT_FORMATTER", "my_formatter", "sse"),
    ("OPTION_PREDICT_TIMEOUT", "-1", "at least 0"),
    ("SM_VLLM_MAX_MODEL_LEN", "8g", "8K"),
    ("SM_VLLM_TOOL_CALL_PARSER", "qwen3_coder", "hermes"),
    ("SM_VLLM_SERVED_MODEL_NAME", "[1, 2]", "JSON array"),
    ("SM_VLLM_HOST", "localhost", "IP address"),
    ("SM_VLLM_GPU_MEMORY_UTILIZATION", "90", "at most 1"),
]

_REFUSALS = [refusal for family in FAMILIES for refusal in family.refusals]
_NO_EFFECTS = [item for family in FAMILIES for item in family.no_effects]


def value_of(config: ServerConfig, path: str) -> object:
    slice_name, field_name = path.split(".")
    return getattr(getattr(config, slice_name), field_name)


@pytest.mark.parametrize(("name", "text", "field", "value"), ALIASES)
def test_an_alias_sets_the_field_of_its_setting(name: str, text: str, field: str, value: object) -> None:
    environment = read_environment({name: text})
    assert value_of(environment.config, field) == value
    assert environment.sources == {field: name}
    assert environment.warnings == ()


def test_every_alias_is_covered_above_and_names_a_field() -> None:
    others = {"OPTION_QUANTIZE", "SM_VLLM_QUANTIZATION", "OPTION_MODEL_ID", "SM_VLLM_MODEL"}
    assert {row[0] for row in ALIASES} | others == {alias.name for alias in variables.ALIASES}
    assert {alias.field for alias in variables.ALIASES} <= set(all_fields())


def test_no_name_means_two_things() -> None:
    names = [alias.name for alias in variables.ALIASES]
    names += [item.name for item in (*_REFUSALS, *_NO_EFFECTS)]
    names += [name for variable in variables.VARIABLES for name in variable.names]
    names += [variables.MODEL_ID, variables.HF_MODEL_ID, *variables.HOSTING_NAMES, *variables.HF_TOKENS]
    assert sorted(names) == sorted(set(names))
    assert not set(names) & variables.PLATFORM_NAMES


@pytest.mark.parametrize(("name", "text", "allowed"), REFUSED_VALUES)
def test_a_wrong_value_says_what_is_allowed(name: str, text: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_environment({name: text})
    assert f"{name}={text}" in caught.value.message and allowed in caught.value.message


@pytest.mark.parametrize("refusal", _REFUSALS, ids=lambda refusal: refusal.name)
def test_what_would_change_answers_is_not_ignored(refusal: Refusal) -> None:
    with pytest.raises(ConfigError, match=refusal.name) as caught:
        read_environment({refusal.name: "canary-value"})
    assert "canary-value" not in caught.value.message


def test_what_happens_anyway_is_not_refused() -> None:
    asked = {refusal.name: value for refusal in _REFUSALS for value in refusal.harmless}
    assert len(asked) > 10
    environment = read_environment(asked)
    assert environment.config == ServerConfig() and environment.warnings == ()


@pytest.mark.parametrize("name", ["OPTION_QUANTIZE", "SM_VLLM_QUANTIZATION"])
def test_quantization_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=awq: quantization scheme 'awq' is not built yet"):
        read_environment({name: "awq"})


@pytest.mark.parametrize("item", _NO_EFFECTS, ids=lambda item: item.name)
def test_what_has_no_effect_is_told_with_the_reason(item: NoEffect) -> None:
    environment = read_environment({item.name: "x"})
    (warning,) = environment.warnings
    assert warning.startswith(f"{item.name} has no effect because ")
    assert environment.config == ServerConfig()


def test_flags_of_another_image_are_named_in_one_line() -> None:
    environment = read_environment({"SM_SGLANG_TP_SIZE": "2", "SM_SGLANG_MODEL_PATH": "a/b"})
    (warning,) = environment.warnings
    assert warning.startswith("SM_SGLANG_MODEL_PATH, SM_SGLANG_TP_SIZE have no effect")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"SM_NUM_GPUS": "2"}, {"OPTION_TENSOR_PARALLEL_DEGREE": "4"}),
        ({"SM_NUM_GPUS": "2"}, {"TENSOR_PARALLEL_DEGREE": "max"}),
        ({"OPTION_MAX_MODEL_LEN": "100"}, {"SM_VLLM_MAX_MODEL_LEN": "1k"}),
        ({"MODEL_ID": "a/b"}, {"OPTION_MODEL_ID": "a/c"}),
        ({"HF_MODEL_REVISION": "a"}, {"HF_REVISION": "b"}),
    ],
)
def test_a_conflict_between_families_names_both(first: dict[str, str], second: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_environment({**second, **first})
    for name, text in (*first.items(), *second.items()):
        assert f"{name}={text}" in caught.value.message


def test_equal_values_of_two_families_are_fine_in_any_spelling() -> None:
    environment = read_environment({"DTYPE": "bfloat16", "OPTION_DTYPE": "bf16", "SM_VLLM_DTYPE": "BFloat16"})
    assert environment.config.model.dtype == "bfloat16"
    assert environment.sources == {"model.dtype": "DTYPE"}


def test_a_conflict_does_not_print_keys() -> None:
    with pytest.raises(ConfigError) as caught:
        read_environment({"API_KEY": "canary-1", "SM_VLLM_API_KEY": "canary-2"})
    assert "SM_VLLM_API_KEY=***" in caught.value.message and "canary" not in caught.value.message
    assert without_secrets({"SM_VLLM_API_KEY": "canary", "SM_VLLM_HF_TOKEN": "canary"}) == {}
    platform = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "SAGEMAKER_SERVE_SECRET_KEY")
    assert without_secrets(dict.fromkeys(platform, "canary")) == {}


def test_where_the_platform_or_a_toolkit_gives_an_order_it_is_kept() -> None:
    timeouts = {"SAGEMAKER_MODEL_SERVER_TIMEOUT": "20", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "30"}
    assert read_environment(timeouts).config.http.unary_deadline_s == 30.0
    ports = {"SAGEMAKER_BIND_TO_PORT": "9001", "SM_VLLM_PORT": "8000"}
    assert read_environment(ports).config.http.port == 9001
    bodies = {"SAGEMAKER_MAX_PAYLOAD_IN_MB": "6", "MMS_MAX_REQUEST_SIZE": "2000000000"}
    assert read_environment(bodies).config.limits.payload_limit_bytes == 6 * 1024 * 1024


def test_a_file_is_a_source_like_the_environment() -> None:
    given = [Given("OPTION_MAX_MODEL_LEN", "512", "option.max_model_len in /m/serving.properties")]
    environment = read_environment({"DTYPE": "float32"}, given)
    assert environment.config.limits.max_total_tokens == 512
    assert environment.sources["limits.max_total_tokens"] == given[0].source
    with pytest.raises(ConfigError) as caught:
        read_environment({"MAX_TOTAL_TOKENS": "513"}, given)
    assert "MAX_TOTAL_TOKENS=513" in caught.value.message
    assert "option.max_model_len=512 in /m/serving.properties" in caught.value.message


def test_the_model_under_another_name_is_the_first_rung() -> None:
    environment = read_environment({"SM_VLLM_MODEL": "a/b", "OPTION_MODEL_ID": "a/b", "HF_MODEL_ID": "c/d"})
    assert (environment.model_id, environment.model_id_source) == ("a/b", "OPTION_MODEL_ID")
    assert "model.model_id" not in environment.sources


def test_a_flag_replaces_the_names_of_every_family() -> None:
    environ = {"SM_VLLM_MODEL": "a/b", "OPTION_TENSOR_PARALLEL_DEGREE": "max"}
    merged = overlay(environ, {"model-id": "demo", "num-shard": "2"})
    assert merged == {"MODEL_ID": "demo", "NUM_SHARD": "2"}


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_another_task_is_refused(task: str) -> None:
    with pytest.raises(ConfigError, match="only the task text-generation is served"):
        read_environment({"HF_TASK": task})
