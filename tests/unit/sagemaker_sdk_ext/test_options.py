"""Typed options: they are the server's variables, with its bounds, and are checked before anything is created."""

from __future__ import annotations

from typing import Any

import pytest

from container.environment import read_environment
from container.variables import VARIABLES
from sagemaker_sdk_ext import ConfigurationError, supported_options
from sagemaker_sdk_ext.options import OPTIONS, Option, build_environment
from serving.errors import ConfigError, ModelError

_BY_NAME = {name: variable for variable in VARIABLES for name in variable.names}
_BUILT = [option for option in OPTIONS if not option.not_built and option.name != "hf_token"]


def build(options: dict[str, Any], env: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, str]:
    return build_environment(options, env, **{"model_id": None, "asynchronous": False, **kwargs})


def values_of(option: Option) -> list[Any]:
    if isinstance(option.kind, tuple):
        return list(option.kind)
    if option.kind is bool:
        return [True, False]
    if option.kind is str:
        return ["text"]
    return [value for value in (option.least, option.most) if value is not None]


@pytest.mark.parametrize("option", _BUILT, ids=lambda option: option.name)
def test_every_option_is_a_variable_of_the_server_with_its_aliases(option: Option) -> None:
    assert option.variables[0] in _BY_NAME
    names = {
        name for variable in option.variables if variable in _BY_NAME for name in _BY_NAME[variable].names
    }
    assert names <= set(option.variables)


@pytest.mark.parametrize("option", _BUILT, ids=lambda option: option.name)
def test_what_an_option_allows_the_server_reads(option: Option) -> None:
    for value in values_of(option):
        value = int(value) if option.kind is int else value
        text = build({option.name: value})[option.variables[0]]
        variable = _BY_NAME[option.variables[0]]
        if option.kind is bool:
            assert variable.parse(option.variables[0], text) is value
        else:
            variable.parse(option.variables[0], text)


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.not_built], ids=lambda option: option.name)
def test_what_the_server_refuses_is_refused_here(option: Option) -> None:
    assert supported_options()[option.name]
    with pytest.raises(ConfigurationError, match="the image of this version"):
        build({option.name: "x"})
    for variable in option.variables:
        with pytest.raises(ConfigurationError, match="the image of this version"):
            build({}, {variable: "x"})
        with pytest.raises((ConfigError, ModelError)):
            read_environment({variable: "x"})


@pytest.mark.parametrize(
    ("options", "env", "words"),
    [
        ({"max_total_token": 3}, {}, "did you mean max_total_tokens?"),
        ({"MAX_INPUT_LENGTH": 3}, {}, "did you mean max_input_tokens?"),
        ({"flash": 3}, {}, "there is no option 'flash'; known:"),
        ({"max_total_tokens": "4096"}, {}, "must be a whole number"),
        ({"max_total_tokens": True}, {}, "must be a whole number"),
        ({"max_total_tokens": 0}, {}, "at least 1"),
        ({"memory_fraction": 1.5}, {}, "at most 1"),
        ({"heartbeat_s": float("nan")}, {}, "heartbeat_s"),
        ({"dtype": "int8"}, {}, "one of auto, float32"),
        ({"prefix_caching": 1}, {}, "True or False"),
        ({"served_model_name": [1]}, {}, "list of texts"),
        ({"max_total_tokens": 8}, {"MAX_TOTAL_TOKENS": "9"}, "set the same thing"),
        ({"num_gpus": 2}, {"NUM_SHARD": "2"}, "NUM_SHARD"),
        ({"max_input_tokens": 10, "max_total_tokens": 10}, {}, "the answer needs room"),
        ({"max_input_tokens": 10}, {"MAX_TOTAL_TOKENS": "9"}, "must be below max_total_tokens = 9"),
        ({"max_total_tokens": 10, "max_batch_total_tokens": 9}, {}, "no request could be that long"),
        ({}, {"X": {"a": 1}}, "json.dumps"),
        ({}, {"": "x"}, "must be a text"),
        ({}, {"X": "y" * 1025}, "/opt/ml/model/<file>"),
        ({}, {f"N{i}": "x" for i in range(101)}, "takes 100"),
        ({}, {f"N{i}": "x" * 1000 for i in range(40)}, "takes 32768"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], env: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        build(options, env)


@pytest.mark.parametrize(
    ("options", "env"),
    [({"hf_token": "hf_canary"}, {"HF_API_TOKEN": "hf_canary"}), ({"hf_token": ["hf_canary", 1]}, {})],
)
def test_no_error_shows_a_token(options: dict[str, Any], env: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="hf_token") as caught:
        build_environment(options, env, model_id=None, asynchronous=False)
    assert "canary" not in str(caught.value)


def test_environment_of_a_deployment() -> None:
    assert build(
        {
            "max_input_tokens": 100,
            "num_gpus": 4,
            "json_logs": True,
            "served_model_name": ["a", "b"],
            "dtype": None,
        },
        {"OWN": 1, "FLAG": False, "EMPTY": ""},
        model_id="org/model",
        asynchronous=True,
    ) == {
        "HF_MODEL_ID": "org/model",
        "OWN": "1",
        "FLAG": "false",
        "EMPTY": "",
        "MAX_INPUT_TOKENS": "100",
        "SM_NUM_GPUS": "4",
        "JSON_OUTPUT": "true",
        "SERVED_MODEL_NAME": "a,b",
        "UNARY_DEADLINE_S": "0",
    }
    assert build({"unary_deadline_s": 30}, asynchronous=True) == {"UNARY_DEADLINE_S": "30"}
    with pytest.raises(ConfigurationError, match="model_id"):
        build({}, {"HF_MODEL_ID": "a"}, model_id="b")
