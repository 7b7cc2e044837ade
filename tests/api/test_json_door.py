"""The one JSON door: what is refused, with which status, and that it is refused cheaply."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from serving.api import strict_json
from serving.config import LimitsConfig
from serving.errors import MalformedBody
from tests.api.conftest import Front, FrontFactory

GOOD = b'{"inputs":"hello"}'

MALFORMED: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b" \r\n\t ", "empty"),
    (b"{", "char 1"),
    (b"[", "char 1"),
    (b'{"inputs":"a"', "char 13"),
    (b'{"inputs":"a",}', "char"),
    (b"{'inputs':'a'}", "char 1"),
    (b'{"inputs":"a"} x', "char 15"),
    (b'{"inputs":"a"}{"inputs":"b"}', "char 14"),
    (b'{"inputs":"a\nb"}', "control character"),
    (b'{"inputs":"\x00"}', "control character"),
    (b'{"inputs":"\\x"}', "char"),
    (b'{"inputs":"\\u12"}', "char"),
    (b'{"inputs":01}', "char"),
    (b'{"inputs":1.}', "char"),
    (b'{"inputs":+1}', "char"),
    (b'{"inputs":.5}', "char"),
    (b'{"inputs":0x10}', "char"),
    (b'{"inputs":"a" /* no */}', "char"),
    (b'{"inputs":NaN}', "NaN"),
    (b'{"inputs":Infinity}', "Infinity"),
    (b'{"inputs":-Infinity}', "-Infinity"),
    (b'{"inputs":1e400}', "1e400"),
    (b'{"inputs":' + b"9" * 400 + b"}", "out of range"),
    (b'{"inputs":True}', "char"),
    (b'{"inputs":"a","inputs":"b"}', '"inputs" occurs twice'),
    (b'{"inputs":"a","parameters":{"top_k":1,"top_k":2}}', '"top_k" occurs twice'),
    (b'{"inputs":"\\ud800"}', "lone surrogate"),
    (b'{"inputs":"a\\udfffb"}', "lone surrogate"),
    (b'{"inputs":"\\ude00\\ud83d"}', "lone surrogate"),
    (b'{"inputs":"a","x":{"\\ud800":1}}', "lone surrogate"),
    (b'{"inputs":"a","x":["\\ud800"]}', "x[0]"),
    (b'{"inputs":"\xff"}', "UTF-8 at byte 11"),
    (b'{"inputs":"\xed\xa0\x80"}', "UTF-8 at byte 11"),
    (b'{"inputs":"\xc0\xaf"}', "UTF-8"),
    (b"\xef\xbb\xbf" + GOOD, "byte order mark"),
    (GOOD.decode().encode("utf-16"), "UTF-8"),
    (GOOD.decode().encode("utf-16-le"), "char 1"),
    (b"[" * 100_000, "nested"),
    (b'{"a":' * 100_000, "nested"),
    (b"[" * 65 + b"]" * 65, "nested"),
    (b'{"inputs":"a","x":' + b"[" * 64 + b"]" * 64 + b"}", "nested"),
    (b"[" + b"[]," * 300_000 + b"[]]", "JSON values"),
    (b"[" + b"1," * 300_000 + b"1]", "JSON values"),
    (b"[" + b'"",' * 600_000 + b'""]', "JSON values"),
]


@pytest.mark.parametrize(("body", "hint"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed(front: Front, body: bytes, hint: str) -> None:
    response = front.client.post("/invocations", data=body, content_type="application/json")
    assert response.status_code == 400
    assert response.json["error_type"] == "malformed_json"
    assert hint in response.json["error"]
    assert len(response.data) < 1024
    assert front.engine.requests == []


@pytest.mark.parametrize("body", [b"null", b"[]", b'[{"inputs":"a"}]', b'"a"', b"1", b"1.5", b"true", b"-0"])
def test_top_level_must_be_an_object(front: Front, body: bytes) -> None:
    response = front.client.post("/invocations", data=body, content_type="application/json")
    assert response.status_code == 422
    assert "must be a JSON object" in response.json["error"]


def test_legal_oddities_pass(front: Front) -> None:
    for body in (
        b" \n" + GOOD + b"\t\r\n",
        b'{"inputs":"\\ud83d\\ude00 \\u0000 \\/"}',
        b'{"inputs":"a","x":' + b"[" * 63 + b"]" * 63 + b"}",
        b'{"inputs":"a","x":' + b"9" * 40 + b"}",
        b'{"inputs":"\\\\\\"[[[[{{{{"}',
        json.dumps({"inputs": "[" * 150, "x": "\\" * 101 + '"'}).encode(),
    ):
        response = front.client.post("/generate", data=body, content_type="application/json")
        assert response.status_code == 200, response.data


def test_a_large_text_full_of_brackets_is_one_value() -> None:
    text = '[{"\\' * 400_000 + "," * 400_000
    assert strict_json.parse(json.dumps({"inputs": text}).encode()) == {"inputs": text}


def test_many_strings_are_refused_before_they_are_built() -> None:
    body = b'{"inputs":"a","x":[' + b'"\\\\","\\"",' * 300_000 + b"1]}"
    with pytest.raises(MalformedBody, match="JSON values"):
        strict_json.parse(body)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 200),
        ("", 200),
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ('application/json; charset="utf-8"', 200),
        ("application/vnd.api+json", 200),
        ("application/octet-stream", 200),
        ("application/json; charset=utf-16", 415),
        ("application/jsonlines", 200),  # one line
        ("text/plain", 415),
        ("text/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("*/*", 415),
        ("json", 415),
    ],
)
def test_media_types(front: Front, content_type: str | None, status: int) -> None:
    response = front.client.post("/invocations", data=GOOD, content_type=content_type)
    assert response.status_code == status
    if status == 415:
        assert response.json["error_type"] == "unsupported_media_type"


def test_compressed_bodies_are_refused(front: Front) -> None:
    response = front.client.post("/invocations", data=GOOD, headers={"content-encoding": "gzip"})
    assert response.status_code == 415


class Counting(io.BytesIO):
    """A body that knows how much of it was read."""

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None and 0 < size <= 64 * 1024
        return super().read(size)


def post_raw(front: Front, body: io.BytesIO, **environ: Any) -> tuple[int, Any]:
    response = front.client.open(
        path="/invocations",
        method="POST",
        environ_overrides={"wsgi.input": body, "CONTENT_TYPE": "application/json", **environ},
    )
    return response.status_code, response.json


def test_size_limit(new_front: FrontFactory) -> None:
    front = new_front(limits=LimitsConfig(payload_limit_bytes=200_000))
    fits = json.dumps({"inputs": "hello", "x": ""}).encode()
    fits = fits[:-2] + b"y" * (200_000 - len(fits)) + fits[-2:]
    assert len(fits) == 200_000
    assert post_raw(front, Counting(fits), CONTENT_LENGTH="200000")[0] == 200
    chunked = {"CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    assert post_raw(front, Counting(fits), **chunked)[0] == 200

    unread = Counting(b"x" * 300_000)
    status, answer = post_raw(front, unread, CONTENT_LENGTH=str(2**40))
    assert (status, answer["error_type"], unread.tell()) == (413, "payload_too_large", 0)
    endless = Counting(b"x" * 1_000_000)
    assert post_raw(front, endless, **chunked)[0] == 413
    assert endless.tell() <= 200_000 + 64 * 1024


def test_bodies_that_end_early_or_have_no_length(front: Front) -> None:
    status, answer = post_raw(front, Counting(GOOD), CONTENT_LENGTH="100")
    assert status == 400
    assert "82 bytes before" in answer["error"]
    assert post_raw(front, Counting(GOOD), CONTENT_LENGTH="many")[0] == 400
    assert post_raw(front, Counting(GOOD), CONTENT_LENGTH="")[0] == 400


def test_invocations_names_what_it_supports(front: Front) -> None:
    assert "`input` is not supported" in front.error({"input": "x"}, path="/invocations")


def test_invocations_without_any_known_field(front: Front) -> None:
    assert "`inputs`" in front.error({"text": "x"}, path="/invocations")
    assert "`inputs`" in front.error({"inputs": ["x"], "messages": []}, path="/invocations")


def test_inputs_wins_over_messages(front: Front) -> None:
    response = front.client.post("/invocations", json={"inputs": "a", "messages": []})
    assert response.status_code == 200
    assert response.headers["x-ignored-parameters"] == "messages"
