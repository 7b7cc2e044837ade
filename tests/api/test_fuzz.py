"""Whatever a client sends, the answer is a result or a 4xx in TGI's shape, and the engine sees only valid requests."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.api.schema.native import NativeParameters
from tests.api.conftest import Front

LEAKS = re.compile(r"0x[0-9a-f]{6,}|/usr/|/opt/|\.py|Traceback|site-packages")

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**400, 1e39, 1e-300, 0.5, 1.0]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
names = st.sampled_from([*NativeParameters.__struct_fields__, "unknown"])
inputs = st.one_of(st.text(max_size=60), values)
bodies = st.one_of(
    values,
    st.fixed_dictionaries(
        {"inputs": inputs},
        optional={
            "parameters": st.one_of(st.dictionaries(names, values, max_size=4), values),
            "stream": values,
        },
    ),
)


def check(front: Front, path: str, body: bytes) -> None:
    response = front.client.post(path, data=body, content_type="application/json")
    assert response.status_code in (200, 400, 422), response.data
    text = response.get_data(as_text=True)
    if response.status_code != 200:
        answer: dict[str, Any] = json.loads(text)
        assert set(answer) == {"error", "error_type", "request_id"}
        assert len(response.data) < 1024 or not response.data.isascii()
        assert not LEAKS.search(text) or LEAKS.search(body.decode("utf-8", "replace"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies, path=st.sampled_from(["/generate", "/generate_stream", "/", "/invocations"]))
def test_any_json(front: Front, body: Any, path: str) -> None:
    check(front, path, json.dumps(body).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60))
def test_any_bytes(front: Front, body: bytes) -> None:
    check(front, "/invocations", body)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_json(front: Front, data: st.DataObject) -> None:
    good = b'{"inputs":"hello","parameters":{"top_k":5,"stop":["a"],"temperature":0.5,"seed":7}}'
    at = data.draw(st.integers(0, len(good)))
    cut = data.draw(st.integers(at, len(good)))
    check(front, "/invocations", good[:at] + data.draw(st.binary(max_size=4)) + good[cut:])
