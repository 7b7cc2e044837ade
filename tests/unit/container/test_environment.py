"""The environment table: every variable, its aliases, wrong values, conflicts, empties, secrets and typos."""

from __future__ import annotations

import pytest

from container import fields, variables
from container.environment import DEFAULT_BASE_DIR, Secret, overlay, read_environment, without_secrets
from container.start_report import settings_table
from serving.config import ServerConfig
from serving.errors import ConfigError

# name -> (text, field, value)
ACCEPTED = [
    ("HF_MODEL_REVISION", "refs/pr/1", "model.revision", "refs/pr/1"),
    ("REVISION", "main", "model.revision", "main"),
    ("DTYPE", "bf16", "model.dtype", "bfloat16"),
    ("HF_MODEL_TRUST_REMOTE_CODE", "True", "model.trust_remote_code", True),
    ("TRUST_REMOTE_CODE", "on", "model.trust_remote_code", True),
    ("SM_NUM_GPUS", "4", "parallel.num_ranks", 4),
    ("NUM_SHARD", "2", "parallel.num_ranks", 2),
    ("DEVICE", "CPU", "runtime.device", "cpu"),
    ("MAX_INPUT_TOKENS", "100", "limits.max_input_tokens", 100),
    ("MAX_INPUT_LENGTH", "100", "limits.max_input_tokens", 100),
    ("MAX_TOTAL_TOKENS", "200", "limits.max_total_tokens", 200),
    ("MAX_BATCH_PREFILL_TOKENS", "512", "scheduler.max_batch_prefill_tokens", 512),
    ("MAX_BATCH_TOTAL_TOKENS", "9000", "cache.max_batch_total_tokens", 9000),
    ("MAX_CONCURRENT_REQUESTS", "7", "limits.max_concurrent_requests", 7),
    ("MAX_NUM_SEQS", "8", "scheduler.max_num_seqs", 8),
    ("MAX_QUEUE_TOKENS", "800", "scheduler.max_queue_tokens", 800),
    ("MAX_BEST_OF", "3", "limits.max_best_of", 3),
    ("MAX_N", "4", "limits.max_n", 4),
    ("MAX_CLIENT_BATCH_SIZE", "4", "limits.max_client_batch_size", 4),
    ("GRAMMAR_SUPPORT", "no", "limits.grammar_support", False),
    ("DISABLE_GRAMMAR_SUPPORT", "true", "limits.grammar_support", False),
    ("GRAMMAR_TIMEOUT_S", "0.5", "limits.grammar_timeout_s", 0.5),
    ("GRAMMAR_CACHE_BYTES", "1000", "limits.grammar_cache_bytes", 1000),
    ("WATERMARK_GAMMA", "0.25", "limits.watermark_gamma", 0.25),
    ("WATERMARK_DELTA", "4", "limits.watermark_delta", 4.0),
    ("SERVED_MODEL_NAME", "a, b/c", "model.served_names", ("a", "b/c")),
    ("CHAT_TEMPLATE", "/opt/template.jinja", "model.chat_template", "/opt/template.jinja"),
    ("TOOL_FORMAT", "hermes", "model.tool_format", "hermes"),
    ("REASONING_FORMAT", "none", "model.reasoning_format", "none"),
    ("API_KEY", "secret", "http.api_key", "secret"),
    ("API_KEY_EXEMPT", "invocations", "http.api_key_exempt", ("invocations",)),
    (
        "CORS_ALLOW_ORIGIN",
        "https://a.example,https://b.example",
        "http.cors_allow_origin",
        ("https://a.example", "https://b.example"),
    ),
    ("UNKNOWN_PARAMETERS", "refuse", "http.unknown_parameters", "refuse"),
    ("LOG_PROMPTS", "1", "runtime.log_prompts", True),
    ("OTLP_ENDPOINT", "http://collector:4318", "runtime.otlp_endpoint", "http://collector:4318"),
    ("OTLP_SERVICE_NAME", "chat", "runtime.otlp_service_name", "chat"),
    ("CLOUDWATCH_EMF", "true", "runtime.emf", True),
    ("CLOUDWATCH_EMF_INTERVAL_S", "10", "runtime.emf_interval_s", 10.0),
    ("CLOUDWATCH_EMF_NAMESPACE", "Team/LLM", "runtime.emf_namespace", "Team/LLM"),
    ("CLOUDWATCH_EMF_ENDPOINT", "chat-prod", "runtime.emf_endpoint", "chat-prod"),
    ("UNARY_DEADLINE_S", "0", "http.unary_deadline_s", 0.0),
    ("SAGEMAKER_BATCH", "true", "http.batch_transform", True),
    (
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
        "application/jsonlines",
        "http.default_accept",
        "application/jsonlines",
    ),
    ("HANDLER_TIMEOUT_S", "2.5", "http.handler_timeout_s", 2.5),
    ("SAGEMAKER_ENABLE_STATEFUL_SESSIONS", "false", "sessions.enabled", False),
    ("SAGEMAKER_SESSIONS_EXPIRATION", "60", "sessions.ttl_s", 60.0),
    ("MAX_SESSIONS", "8", "sessions.max_sessions", 8),
    ("SESSION_KV_FRACTION", "0.5", "sessions.kv_fraction", 0.5),
    ("MAX_STOP_SEQUENCES", "0", "limits.max_stop_sequences", 0),
    ("MAX_TOP_N_TOKENS", "9", "limits.max_top_n_tokens", 9),
    ("PAYLOAD_LIMIT", "2000000", "limits.payload_limit_bytes", 2000000),
    ("SAGEMAKER_MAX_REQUEST_SIZE", "1000", "limits.payload_limit_bytes", 1000),
    ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "6", "limits.payload_limit_bytes", 6 * 1024 * 1024),
    ("CUDA_MEMORY_FRACTION", "0.5", "cache.memory_fraction", 0.5),
    ("PREFIX_CACHING", "0", "cache.prefix_caching", False),
    ("KV_BLOCK_SIZE", "32", "cache.block_size", 32),
    ("KV_CACHE_DTYPE", "fp8_e4m3fn", "cache.dtype", "fp8_e4m3"),
    ("STEP_TIME_BUDGET_S", "0.1", "scheduler.step_time_budget_s", 0.1),
    ("DETERMINISTIC", "yes", "runtime.deterministic", True),
    ("DECODE_GRAPHS", "off", "runtime.decode_graphs", False),
    ("ONE_SHOT_ALL_REDUCE", "off", "parallel.one_shot_all_reduce", False),
    ("ASYNC_SCHEDULING", "on", "runtime.async_scheduling", "on"),
    ("NUM_THREADS", "3", "runtime.num_threads", 3),
    ("SAGEMAKER_BIND_TO_PORT", "9001", "http.port", 9001),
    ("PORT", "0", "http.port", 0),
    ("HOSTNAME", "127.0.0.1", "http.host", "127.0.0.1"),
    ("API_WORKERS", "2", "http.api_workers", 2),
    ("HEARTBEAT_S", "1.5", "http.heartbeat_s", 1.5),
    ("BODY_TIMEOUT_S", "5", "http.body_timeout_s", 5.0),
    ("GRACEFUL_TERMINATION_TIMEOUT", "10", "http.drain_timeout_s", 10.0),
    ("LOG_LEVEL", "WARN", "runtime.log_level", "warning"),
    ("JSON_OUTPUT", "t", "runtime.json_logs", True),
]

