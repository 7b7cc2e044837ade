"""What can be set about invocations: clocks, limits, how streams are cut, what is broken on purpose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from local_mode.runtime.faults import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeClocks:
    """The platform's clocks; each starts when the invocation goes to its container."""

    accept_s: float = 0.25
    """Until the container's host accepts the connection."""
    unary_s: float = 60.0
    """Until the complete answer of an invocation that is not streamed."""
    stream_head_s: float = 60.0
    """Until the status of a streamed answer: a request that waits in a queue is under the clock of unary ones."""
    stream_s: float = 480.0
    """Until the end of a streamed answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    clocks: RuntimeClocks = RuntimeClocks()
    body_limit_bytes: int = 6_291_456
    """Of requests, streamed or not, and of unstreamed answers. AWS may take 25 MB: 26_214_400."""
    async_inline_limit_bytes: int = 128_000
    async_object_limit_bytes: int = 1 << 30
    """Of inputs by location, and of answers to asynchronous invocations."""
    async_default_concurrency: int = 4
    """Per instance, where the endpoint's configuration names none: the platform does not tell its own choice."""
    async_poll_s: float = 1.0
    """How often waiting requests look whether their endpoint takes them now, or whether they are too old."""
    cut_parts: bool = True
    """Cut and merge what the container sends at random places; False: one PayloadPart for each chunk."""
    seed: int = 0
    """Of the cuts and of faults with a probability."""
    faults: tuple[Fault, ...] = ()
    state_dir: Path | None = field(default=None)
    """Where accepted asynchronous requests are kept until they are answered; None: they end with the emulator."""
