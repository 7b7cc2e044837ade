"""Cutting and merging: the same bytes, as soon as they are there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from local_mode.runtime import cutting
from local_mode.runtime.operations import Frames


async def given_chunks(*chunks: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if error is not None:
        raise error


async def collected(chunks: AsyncIterator[bytes], rng: random.Random | None) -> list[bytes]:
    return [part async for batch in cutting.parts(chunks, rng) for part in batch]


@given(st.lists(st.binary(max_size=300), max_size=40), st.integers())
def test_bytes_are_the_same_and_no_part_is_empty(chunks: list[bytes], seed: int) -> None:
    seen = asyncio.run(collected(given_chunks(*chunks), random.Random(seed)))
    assert b"".join(seen) == b"".join(chunks)
    assert all(seen)


def test_an_error_that_nobody_foresaw_is_raised_and_not_waited_for() -> None:
    async def read() -> list[bytes]:
        async with asyncio.timeout(20.0):
            return await collected(given_chunks(b"a", error=RuntimeError("a defect")), None)

    with pytest.raises(RuntimeError, match="a defect"):
        asyncio.run(read())


@given(st.binary(min_size=1, max_size=100), st.integers())
def test_cut(data: bytes, seed: int) -> None:
    parts = cutting.cut(data, random.Random(seed))
    assert b"".join(parts) == data
    assert all(parts)
    assert len(parts) <= 6


def test_random_texts_survive_the_way_from_container_to_client(full: bool) -> None:
    """Chunked at random, cut into parts, framed, cut at random by the network, read by botocore."""
    rng = random.Random(5)
    alphabet = 'aé漢🙂 \n"\\\u200d👩👧\u0301데'

    async def all_texts() -> None:
        for _ in range(10_000 if full else 300):
            content = "".join(rng.choices(alphabet, k=rng.choice((1, 3, 30, 300, 3000)))).encode()
            frames = Frames(None)
            wire = b""
            async for batch in cutting.parts(given_chunks(*cutting.cut(content, rng)), rng):
                wire += frames.of(batch)
            buffer = EventStreamBuffer()
            seen = b""
            for piece in cutting.cut(wire, rng):
                buffer.add_data(piece)
                seen += b"".join(message.payload for message in buffer)
            assert seen == content

    asyncio.run(all_texts())


def test_chunks_that_wait_are_merged_and_long_ones_are_not() -> None:
    rng = random.Random(1)
    sizes = [len(part) for part in asyncio.run(collected(given_chunks(*[b"x"] * 500), rng))]
    assert max(sizes) > 1
    big = bytes(cutting.MAX_PART_BYTES)
    seen = asyncio.run(collected(given_chunks(*[big] * 20), rng))
    assert max(map(len, seen)) <= cutting.MAX_PART_BYTES


def test_without_a_generator_of_cuts_chunks_are_parts() -> None:
    assert asyncio.run(collected(given_chunks(b"ab", b"", b"c"), None)) == [b"ab", b"c"]


@pytest.mark.parametrize("rng", [None, random.Random(2)])
def test_error_comes_after_all_that_came_before_it(rng: random.Random | None) -> None:
    async def run() -> bytes:
        seen = b""
        with pytest.raises(ConnectionResetError):
            async for batch in cutting.parts(given_chunks(b"ab", b"cd", error=ConnectionResetError()), rng):
                seen += b"".join(batch)
        return seen

    assert asyncio.run(run()) == b"abcd"


def test_part_is_sent_while_the_next_chunk_is_not_there() -> None:
    async def run() -> None:
        seen = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.wait_for(seen.wait(), 5)
            yield b"second"

        got = b""
        async for batch in cutting.parts(chunks(), random.Random(0)):
            got += b"".join(batch)
            if got == b"first":
                seen.set()
        assert got == b"firstsecond"

    asyncio.run(run())


def test_reader_ends_when_its_user_leaves() -> None:
    async def run() -> bool:
        ended = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x"
                    await asyncio.sleep(0)
            finally:
                ended.set()

        parts = cutting.parts(chunks(), random.Random(0))
        await anext(parts)
        await parts.aclose()
        await asyncio.wait_for(ended.wait(), 5)
        return ended.is_set()

    assert asyncio.run(run())
