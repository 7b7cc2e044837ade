"""Grammars, watermarks and fields that nobody knows in native requests."""

from __future__ import annotations

import json

from serving.config import HttpConfig, LimitsConfig
from serving.sampling_params import Grammar, Watermark
from tests.api.conftest import Front, FrontFactory
from tests.api.test_native_validation import generate, sampling_of


def test_grammars_reach_the_engine_as_text(front: Front) -> None:
    schema = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"minimum": 0.5}}}
    text = json.dumps(schema, separators=(",", ":"))
    for grammar, kind, source in (
        ({"type": "json", "value": schema}, "json_schema", text),
        ({"type": "json_object", "value": json.dumps(schema)}, "json_schema", text),
        ({"type": "json_schema", "value": {"schema": schema}}, "json_schema", text),
        ({"type": "regex", "value": "[0-9]{3}"}, "regex", "[0-9]{3}"),
    ):
        body = json.dumps({"inputs": "hello", "parameters": {"grammar": grammar}})  # keeps the order of keys
        assert front.client.post("/generate", data=body).status_code == 200
        params = front.engine.requests[-1].params
        assert params.grammar == Grammar(kind=kind, source=source)
    assert sampling_of(front, {}).grammar is None


def test_openais_form_of_a_grammar_is_refused_naming_value(front: Front) -> None:
    grammar = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
    assert "`parameters.grammar.value`" in front.error({"inputs": "a", "parameters": {"grammar": grammar}})


def test_grammars_can_be_switched_off(new_front: FrontFactory) -> None:
    front = new_front(limits=LimitsConfig(grammar_support=False))
    body = {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "a"}}}
    assert "`parameters.grammar` is not supported" in front.error(body)
    assert sampling_of(front, {"parameters": {"grammar": None}}).grammar is None


def test_watermarks_take_the_configured_strength(new_front: FrontFactory) -> None:
    front = new_front(limits=LimitsConfig(watermark_gamma=0.25, watermark_delta=4.0))
    assert sampling_of(front, {"parameters": {"watermark": True}}).watermark == Watermark(
        gamma=0.25, delta=4.0
    )
    assert sampling_of(front, {"parameters": {"watermark": False}}).watermark is None


def test_unknown_fields_are_named_and_counted(front: Front) -> None:
    body = {"inputs": "hello", "parameters": {"foo": 1, "é\r\nx": 2}, "stream": True, "bar": None}
    response = front.client.post("/generate", data=json.dumps(body))
    assert response.status_code == 200
    assert response.headers["x-ignored-parameters"] == "stream,bar,parameters.foo,parameters.???x"
    assert "textgen_ignored_parameters 4.0" in front.client.get("/metrics").get_data(as_text=True)


def test_unknown_fields_inside_a_grammar_are_named_too(front: Front) -> None:
    grammar = {"type": "json_schema", "value": {"schema": {}, "extra": 1}, "whitespace": ""}
    response = generate(front, {"grammar": grammar})
    names = "parameters.grammar.whitespace,parameters.grammar.value.extra"
    assert response.headers["x-ignored-parameters"] == names


def test_unknown_fields_can_be_refused(new_front: FrontFactory) -> None:
    front = new_front(http=HttpConfig(unknown_parameters="refuse"))
    error = front.error({"inputs": "hello", "parameters": {"min_p": 0.1}, "bar": None})
    assert "`bar`, `parameters.min_p`" in error
    assert front.engine.requests == []
    assert "textgen_ignored_parameters 2.0" in front.client.get("/metrics").get_data(as_text=True)
    assert generate(front, {"top_k": 3}).status_code == 200