REFUSED = [
    ("HF_MODEL_TRUST_REMOTE_CODE", "maybe", "true or false"),
    ("SM_NUM_GPUS", "0", "at least 1"),
    ("SM_NUM_GPUS", "all", "whole number"),
    ("MAX_INPUT_TOKENS", "-3", "at least 1"),
    ("MAX_TOTAL_TOKENS", "2e3", "whole number"),
    ("MAX_STOP_SEQUENCES", "-1", "at least 0"),
    ("DTYPE", "int8", "bfloat16"),
    ("DEVICE", "gpu", "cuda"),
    ("CUDA_MEMORY_FRACTION", "1.2", "at most 1"),
    ("CUDA_MEMORY_FRACTION", "nan", "a number"),
    ("PORT", "70000", "65535"),
    ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "six", "MiB"),
    ("GRACEFUL_TERMINATION_TIMEOUT", "soon", "a number"),
    ("LOG_LEVEL", "info,tower=off", "debug"),
    ("MAX_BEST_OF", "9" * 30, "whole number"),
]


def value_of(config: ServerConfig, path: str) -> object:
    slice_name, field_name = path.split(".")
    return getattr(getattr(config, slice_name), field_name)


@pytest.mark.parametrize(("name", "text", "field", "value"), ACCEPTED, ids=[row[0] for row in ACCEPTED])
def test_a_variable_sets_its_field(name: str, text: str, field: str, value: object) -> None:
    environment = read_environment({name: f" {text} "})
    assert value_of(environment.config, field) == value
    assert environment.sources == {field: name}
    assert environment.warnings == ()


