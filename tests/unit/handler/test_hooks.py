"""One call of a hook: what it is given, and what becomes of whatever it returns or raises."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.handler.hooks import HookContext, call_hook
from serving.handler.script import Hook
from serving.handler.wire import HookCall, HookName, HookReply

MAX_BYTES = 1000


def run(
    function: Callable[..., Any],
    data: bytes = b"{}",
    media_type: str = "application/json",
    *,
    hook: HookName = "input_fn",
    context: bool = False,
) -> HookReply:
    call = HookCall(hook=hook, data=data, media_type=media_type, headers={"X-Tenant": "a"}, request_id="r-1")
    return call_hook(Hook(hook, function, context), call, model_dir=Path("/model"), max_bytes=MAX_BYTES)


def given_to(data: bytes, content_type: str) -> tuple[Any, str]:
    seen = []
    reply = run(lambda *arguments: seen.append(arguments) or "{}", data, content_type)
    assert reply.error is None, reply
    return seen[0]


def problem(reply: HookReply, *, refused: bool = False) -> str:
    assert reply.error is not None and reply.error.refused is refused and reply.body == b""
    assert "\n" not in reply.error.message
    return reply.error.message


@pytest.mark.parametrize(
    ("data", "content_type", "seen"),
    [
        ("ü".encode(), "text/csv", "ü"),
        ("ü".encode("latin-1"), "text/plain; charset=ISO-8859-1", "ü"),
        ("ü".encode("utf-16"), 'text/plain; charset="utf-16"', "ü"),
        (b"{}", "application/vnd.acme+json", "{}"),
        (b"<a/>", "image/svg+xml", "<a/>"),
        (b"a=b", "application/x-www-form-urlencoded", "a=b"),
        (b"\xff\x00", "application/x-npy", b"\xff\x00"),
        (b"x", "application/octet-stream", b"x"),
        (b"", "text/plain", ""),
    ],
)
def test_text_types_come_as_text(data: bytes, content_type: str, seen: object) -> None:
    assert given_to(data, content_type) == (seen, content_type)


def test_without_a_content_type_it_is_json() -> None:
    assert given_to(b"{}", "") == ("{}", "application/json")


@pytest.mark.parametrize("content_type", ["text/plain", "application/json; charset=utf-8"])
def test_text_that_is_none_is_the_clients_fault(content_type: str) -> None:
    assert "not valid utf-8 at byte 1" in problem(run(lambda *_: "{}", b"a\xff", content_type), refused=True)


@pytest.mark.parametrize("charset", ["rot13", "idna", "zlib", "utf-7", "x" * 5000])
def test_other_codecs_of_python_are_no_charsets(charset: str) -> None:
    message = problem(run(lambda *_: "{}", b"a", f"text/plain; charset={charset}"), refused=True)
    assert "send UTF-8" in message and len(message) < 500


@pytest.mark.parametrize(
    "result",
    [{"inputs": "ü"}, '{"inputs": "ü"}', '{"inputs": "ü"}'.encode(), bytearray(b'{"inputs": "\xc3\xbc"}')],
)
def test_what_input_fn_may_return(result: object) -> None:
    assert json.loads(run(lambda *_: result).body) == {"inputs": "ü"}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "input_fn must return a dict, str or bytes, not NoneType"),
        ([1], "not list"),
        ({"a": object()}, "no JSON: TypeError"),
        ({"a": float("nan")}, "no JSON: ValueError"),
        ({"a": "\ud800"}, "no JSON: UnicodeEncodeError"),
        ("\ud800", "cannot be written as UTF-8"),
        ("x" * (MAX_BYTES + 1), "returned 1001 bytes, at most 1000"),
    ],
)
def test_what_input_fn_may_not_return(result: object, message: str) -> None:
    assert message in problem(run(lambda *_: result))


def test_a_dict_that_holds_itself() -> None:
    endless: dict[str, object] = {}
    endless["a"] = endless
    assert "no JSON" in problem(run(lambda *_: endless))


def test_output_fn_gets_the_parsed_answer_and_names_its_type() -> None:
    reply = run(
        lambda prediction, accept: (prediction["a"], f"{accept};v=1"),
        b'{"a": "t"}',
        "text/csv",
        hook="output_fn",
    )
    assert (reply.body, reply.content_type) == (b"t", "text/csv;v=1")
    reply = run(lambda prediction, accept: accept.encode(), b"1", "*/*", hook="output_fn")
    assert (reply.body, reply.content_type) == (b"application/json", None)


@pytest.mark.parametrize("result", [{}, ("x", 3), ("x", "a/b", "c"), None, 1])
def test_what_output_fn_may_not_return(result: object) -> None:
    assert "output_fn" in problem(run(lambda *_: result, b"1", hook="output_fn"))


class _Refusal(Exception):
    def __init__(self, status: object) -> None:
        super().__init__("please send\nless")
        self.status_code = status


def raising(error: BaseException) -> Callable[..., Any]:
    def hook(*_: object) -> None:
        raise error

    return hook


def test_a_hook_refuses_on_purpose() -> None:
    assert problem(run(raising(_Refusal(422))), refused=True) == "please send less"


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (_Refusal(500), "_Refusal: please send less"),
        (_Refusal("400"), "_Refusal"),
        (ValueError("bad"), "input_fn of the custom handler failed: ValueError: bad"),
        (KeyError("text"), "KeyError: 'text'"),
        (SystemExit(3), "SystemExit: 3"),
        (MemoryError(), "MemoryError"),
        (RecursionError("deep"), "RecursionError"),
        (ValueError("x" * 10_000), "…"),
        (_Unprintable(), "_Unprintable"),
    ],
)
def test_whatever_a_hook_raises_ends_its_call(
    error: BaseException, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert message in problem(run(raising(error)))
    (record,) = caplog.records
    assert record.exc_info is not None and record.__dict__["request_id"] == "r-1"


def test_the_context() -> None:
    seen: list[HookContext] = []
    run(lambda data, kind, context: seen.append(context) or "{}", context=True)
    (context,) = seen
    assert context.get_request_header(0, "x-tenant") == "a" and context.get_request_header(0, "x") is None
    assert context.get_all_request_header() == {"X-Tenant": "a"} and context.get_request_id() == "r-1"
    assert context.system_properties == {"model_dir": "/model"}


@given(st.binary(max_size=200), st.text(max_size=60))
def test_no_body_and_no_type_ends_the_process(data: bytes, content_type: str) -> None:
    reply = run(lambda *_: "{}", data, content_type)
    assert reply.error is None or reply.error.refused
