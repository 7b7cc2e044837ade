"""Every number of a native request at its edges and beyond: what is out of range is refused naming field, value and limit,
cheaply, and nothing of it reaches the engine.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import pytest

from tests.api.conftest import Front

ROUTES = ("/generate", "/generate_stream", "/", "/invocations")
FLOAT_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class Field:
    """A parameter's range; `limit` is how errors write it."""

    name: str
    low: float
    high: float
    limit: str
    open_low: bool = False
    whole: bool = True

    def allows(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high and (not self.whole or isinstance(value, int))


FIELDS = (
    Field("best_of", 0, 1, "best_of"),
    Field("temperature", 0, FLOAT_MAX, "strictly positive", open_low=True, whole=False),
    Field("repetition_penalty", 0, FLOAT_MAX, "strictly positive", open_low=True, whole=False),
    Field("frequency_penalty", -2.0, 2.0, "<= 2.0", whole=False),
    Field("top_k", 1, 2**31 - 1, "2147483647"),
    Field("top_p", 0, 1, "<= 1.0", open_low=True, whole=False),
    Field("typical_p", 0, 1, "<= 1.0", open_low=True, whole=False),
    Field("max_new_tokens", 1, 255, "<= 4294967295"),
    Field("truncate", 1, 200, "<= 200"),
    Field("seed", 0, 2**64 - 1, "18446744073709551615"),
    Field("top_n_tokens", 0, 5, "<= 5"),
)
NUMBERS: tuple[float, ...] = (
    0, -1, 1, 2, 5, 6, 200, 201, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30,
    -(2**31), -(2**63), -(2**64), 0.5, 1.0, 1.0001, 1.5, -0.5, 2.0001, -2.0001, 1e-300, 1e38, 3.5e38, 1e300, -1e300,
)  # fmt: skip
NO_NUMBERS = ('"1"', '"0.5"', "true", "false", "[]", "[1]", "{}", '""')
NOT_JSON = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" + "0" * 400, "1" + "0" * 5000)


def body(name: str, value: str) -> str:
    return f'{{"inputs":"a","parameters":{{"{name}":{value}}}}}'


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_numbers(front: Front, field: Field) -> None:
    for number in NUMBERS:
        for path in ROUTES:
            streams = path == "/generate_stream"
            response = front.client.post(path, data=body(field.name, json.dumps(number)))
            allowed = field.allows(number) and not (field.name == "best_of" and streams and number != 1)
            assert response.status_code == (200 if allowed else 422), (field.name, number, response.data)
            if not allowed:
                error = response.json["error"]
                assert f"`parameters.{field.name}`" in error, error
                assert len(response.data) < 1024


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_errors_name_value_and_limit(front: Front, field: Field) -> None:
    high = field.high + 1 if field.high < 1e30 else 1e39
    for number in (field.low - 1, int(high) if field.whole else float(high)):
        if field.whole:
            number = int(number)
        error = front.error({"inputs": "a", "parameters": {field.name: number}})
        if field.name == "best_of" and number == 2:
            assert "needs sampling" in error and "Given: 2" in error
        elif isinstance(number, int) and number >= 2**64:
            assert "Given: 1844674407370955" in error
        else:
            assert str(number) in error, error
            assert field.limit in error or "<= 256" in error or "<= 3.40282e+38" in error, error


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_what_is_no_number(front: Front, field: Field) -> None:
    for value in NO_NUMBERS:
        response = front.client.post("/generate", data=body(field.name, value))
        assert response.status_code == 422
        assert f"`parameters.{field.name}`" in response.json["error"]
    for value in NOT_JSON:
        response = front.client.post("/generate", data=body(field.name, value))
        assert (response.status_code, response.json["error_type"]) == (400, "malformed_json")
    assert front.client.post("/generate", data=body(field.name, "null")).status_code == 200
    assert len(front.engine.requests) == 1


def test_refusals_are_quick(front: Front) -> None:
    front.client.post("/generate", data=body("best_of", "1e400"))
    began = time.thread_time()
    for value in ("1" + "0" * 100_000, str(2**63), "-1"):
        assert front.client.post("/generate", data=body("best_of", value)).status_code in (400, 422)
    assert time.thread_time() - began < 0.25