def test_every_name_of_the_table_is_covered_above() -> None:
    covered = {row[0] for row in ACCEPTED} | {"HF_MODEL_QUANTIZE", "QUANTIZE"}
    assert covered == {name for variable in variables.VARIABLES for name in variable.names}


def test_every_declared_field_has_a_variable_and_a_description() -> None:
    set_by_table = [variable.field for variable in variables.VARIABLES]
    assert len(set(set_by_table)) == len(set_by_table)
    assert set(set_by_table) | {"model.model_id"} == set(fields.all_fields())
    assert all(fields.field_description(path) for path in fields.all_fields())
    assert len({variable.flag for variable in variables.VARIABLES}) == len(variables.VARIABLES)


@pytest.mark.parametrize(("name", "text", "allowed"), REFUSED)
def test_a_wrong_value_is_one_line_with_name_value_and_what_is_allowed(
    name: str, text: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_environment({name: text})
    message = caught.value.message
    assert f"{name}={text}" in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name", [row[0] for row in ACCEPTED] + ["HF_MODEL_ID", "HF_TOKEN", "HF_MODEL_QUANTIZE"]
)
def test_empty_is_unset(name: str) -> None:
    environment = read_environment({name: "  "})
    assert environment == read_environment({})
    assert environment.config == ServerConfig()


@pytest.mark.parametrize("text", ["1", "true", "TRUE", "Yes", "on", "t", "y"])
def test_true_in_many_spellings(text: str) -> None:
    assert read_environment({"JSON_OUTPUT": text}).config.runtime.json_logs


@pytest.mark.parametrize("text", ["0", "false", "False", "NO", "off", "f", "n"])
def test_false_in_many_spellings(text: str) -> None:
    assert not read_environment({"PREFIX_CACHING": text}).config.cache.prefix_caching


@pytest.mark.parametrize("name", ["HF_MODEL_QUANTIZE", "QUANTIZE"])
def test_quantization_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=awq: quantization scheme 'awq' is not built yet"):
        read_environment({name: "awq"})


def test_two_names_with_different_values_are_a_conflict() -> None:
    with pytest.raises(ConfigError, match="SM_NUM_GPUS=2 and NUM_SHARD=4"):
        read_environment({"SM_NUM_GPUS": "2", "NUM_SHARD": "4"})


def test_two_names_with_equal_values_are_fine() -> None:
    environment = read_environment({"MAX_INPUT_TOKENS": "64", "MAX_INPUT_LENGTH": "064"})
    assert environment.config.limits.max_input_tokens == 64
    assert environment.sources == {"limits.max_input_tokens": "MAX_INPUT_TOKENS"}


def test_ranked_names_are_a_ladder() -> None:
    all_three = {
        "PAYLOAD_LIMIT": "10",
        "SAGEMAKER_MAX_REQUEST_SIZE": "20",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "30",
    }
    assert read_environment(all_three).config.limits.payload_limit_bytes == 10
    del all_three["PAYLOAD_LIMIT"]
    assert read_environment(all_three).config.limits.payload_limit_bytes == 20
    assert read_environment({"SAGEMAKER_BIND_TO_PORT": "1", "PORT": "2"}).config.http.port == 1


