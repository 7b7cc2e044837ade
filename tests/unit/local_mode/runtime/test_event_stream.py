"""The encoder against botocore's own reader."""

from __future__ import annotations

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from local_mode.runtime import event_stream


def decoded(*pieces: bytes) -> list[tuple[dict[str, object], bytes]]:
    buffer = EventStreamBuffer()
    messages = []
    for piece in pieces:
        buffer.add_data(piece)
        messages += [(message.headers, message.payload) for message in buffer]
    return messages


@given(st.lists(st.binary(max_size=3000), max_size=8), st.data())
def test_parts_at_any_cut(payloads: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(map(event_stream.payload_part, payloads))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    pieces = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    headers = {
        ":message-type": "event",
        ":event-type": "PayloadPart",
        ":content-type": "application/octet-stream",
    }
    assert decoded(*pieces) == [(headers, payload) for payload in payloads]


@given(st.binary(max_size=200))
def test_every_single_cut(payload: bytes) -> None:
    wire = event_stream.payload_part(payload)
    for place in range(len(wire) + 1):
        assert [message[1] for message in decoded(wire[:place], wire[place:])] == [payload]


@pytest.mark.parametrize("size_bytes", [0, 1, 65_536, event_stream.MAX_PAYLOAD_BYTES])
def test_sizes(size_bytes: int) -> None:
    payload = bytes(size_bytes)
    assert decoded(event_stream.payload_part(payload))[0][1] == payload


@given(st.binary(min_size=1, max_size=50), st.data())
def test_any_flipped_bit_is_noticed(payload: bytes, data: st.DataObject) -> None:
    wire = bytearray(event_stream.payload_part(payload))
    # The lengths are left alone: a longer message would be waited for.
    place = data.draw(st.integers(8, len(wire) - 1))
    wire[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ChecksumMismatch):
        decoded(bytes(wire))


@given(
    st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=100), max_size=8),
    st.binary(max_size=100),
)
def test_headers(headers: dict[str, str], payload: bytes) -> None:
    assert decoded(event_stream.message(headers, payload)) == [(headers, payload)]


def test_failures() -> None:
    exception = event_stream.exception("ModelStreamError", Message="m", ErrorCode="StreamBroken")
    assert decoded(exception) == [
        (
            {
                ":message-type": "exception",
                ":exception-type": "ModelStreamError",
                ":content-type": "application/json",
            },
            b'{"Message": "m", "ErrorCode": "StreamBroken"}',
        ),
    ]


@pytest.mark.parametrize(
    ("headers", "payload"),
    [
        ({"": "x"}, b""),
        ({"n" * 256: "x"}, b""),
        ({"n": "x" * 32768}, b""),
        ({f"n{number}": "x" * 32767 for number in range(5)}, b""),
        ({}, bytes(event_stream.MAX_PAYLOAD_BYTES + 1)),
    ],
)
def test_what_no_reader_takes(headers: dict[str, str], payload: bytes) -> None:
    with pytest.raises(ValueError, match="bytes|limits"):
        event_stream.message(headers, payload)
