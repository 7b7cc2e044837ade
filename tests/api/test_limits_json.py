"""A corpus of JSON texts that must be read and that must be refused, in the style of JSONTestSuite: each is given to the
parser alone and, as a field of a request, to the front.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.api import strict_json
from serving.errors import MalformedBody
from tests.api.conftest import Front

ACCEPT: list[bytes] = [
    b"[]", b"{}", b"[ ]", b"{ }", b"\t[\r\n]\n", b" [1] ", b"null", b"true", b"false", b'""', b'"a"', b"0", b"-0", b"1",
    b"-1", b"10", b"123456789012345678", b"18446744073709551615", b"-9223372036854775808", b"18446744073709551616",
    b"0.0", b"-0.0", b"1.5", b"0.1e1", b"1e1", b"1E1", b"1e+1", b"1e-1", b"1E-400", b"1e308", b"-1e308", b"5e-324",
    b"0e1", b"0e+1", b"0E0", b"123.456e78", b"20e1", b"1.7976931348623157e308", b"0." + b"1" * 400,
    b"[null]", b"[true,false]", b"[1,2]", b"[ 1 , 2 ]", b"[[]]", b"[[],[]]", b"[{}]", b'[""]', b'["a","b"]',
    b'{"":0}', b'{"a":1}', b'{"a":1,"b":2}', b'{"a":{"a":{"a":1}}}', b'{"a":[],"b":{}}', b'{"A":1,"a":2}',
    b'{"a\\u0000b":1}', b'{"a":"\\u0000"}', b'"\\u0041"', b'"\\"\\\\\\/\\b\\f\\n\\r\\t"', b'"\\u00e9"', b'"\\uD83D\\uDE00"',
    b'"\\ud83d\\ude00"', b'"\\udbff\\udfff"', b'"\\uFFFF"', b'"\\ufffe"', b'"\\u2028\\u2029"', b'"\\u200b"', b'"\\u007f"',
    b'"\x7f"', '"é"'.encode(), '"日本"'.encode(), '"😀"'.encode(), '"\u2028"'.encode(), '"\ufeff"'.encode(),
    '"\U0010ffff"'.encode(), '"\ufdd0"'.encode(), b'"a/*b*/c"', b'"//"', b'"[[[[[["', b'"\\\\"', b'"\\\\\\""', b'"{"',
    b'["\\"[{"]', b"[" * 64 + b"]" * 64, b'{"a":' * 63 + b"1" + b"}" * 63, b"[" + b"1," * 9999 + b"1]",
    b'"' + b"a" * 100_000 + b'"', b'{"' + b"k" * 10_000 + b'":1}', b'["\\u0022"]', b'["\\u005c"]', b"[-1.0e-2]",
]  # fmt: skip

REFUSE: list[bytes] = [
    b"", b" ", b"\n", b"[", b"]", b"{", b"}", b"[[", b"[]]", b"{}}", b"[}", b"{]", b"[1", b"[1,", b"[1,]", b"[,1]", b"[,]",
    b"[1,,2]", b"[1 2]", b"[1:2]", b"[1;2]", b'["a" "b"]', b'["a"', b'["a', b"[a]", b"['a']", b"[`a`]", b"[\x00]", b"[\x0b]",
    b"[\x0c]", b"[\xa0]", "[\u2003]".encode(), "[\u2060]".encode(), b"[1]x", b"[1]\x00", b"[][]", b"1 2", b"nul", b"nulll",
    b"tru", b"True", b"TRUE", b"False", b"None", b"undefined", b"nil", b"NULL",
    b"NaN", b"-NaN", b"nan", b"Infinity", b"-Infinity", b"+Infinity", b"inf", b"Inf", b"[NaN]", b'{"a":Infinity}',
    b"1e400", b"-1e400", b"1E309", b"1e99999999999", b"-1.8e308", b"9" * 400, b"-" + b"9" * 400, b"9" * 5000,
    b"+1", b"--1", b"- 1", b"-", b".1", b"-.1", b"1.", b"-1.", b"1.e1", b"1e", b"1e+", b"1e-", b"1E", b"1eE2", b"1e1.5",
    b"01", b"-01", b"00", b"0x1", b"0b1", b"0o1", b"1_000", b"1,000", b"1L", b"1f", b"1d", b"0.", b"2.e3", b"1 000",
    "１".encode(), "٣".encode(), "−1".encode(), b"1\x00", b"[1e]", b"[012]",
    b'"', b'"a', b'a"', b"'a'", b'"\\"', b'"\\', b'"\\a"', b'"\\x41"', b'"\\0"', b"\"\\'\"", b'"\\ "', b'"\\U0041"',
    b'"\\u"', b'"\\u0"', b'"\\u00"', b'"\\u004"', b'"\\u00G1"', b'"\\u 041"', b'"\\u+041"', b'"\\u-041"', b'"\\u0_41"',
    b'"\\uD800"', b'"\\uDFFF"', b'"\\uD83D"', b'"\\uD83Dx"', b'"\\uDE00\\uD83D"', b'"\\uD83D\\uD83D"', b'"\\uD800\\n"',
    b'"\\uD83D\\u"', b'"\\uD83D\\u0041"', b'["\\udc00"]', b'{"\\udc00":1}',
    b'"\n"', b'"\r"', b'"\t"', b'"\x00"', b'"\x01"', b'"\x1f"', b'"a\x08b"', b'"a\nb"', b'{"a\nb":1}',
    b'{"a"}', b'{"a":}', b'{"a" 1}', b'{"a":1,}', b'{,"a":1}', b'{"a":1 "b":2}', b'{"a":1,,"b":2}', b'{"a"::1}',
    b'{"a":1:2}', b'{"a",1}', b"{a:1}", b"{'a':1}", b"{1:1}", b"{null:1}", b"{[]:1}", b'{"a":1', b'{"a":', b'{"a',
    b'{"a":1;}',
    b'{"a":1}/**/', b"/**/[]", b"//\n[]", b"[]//", b"#\n[]", b"[1,/*2*/3]", b"[]#", b"<a/>", b"---\n- 1", b"a=1", b"a: 1",
    b'{"a":1,"a":1}', b'{"a":1,"a":2}', b'{"a":1,"\\u0061":2}', b'{"":1,"":2}', b'{"x":{"a":1,"b":2,"a":3}}',
    b'[{"a":1,"a":1}]',
    b"\xef\xbb\xbf[]", b"\xff\xfe[\x00]\x00", b"\xfe\xff\x00[\x00]", b"\xff", b'"\xff"', b'"\x80"', b'"\xc3"', b'"\xc3("',
    b'"\xc0\xaf"', b'"\xe0\x80\xaf"', b'"\xf0\x80\x80\xaf"', b'"\xed\xa0\x80"', b'"\xed\xbf\xbf"', b'"\xf4\x90\x80\x80"',
    b'"\xf8\x88\x80\x80\x80"', b'"\xe2\x28\xa1"', b'"\xf0\x9f\x98"', b'["\xe9"]', b"[]\xff", b"\x1f\x8b\x08\x00",
    b"[" * 65 + b"]" * 65, b'{"a":' * 65 + b"1" + b"}" * 65, b"[" * 1_000_000, b'{"a":' * 100_000, b'[{"a":' * 40_000,
    b"[" * 500 + b'"' + b"]" * 500,
]  # fmt: skip


def test_the_corpus_is_as_large_as_it_claims() -> None:
    assert len(set(ACCEPT)) == len(ACCEPT) >= 80
    assert len(set(REFUSE)) == len(REFUSE) >= 200


@pytest.mark.parametrize("text", ACCEPT, ids=range(len(ACCEPT)))
def test_is_read_as_python_reads_it(text: bytes) -> None:
    assert strict_json.parse(text) == json.loads(text)


@pytest.mark.parametrize("text", REFUSE, ids=range(len(REFUSE)))
def test_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedBody) as refused:
        strict_json.parse(text)
    message = refused.value.message
    assert len(message) < 300
    assert message.isprintable()


def post(front: Front, body: bytes) -> Any:
    return front.client.post("/generate", data=body, content_type="application/json")


def test_the_front_answers_400_with_a_place(front: Front) -> None:
    for text in REFUSE:
        if text.strip():
            response = post(front, b'{"inputs":"a","x":' + text + b"}")
            # what only breaks a whole body may be fine inside of one, and the other way round
            assert response.status_code in (200, 400), text
            if response.status_code == 400:
                assert response.json["error_type"] == "malformed_json"
                assert len(response.data) < 1024
                assert response.json["request_id"] == response.headers["x-request-id"]
        assert post(front, text).status_code == 400, text
    assert len(front.engine.requests) < 5


def test_the_front_reads_what_is_json(front: Front) -> None:
    for text in ACCEPT:
        if text.count(b"[") + text.count(b"{") < 60:
            assert post(front, b'{"inputs":"a","x":' + text + b"}").status_code == 200, text
