"""The decoder of streams: the server's text exactly, for any cut; an error for everything that is not whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from sagemaker_sdk_ext import GenerationError, LineSplitter, TruncatedStream, decode
from serving.api.error_styles import NATIVE, OPENAI, Problem
from serving.api.streaming import JSON_LINES, SSE
from tests.unit.sagemaker_sdk_ext.streams import (
    HARD_TEXTS,
    chat_stream,
    native_stream,
    pieces_of,
    random_text,
)

Writer = Callable[..., bytes]
_PROBLEM = Problem("the engine is gone", "generation", 424, code="server_error")


def text_of(parts: Iterable[bytes], content_type: str = SSE.content_type) -> str:
    return "".join(event.text for event in decode(parts, content_type))


def cuts(data: bytes, at: int) -> tuple[bytes, bytes]:
    return data[:at], data[at:]


@pytest.mark.parametrize("framing", [SSE, JSON_LINES], ids=["sse", "lines"])
@pytest.mark.parametrize("write", [native_stream, chat_stream], ids=["native", "chat"])
@pytest.mark.parametrize("text", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_every_cut_gives_the_text(write: Writer, text: str, framing: object, full: bool) -> None:
    data = write(pieces_of(text, random.Random(1)), framing=framing, heartbeat_every=3)
    content_type = framing.content_type  # type: ignore[attr-defined]
    assert text_of([data], content_type) == text
    assert text_of([data[i : i + 1] for i in range(len(data))], content_type) == text
    for at in range(0, len(data), 1 if full else max(1, len(data) // 50)):
        assert text_of(cuts(data, at), content_type) == text


def test_random_texts_and_cuts(full: bool) -> None:
    rng = random.Random(7)
    for number in range(10_000 if full else 300):
        text = random_text(rng, 400 if number % 50 == 0 else 40)
        write: Writer = rng.choice([native_stream, chat_stream])
        data = write(pieces_of(text, rng), heartbeat_every=rng.choice([0, 2, 5]))
        parts, start = [], 0
        while start < len(data):
            size = rng.randrange(0, 40)
            parts.append(data[start : start + size])
            start += size
        assert text_of(parts) == text


def test_every_byte_cut_of_random_texts(full: bool) -> None:
    rng = random.Random(11)
    for _ in range(200 if full else 3):
        text = random_text(rng, 12)
        data = native_stream(pieces_of(text, rng))
        for at in range(len(data) + 1):
            assert text_of(cuts(data, at)) == text


@pytest.mark.parametrize("write", [native_stream, chat_stream], ids=["native", "chat"])
def test_a_stream_that_ends_early_raises_wherever_it_ends(write: Writer) -> None:
    pieces = ["Grü", "ße", " 👩‍👩‍👧‍👦", ""]
    data = write(pieces, heartbeat_every=2)
    for end in range(len(data)):
        with pytest.raises(TruncatedStream) as caught:
            text_of([data[:end]])
        assert "".join(pieces).startswith(caught.value.text)
    assert text_of([data]) == "".join(pieces)


def test_json_lines_that_end_early_raise() -> None:
    native = native_stream(["a", "é"], framing=JSON_LINES, heartbeat_every=1)
    chat = chat_stream(["a", "é"], framing=JSON_LINES)
    for data in (native, chat):
        for end in range(len(data)):
            with pytest.raises(TruncatedStream):
                text_of([data[:end]], JSON_LINES.content_type)


def test_json_lines_of_two_choices_need_both_to_end() -> None:
    data = chat_stream(["a"], framing=JSON_LINES)
    with pytest.raises(TruncatedStream):
        from sagemaker_sdk_ext import StreamDecoder

        decoder = StreamDecoder(JSON_LINES.content_type, num_choices=2)
        list(decoder.push(data))
        list(decoder.close())


@pytest.mark.parametrize("framing", [SSE, JSON_LINES], ids=["sse", "lines"])
@pytest.mark.parametrize("style", [NATIVE, OPENAI], ids=["native", "openai"])
def test_an_error_in_the_stream_raises_after_the_text_before_it(style: object, framing: object) -> None:
    whole = native_stream(["one ", "two"], framing=framing)  # type: ignore[arg-type]
    begun = whole[: whole.index(b"two")].rpartition(b"\n")[0] + b"\n"
    if framing is SSE:
        begun = begun.rstrip(b"\n") + b"\n\n"
    body = style.body(_PROBLEM, "req-1")  # type: ignore[attr-defined]
    data = begun + framing.frame(body) + framing.end  # type: ignore[attr-defined]
    for at in range(len(data)):
        seen = []
        with pytest.raises(GenerationError) as caught:
            for event in decode(cuts(data, at), framing.content_type):  # type: ignore[attr-defined]
                seen.append(event.text)
        assert "".join(seen) == caught.value.text == "one "
        assert caught.value.error == "the engine is gone"
        assert caught.value.error_type in ("generation", "server_error")
        assert caught.value.request_id == "req-1"


def test_the_last_native_event_has_the_details() -> None:
    events = list(decode([native_stream(["a", "b"])]))
    assert [event.text for event in events] == ["a", "b", ""]
    assert events[-1].finish_reason == "eos_token"
    assert events[-1].generated_text == "ab"
    assert events[-1].token is not None and events[-1].token.special and events[0].token is not None
    assert events[0].token.id == 1 and events[0].token.logprob == -0.5


def test_an_answer_in_one_piece_is_one_event() -> None:
    native = '[{"generated_text": "grün"}]'.encode()
    chat = b'{"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}'
    assert text_of(cuts(native, 23), "application/json") == "grün"
    assert text_of([chat], "application/json; charset=utf-8") == "hi"
    with pytest.raises(TruncatedStream, match="not whole"):
        text_of([native[:-1]], "application/json")
    with pytest.raises(TruncatedStream):
        text_of([], "application/json")


def test_lines_may_end_in_three_ways() -> None:
    data = b"one\r\ntwo\rthree\n\r\n\nlast"
    expected = [b"one", b"two", b"three", b"", b""]
    for at in range(len(data)):
        splitter = LineSplitter()
        lines = [line for part in cuts(data, at) for line in splitter.push(part)]
        assert lines == expected
        assert splitter.unfinished == b"last"


def test_events_with_crlf_and_without_a_space() -> None:
    data = native_stream(["x", "é"]).replace(b"\n", b"\r\n").replace(b"data: ", b"data:")
    for at in range(len(data)):
        assert text_of(cuts(data, at)) == "xé"


def test_an_event_that_is_not_json_is_named() -> None:
    with pytest.raises(GenerationError, match="not JSON"):
        text_of([b"data: {oops\n\n"])
    with pytest.raises(GenerationError, match="no object"):
        text_of([b"data: 3\n\n"])


def test_tool_calls_reasoning_and_usage() -> None:
    chunks = (
        b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"name":"f"}}]},'
        b'"finish_reason":"tool_calls"}]}\n\n'
        b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
        b"data: [DONE]\n\n"
    )
    reasoning, call, usage = decode([chunks])
    assert reasoning.reasoning == "hm" and reasoning.text == ""
    assert call.tool_calls[0]["function"] == {"name": "f"} and call.finish_reason == "tool_calls"
    assert usage.usage == {"total_tokens": 3}