def test_an_unlimited_batch_transform_payload_is_a_large_number() -> None:
    environment = read_environment({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"})
    assert environment.config.limits.payload_limit_bytes == variables.UNLIMITED_PAYLOAD_BYTES


def test_a_hostname_that_is_no_address_is_ignored() -> None:
    environment = read_environment({"HOSTNAME": "3f2a9c0d11ee"})
    assert environment.config.http.host == "0.0.0.0"
    assert environment.sources == {}
    assert read_environment({"HOSTNAME": "::1"}).config.http.host == "::1"


def test_limits_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="MAX_INPUT_LENGTH=100 must be below MAX_TOTAL_TOKENS=100"):
        read_environment({"MAX_INPUT_LENGTH": "100", "MAX_TOTAL_TOKENS": "100"})
    with pytest.raises(ConfigError, match="MAX_TOTAL_TOKENS=300 is above MAX_BATCH_TOTAL_TOKENS=200"):
        read_environment({"MAX_TOTAL_TOKENS": "300", "MAX_BATCH_TOTAL_TOKENS": "200"})


def test_unknown_names_with_our_prefixes_are_one_warning() -> None:
    environment = read_environment(
        {
            "MAX_TOTAL_TOKEN": "5",
            "SM_NUM_GPU": "1",
            "SAGEMAKER_SOMETHING": "x",
            "OPTION_MAX_MODEL_LENGTH": "9",
            "SERVING_SOMETHING": "x",
            "HF_SOMETHING": "x",
            "HF_HOME": "/tmp/hf",
            "HF_HUB_OFFLINE": "1",
            "HF_XET_HIGH_PERFORMANCE": "1",
            "SAGEMAKER_REGION": "eu-central-1",
            "SAGEMAKER_PROGRAM": "inference.py",
            "MY_OWN": "1",
            "MAX_EMPTY": "",
        }
    )
    (warning,) = environment.warnings
    assert "MAX_TOTAL_TOKEN (did you mean MAX_TOTAL_TOKENS?)" in warning
    assert "SM_NUM_GPU (did you mean SM_NUM_GPUS?)" in warning
    assert "OPTION_MAX_MODEL_LENGTH (did you mean OPTION_MAX_MODEL_LEN?)" in warning
    for named in ("SAGEMAKER_SOMETHING", "SERVING_SOMETHING", "HF_SOMETHING"):
        assert named in warning
    for silent in (
        "SAGEMAKER_REGION",
        "SAGEMAKER_PROGRAM",
        "MY_OWN",
        "MAX_EMPTY",
        "HF_HOME",
        "HF_HUB",
        "HF_XET",
    ):
        assert silent not in warning


def test_the_ladder_and_the_base_folder() -> None:
    environment = read_environment({"MODEL_ID": "a/b", "HF_MODEL_ID": "demo", "SAGEMAKER_BASE_DIR": "/srv"})
    assert (environment.model_id, environment.hf_model_id, environment.base_dir) == ("a/b", "demo", "/srv")
    assert read_environment({}).base_dir == DEFAULT_BASE_DIR


@pytest.mark.parametrize("name", variables.HF_TOKENS)
def test_a_token_never_prints(name: str) -> None:
    environment = read_environment({name: "hf_canary"})
    assert environment.hf_token is not None
    assert environment.hf_token.reveal() == "hf_canary"
    shown = [
        repr(environment),
        f"{environment.hf_token}",
        f"{environment.hf_token!s:>9}",
    ]
    shown += [str(row) for row in settings_table(environment.config, environment.sources)]
    assert not any("hf_canary" in text for text in shown)


def test_the_api_key_never_prints() -> None:
    key = "sk-never-shown"
    environment = read_environment({"API_KEY": key, "MAX_INPUT_TOKEN": "1"})
    assert environment.config.http.api_key == key
    rows = settings_table(environment.config, environment.sources)
    assert ("http.api_key", "***", "API_KEY") in rows
    assert key not in str(rows) + "".join(environment.warnings)
    assert ("http.api_key", "unset", "default") in settings_table(read_environment({}).config, {})
    assert "API_KEY" not in without_secrets({"API_KEY": key})
    with pytest.raises(ConfigError) as refused:
        read_environment({"API_KEY": f"{key}\x07"})
    assert "API_KEY" in refused.value.message and key not in refused.value.message


def test_different_tokens_are_reported_without_their_values() -> None:
    environment = read_environment({"HF_API_TOKEN": "old-canary", "HF_TOKEN": "new-canary"})
    assert environment.hf_token == Secret("new-canary")
    (warning,) = environment.warnings
    assert "HF_API_TOKEN" in warning and "HF_TOKEN is used" in warning and "canary" not in warning


def test_children_see_no_secrets() -> None:
    environ = {"HF_TOKEN": "a", "HF_API_TOKEN": "b", "AWS_SECRET_ACCESS_KEY": "c", "PATH": "/bin"}
    assert without_secrets(environ) == {"PATH": "/bin"}


def test_a_flag_replaces_all_names_of_its_setting() -> None:
    environ = {"SAGEMAKER_BIND_TO_PORT": "1", "SM_NUM_GPUS": "8", "MODEL_ID": "a/b"}
    merged = overlay(environ, {"port": "9", "num-shard": "2", "model-id": "demo"})
    assert merged == {"PORT": "9", "NUM_SHARD": "2", "MODEL_ID": "demo"}
    assert environ["SAGEMAKER_BIND_TO_PORT"] == "1"


def test_a_host_flag_must_be_an_address() -> None:
    with pytest.raises(ConfigError, match="--hostname localhost"):
        overlay({}, {"hostname": "localhost"})


def test_the_table_for_the_log_names_value_and_source() -> None:
    environment = read_environment({"MAX_BEST_OF": "5"})
    rows = settings_table(environment.config, environment.sources)
    assert ("limits.max_best_of", "5", "MAX_BEST_OF") in rows
    assert ("limits.max_total_tokens", "unset", "default") in rows
    assert len(rows) == len(fields.all_fields())
