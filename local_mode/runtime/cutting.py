"""Where the parts of a stream begin and end: on purpose not where the container's chunks do.

Clients that expect a part to be a line, an event or whole characters fail here instead of in production.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

MAX_PART_BYTES = 256 * 1024
_MERGE_PROBABILITY = 0.5
_CUTS = (0, 0, 1, 1, 2, 3, 5)
_MAX_WAITING_CHUNKS = 32


@dataclass(frozen=True, slots=True)
class _End:
    error: ConnectionError | None


_Waiting = asyncio.Queue[bytes | _End]


async def parts(chunks: AsyncIterator[bytes], rng: random.Random | None) -> AsyncGenerator[list[bytes], None]:
    """Lists of parts, each list as soon as there is something to send; joined they are the joined chunks.

    Chunks are merged only while they wait already, so that no part comes later than its last chunk. `rng` None: each
    chunk is one part. A `ConnectionError` of `chunks` is raised after all that came before it. Who leaves early must
    close this iterator.
    """
    waiting = _Waiting(_MAX_WAITING_CHUNKS)
    reader = asyncio.create_task(_read(chunks, waiting))
    try:
        item: bytes | _End | None = await waiting.get()
        while isinstance(item, bytes):
            if rng is None:
                yield [item]
                item = None
            else:
                data, item = _merged(item, waiting, rng)
                yield cut(data, rng)
            item = item or await waiting.get()
    finally:
        reader.cancel()
        await asyncio.wait({reader})
    if not reader.cancelled() and (unforeseen := reader.exception()) is not None:
        raise unforeseen
    if item is not None and item.error is not None:
        raise item.error


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """`data` in one to six parts, none empty."""
    num_cuts = rng.choice(_CUTS)
    if num_cuts == 0 or len(data) < 2:
        return [data]
    places = sorted({rng.randrange(1, len(data)) for _ in range(num_cuts)})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


async def _read(chunks: AsyncIterator[bytes], waiting: _Waiting) -> None:
    end = _End(None)
    try:
        async for chunk in chunks:
            if chunk:
                await waiting.put(chunk)
    except ConnectionError as error:
        end = _End(error)
    except asyncio.CancelledError:
        raise
    except BaseException:
        await waiting.put(end)  # or whoever waits for the next chunk would do so for ever
        raise
    await waiting.put(end)


def _merged(first: bytes, waiting: _Waiting, rng: random.Random) -> tuple[bytes, bytes | _End | None]:
    """What is sent at once, and what was taken out of the queue but comes later."""
    taken = [first]
    size_bytes = len(first)
    while size_bytes < MAX_PART_BYTES and not waiting.empty():
        item = waiting.get_nowait()
        if isinstance(item, _End) or rng.random() >= _MERGE_PROBABILITY:
            return b"".join(taken), item
        taken.append(item)
        size_bytes += len(item)
    return b"".join(taken), None
