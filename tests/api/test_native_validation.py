"""Every native parameter at, below and above its bounds, with wrong types, null, NaN and huge numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.config import LimitsConfig
from tests.api.conftest import Front, FrontFactory

U64 = 2**64
SAMPLING: dict[str, Any] = {"do_sample": True}


def generate(front: Front, parameters: dict[str, Any], **fields: Any) -> Any:
    return front.client.post("/generate", json={"inputs": "hello", "parameters": parameters, **fields})


ACCEPTED: list[tuple[str, Any]] = [
    ("best_of", None),
    ("best_of", 0),
    ("best_of", 1),
    ("temperature", None),
    ("temperature", 1e-30),
    ("temperature", 0.5),
    ("temperature", 1),
    ("temperature", 3.4e38),
    ("repetition_penalty", None),
    ("repetition_penalty", 1e-30),
    ("repetition_penalty", 1.2),
    ("frequency_penalty", None),
    ("frequency_penalty", -2.0),
    ("frequency_penalty", 2.0),
    ("top_k", None),
    ("top_k", 1),
    ("top_k", 2**31 - 1),
    ("top_p", None),
    ("top_p", 0.001),
    ("top_p", 0.999),
    ("top_p", 1.0),
    ("typical_p", None),
    ("typical_p", 0.001),
    ("typical_p", 0.999),
    ("typical_p", 1.0),
    ("do_sample", True),
    ("do_sample", False),
    ("max_new_tokens", None),
    ("max_new_tokens", 1),
    ("max_new_tokens", 251),
    ("return_full_text", None),
    ("return_full_text", True),
    ("stop", []),
    ("stop", ["a", "b", "c", "d"]),
    ("truncate", None),
    ("truncate", 1),
    ("truncate", 200),
    ("watermark", False),
    ("watermark", True),
    ("details", True),
    ("decoder_input_details", True),
    ("seed", None),
    ("seed", 0),
    ("seed", U64 - 1),
    ("top_n_tokens", None),
    ("top_n_tokens", 0),
    ("top_n_tokens", 5),
    ("grammar", None),
    ("grammar", {"type": "json", "value": {"type": "object"}}),
    ("grammar", {"type": "json_object", "value": '{"type": "object"}'}),
    ("grammar", {"type": "json_schema", "value": {"name": "a", "strict": True, "schema": {}}}),
    ("grammar", {"type": "regex", "value": "[ab]+"}),
    ("adapter_id", None),
]


@pytest.mark.parametrize(("name", "value"), ACCEPTED)
def test_accepts(front: Front, name: str, value: Any) -> None:
    response = generate(front, {name: value})
    assert response.status_code == 200, response.get_data(as_text=True)
    assert "x-ignored-parameters" not in response.headers


INTEGERS = ("best_of", "top_k", "max_new_tokens", "truncate", "seed", "top_n_tokens")
FLOATS = ("temperature", "repetition_penalty", "frequency_penalty", "top_p", "typical_p")
BOOLEANS = ("do_sample", "details", "decoder_input_details", "watermark")
NOT_NULL = (*BOOLEANS, "stop")

REFUSED: list[tuple[str, Any]] = [
    ("best_of", -1),
    ("best_of", 3),
    ("best_of", U64),
    ("temperature", 0),
    ("temperature", 0.0),
    ("temperature", -0.1),
    ("temperature", 1e39),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", 1e39),
    ("frequency_penalty", -2.001),
    ("frequency_penalty", 2.001),
    ("frequency_penalty", 1e300),
    ("top_k", 0),
    ("top_k", -1),
    ("top_k", 2**31),
    ("top_p", 0.0),
    ("top_p", 1.001),
    ("top_p", -0.5),
    ("top_p", 1e300),
    ("typical_p", 0.0),
    ("typical_p", 1.001),
    ("typical_p", -0.5),
    ("max_new_tokens", 0),
    ("max_new_tokens", -1),
    ("max_new_tokens", 252),
    ("max_new_tokens", 2**32),
    ("max_new_tokens", 2**63),
    ("truncate", 0),
    ("truncate", -1),
    ("truncate", 201),
    ("seed", -1),
    ("seed", U64),
    ("top_n_tokens", -1),
    ("top_n_tokens", 6),
    ("top_n_tokens", 2**31),
    ("stop", ["a", "b", "c", "d", "e"]),
    ("stop", "a"),
    ("stop", [1]),
    ("stop", [None]),
    ("stop", [""]),
    ("stop", ["x" * 1025]),
    ("grammar", "x"),
    ("grammar", {}),
    ("grammar", {"type": "json"}),
    ("grammar", {"type": "text"}),
    ("grammar", {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}),
    ("grammar", {"type": "json", "value": "{"}),
    ("grammar", {"type": "json", "value": "[]"}),
    ("grammar", {"type": "json", "value": []}),
    ("grammar", {"type": "regex", "value": {}}),
    ("grammar", {"type": "json_schema", "value": {"name": "a"}}),
    ("adapter_id", 3),
    ("return_full_text", 1),
    ("return_full_text", "true"),
    *[(name, None) for name in NOT_NULL],
    *[(name, wrong) for name in INTEGERS for wrong in ("1", 1.5, True, [], {}, 10**30, 10**300)],
    *[(name, wrong) for name in FLOATS for wrong in ("0.5", True, [], {}, 10**300)],
    *[(name, wrong) for name in BOOLEANS for wrong in (0, 1, "true", [], {})],
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_refuses_and_names_the_field(front: Front, name: str, value: Any) -> None:
    error = front.error({"inputs": "hello", "parameters": {name: value}})
    assert f"parameters.{name}" in error
    assert front.engine.requests == []


@pytest.mark.parametrize("name", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" + "0" * 400])
def test_refuses_numbers_that_are_none(front: Front, name: str, number: str) -> None:
    body = f'{{"inputs": "hello", "parameters": {{"{name}": {number}}}}}'
    response = front.client.post("/generate", data=body, content_type="application/json")
    assert response.status_code == 400
    assert response.json["error_type"] == "malformed_json"
    assert front.engine.requests == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": 3}, "inputs"),
        ({"inputs": ["a"]}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": "a", "parameters": None}, "parameters"),
        ({"inputs": "a", "parameters": []}, "parameters"),
        ({"inputs": "a", "parameters": "x"}, "parameters"),
        ({"inputs": "a" * 201}, "inputs"),
        ({"inputs": "a" * 256}, "inputs"),
        ({"inputs": "a" * 100_000}, "inputs"),
    ],
)
def test_refuses_bodies(front: Front, body: dict[str, Any], field: str) -> None:
    assert f"`{field}`" in front.error(body)


@pytest.mark.parametrize("stream", [None, 1, "true", []])
def test_stream_must_be_a_boolean(front: Front, stream: Any) -> None:
    assert "`stream`" in front.error({"inputs": "a", "stream": stream}, path="/")


def test_errors_show_the_value_and_the_limit(front: Front) -> None:
    error = front.error({"inputs": "hello", "parameters": {"max_new_tokens": 300}})
    assert error == (
        "Input validation error: `inputs` tokens + `parameters.max_new_tokens` must be <= 256. "
        "Given: 5 `inputs` tokens and 300 `max_new_tokens`"
    )
    error = front.error({"inputs": "hello", "parameters": {"temperature": -0.5}})
    assert error == "Input validation error: `parameters.temperature` must be strictly positive. Given: -0.5"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({"best_of": 3}, {"temperature": 0}),
        ({"best_of": 2}, {"repetition_penalty": 0}),  # without sampling
        ({"temperature": 0}, {"repetition_penalty": 0}),
        ({"repetition_penalty": 0}, {"frequency_penalty": 3}),
        ({"frequency_penalty": 3}, {"top_p": 2}),
        ({"top_p": 2}, {"typical_p": 2}),
        ({"typical_p": 2}, {"top_k": 0}),
        ({"top_k": 0}, {"max_new_tokens": 0}),
        ({"max_new_tokens": 0}, {"stop": ["a"] * 5}),
        ({"stop": ["a"] * 5}, {"seed": U64}),
        ({"seed": U64}, {"top_n_tokens": 6}),
        ({"top_n_tokens": 6}, {"truncate": 0}),
        ({"truncate": 0}, {"max_new_tokens": 256}),
        ({"max_new_tokens": 256}, {"grammar": {"type": "json", "value": "{"}}),
    ],
)
def test_order_of_checks_is_tgis(front: Front, earlier: dict[str, Any], later: dict[str, Any]) -> None:
    error = front.error({"inputs": "hello", "parameters": {**later, **earlier}})
    assert f"parameters.{next(iter(earlier))}" in error


def test_best_of_rules(front: Front, new_front: FrontFactory) -> None:
    assert "needs sampling" in front.error({"inputs": "a", "parameters": {"best_of": 2}})
    assert "needs sampling" in front.error({"inputs": "a", "parameters": {"best_of": 2, "top_p": 1.0}})
    assert "parameters.seed" in front.error(
        {"inputs": "a", "parameters": {"best_of": 2, "seed": 1, **SAMPLING}}
    )
    for setting in ({"temperature": 1.0}, {"top_k": 5}, {"top_p": 0.5}, {"typical_p": 0.5}, SAMPLING):
        front.engine.script = both
        assert generate(front, {"best_of": 2, **setting}).status_code == 200
        assert front.engine.requests[-1].params.n == 2
    alone = new_front(limits=LimitsConfig(max_best_of=1))
    assert "disabled" in alone.error({"inputs": "a", "parameters": {"best_of": 2, **SAMPLING}})
    for best_of in (0, 2):
        parameters = {"best_of": best_of, **SAMPLING}
        assert "stream" in front.error({"inputs": "a", "parameters": parameters}, path="/generate_stream")
        assert "stream" in front.error({"inputs": "a", "parameters": parameters, "stream": True}, path="/")


def both(stream: Any) -> None:
    stream.accept()
    stream.tokens("a", "length")
    stream.tokens("a", "length", index=1)


@pytest.mark.parametrize("adapter", ["mine", "", "x" * 5000, "\n"])
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/invocations"])
def test_an_unknown_adapter_is_never_the_base_model(front: Front, path: str, adapter: str) -> None:
    response = front.client.post(path, json={"inputs": "a", "parameters": {"adapter_id": adapter}})
    assert (response.status_code, response.json["error_type"]) == (404, "not_found")
    assert "parameters.adapter_id" in response.json["error"]
    assert len(response.data) < 1024
    assert front.engine.requests == []


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/invocations"])
def test_an_adapter_beside_the_parameters_is_as_strict(front: Front, path: str) -> None:
    headers = {"X-Amzn-SageMaker-Adapter-Identifier": "mine"}
    for response in (
        front.client.post(path, json={"inputs": "a"}, headers=headers),
        front.client.post(path, json={"inputs": "a", "adapter_id": "mine"}),
    ):
        assert (response.status_code, response.json["error_type"]) == (404, "not_found")
        assert "'mine'" in response.json["error"]
    assert front.engine.requests == []


def test_shares_of_one_mean_off(front: Front) -> None:
    params = sampling_of(front, {"parameters": {"top_p": 1.0, "typical_p": 1.0}})
    assert (params.greedy, params.top_p, params.typical_p) == (True, 1.0, 1.0)


def test_prefill_details_cannot_be_streamed(front: Front) -> None:
    body = {"inputs": "a", "parameters": {"decoder_input_details": True}}
    assert "parameters.decoder_input_details" in front.error(body, path="/generate_stream")


def sampling_of(front: Front, body: dict[str, Any]) -> Any:
    assert front.client.post("/generate", json={"inputs": "hello", **body}).status_code == 200
    return front.engine.requests[-1].params


@pytest.mark.parametrize(
    ("body", "samples"),
    [
        ({}, True),
        ({"parameters": {}}, False),
        ({"parameters": {"do_sample": True}}, True),
        ({"parameters": {"temperature": 1.0}}, False),
        ({"parameters": {"temperature": 0.7}}, True),
        ({"parameters": {"temperature": 0.7, "do_sample": False}}, True),
        ({"parameters": {"top_k": 3}}, True),
        ({"parameters": {"top_p": 0.9}}, True),
        ({"parameters": {"top_p": 1.0}}, False),
        ({"parameters": {"typical_p": 0.9}}, True),
        ({"parameters": {"repetition_penalty": 1.2, "frequency_penalty": 0.5}}, False),
    ],
)
def test_when_tokens_are_sampled(front: Front, body: dict[str, Any], samples: bool) -> None:
    params = sampling_of(front, body)
    assert params.greedy is not samples
    assert (params.seed is not None) is samples


def test_parameters_reach_the_engine(front: Front) -> None:
    params = sampling_of(
        front,
        {
            "parameters": {
                "temperature": 0.5,
                "top_k": 7,
                "top_p": 0.9,
                "typical_p": 0.8,
                "repetition_penalty": 1.1,
                "frequency_penalty": 0.25,
                "seed": U64 - 1,
                "stop": ["x", "y"],
                "max_new_tokens": 9,
                "top_n_tokens": 2,
                "decoder_input_details": True,
                "truncate": 3,
            }
        },
    )
    assert (params.temperature, params.top_k, params.top_p, params.typical_p) == (0.5, 7, 0.9, 0.8)
    assert (params.repetition_penalty, params.relative_frequency_penalty) == (1.1, 0.25)
    assert (params.frequency_penalty, params.presence_penalty) == (0.0, 0.0)
    assert (params.seed, params.stop, params.max_new_tokens, params.n) == (U64 - 1, ("x", "y"), 9, 1)
    assert (params.top_n_tokens, params.prompt_logprobs) == (2, True)
    assert front.engine.requests[-1].prompt_token_ids == list(b"llo")


def test_max_new_tokens_defaults_to_the_rest_of_the_context(front: Front) -> None:
    assert sampling_of(front, {}).max_new_tokens == 251
    assert sampling_of(front, {"parameters": {"truncate": 2}}).max_new_tokens == 254


def test_seeds_differ_from_request_to_request(front: Front) -> None:
    assert len({sampling_of(front, {}).seed for _ in range(8)}) == 8


def test_type_errors_show_the_value(front: Front) -> None:
    error = front.error({"inputs": "hello", "parameters": {"top_k": 1.5}})
    assert (
        error == "Input validation error: `parameters.top_k`: expected `int | null`, got `float`. Given: 1.5"
    )
    assert front.error({"inputs": "hello", "parameters": {"stop": ["a", 7]}}).endswith("Given: 7")


def test_error_bodies_stay_short(front: Front) -> None:
    response = front.client.post(
        "/generate", data=json.dumps({"inputs": "a", "parameters": {"stop": "x" * 5000}})
    )
    assert response.status_code == 422
    assert len(response.data) < 1024
