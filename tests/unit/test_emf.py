"""Lines of CloudWatch's embedded metric format: valid by its published rules, and right."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import pytest

from serving.messages import EngineStats
from serving.metrics import ServerMetrics
from serving.metrics.emf import EmbeddedMetrics, Reading, Totals, quantile

# Written from the format's specification: which members there are, and their limits.
SCHEMA = {
    "type": "object",
    "required": ["_aws"],
    "properties": {
        "_aws": {
            "type": "object",
            "additionalProperties": False,
            "required": ["Timestamp", "CloudWatchMetrics"],
            "properties": {
                "Timestamp": {"type": "integer", "minimum": 0},
                "CloudWatchMetrics": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["Namespace", "Dimensions", "Metrics"],
                        "properties": {
                            "Namespace": {"type": "string", "minLength": 1, "maxLength": 1024},
                            "Dimensions": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "array",
                                    "maxItems": 30,
                                    "items": {"type": "string", "minLength": 1, "maxLength": 250},
                                },
                            },
                            "Metrics": {
                                "type": "array",
                                "minItems": 1,
                                "maxItems": 100,
                                "items": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "required": ["Name"],
                                    "properties": {
                                        "Name": {"type": "string", "minLength": 1, "maxLength": 1024},
                                        "Unit": {"enum": ["Count", "Count/Second", "Seconds", "Percent"]},
                                        "StorageResolution": {"enum": [1, 60]},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        }
    },
}
ENGINE_ONLY = {"QueueSize", "Running", "KVCacheUse", "Saturation"}


def check(line: str) -> dict[str, Any]:
    """The document, after everything that the specification asks for."""
    assert "\n" not in line
    assert len(line.encode()) < 4096  # of 256 KB; what a pipe takes in one piece
    document: dict[str, Any] = json.loads(line)
    jsonschema.validate(document, SCHEMA)
    for directive in document["_aws"]["CloudWatchMetrics"]:
        for name in (name for names in directive["Dimensions"] for name in names):
            assert isinstance(document[name], str)
            assert 1 <= len(document[name]) <= 1024
        for metric in directive["Metrics"]:
            assert isinstance(document[metric["Name"]], int | float)
            assert math.isfinite(document[metric["Name"]])
    return document


def stats(**numbers: int) -> EngineStats:
    structs = ("queue_s", "step", "grammar", "session")
    zeros: dict[str, Any] = {name: 0 for name in EngineStats.__struct_fields__ if name not in structs}
    return EngineStats(**{**zeros, **numbers})


def count(metrics: ServerMetrics, *first_token_s: float) -> None:
    for seconds in first_token_s:
        metrics.request_count.inc()
        metrics.first_token_duration.observe(seconds)


def test_a_line_counts_its_interval() -> None:
    metrics = ServerMetrics()
    count(metrics, 100.0)
    metrics.request_failure.labels(err="validation").inc(7)
    first = Reading(10.0, Totals.of(metrics.families()), stats(num_prompt_tokens=5, num_generated_tokens=5))
    lines = EmbeddedMetrics(first, namespace="Team/LLM", dimensions={"Endpoint": "chat", "Model": "demo"})
    count(metrics, *[0.1] * 98, 5.0, 5.0)
    metrics.request_failure.labels(err="overloaded").inc(2)
    metrics.request_failure.labels(err="generation").inc()
    engine = stats(
        num_prompt_tokens=305,
        num_generated_tokens=65,
        num_waiting=3,
        num_running=4,
        num_blocks=8,
        num_free_blocks=6,
    )
    document = check(
        lines.line(Reading(40.0, Totals.of(metrics.families()), engine), timestamp_ms=1_800_000_000_000)
    )
    assert document["_aws"]["Timestamp"] == 1_800_000_000_000
    [directive] = document["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], directive["Dimensions"]) == ("Team/LLM", [["Endpoint", "Model"]])
    assert (document["Endpoint"], document["Model"]) == ("chat", "demo")
    assert (document["Requests"], document["Errors"], document["Refused"]) == (100, 3, 2)
    assert (document["QueueSize"], document["Running"]) == (3, 4)
    assert (document["KVCacheUse"], document["Saturation"]) == (25.0, 25.0)
    assert (document["InputTokensPerSecond"], document["OutputTokensPerSecond"]) == (10.0, 2.0)
    assert document["TimeToFirstTokenP50"] == pytest.approx(0.1, rel=0.5)
    assert document["TimeToFirstTokenP99"] == pytest.approx(5.0, rel=0.5)
    quiet = check(lines.line(Reading(70.0, Totals.of(metrics.families()), engine), timestamp_ms=1))
    assert (quiet["Requests"], quiet["Errors"], quiet["OutputTokensPerSecond"]) == (0, 0, 0.0)
    assert "TimeToFirstTokenP50" not in quiet


def test_an_engine_that_does_not_answer_leaves_its_numbers_out() -> None:
    metrics = ServerMetrics()
    first = Reading(0.0, Totals.of(metrics.families()), None)
    lines = EmbeddedMetrics(first, namespace="N", dimensions={"Model": "m"})
    without = check(lines.line(Reading(1.0, first.totals, None), timestamp_ms=1))
    assert not ENGINE_ONLY & set(without)
    again = check(lines.line(Reading(2.0, first.totals, stats()), timestamp_ms=2))
    assert set(again) >= ENGINE_ONLY
    assert "InputTokensPerSecond" not in again


@pytest.mark.parametrize("name", ["", ":x", "modèle\n", "/very/" + "long" * 1000, "  "])
def test_a_dimension_is_always_one_that_cloudwatch_takes(name: str) -> None:
    first = Reading(0.0, Totals(), None)
    document = check(
        EmbeddedMetrics(first, namespace="N", dimensions={"Model": name}).line(first, timestamp_ms=1)
    )
    value = document["Model"]
    assert value.strip()
    assert value.isascii()
    assert value.isprintable()
    assert not value.startswith(":")


def test_quantiles() -> None:
    inf = float("inf")
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0, inf: 0}, 0.5) is None
    assert quantile({1.0: 0, 2.0: 10, inf: 10}, 0.5) == 1.5
    assert quantile({1.0: 10, 2.0: 10, inf: 10}, 0.99) == pytest.approx(0.99)
    assert quantile({1.0: 1, 2.0: 1, inf: 10}, 0.99) == 2.0
    assert quantile({1.0: 5, 2.0: 5, 4.0: 10, inf: 10}, 0.75) == 3.0
