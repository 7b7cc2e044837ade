"""Faults on request: what can break, how it is asked for in words, and which invocations it hits.

The operations ask `Injected` at the places where the platform or a container could fail; nothing here speaks HTTP.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FaultKind:
    name: str
    value: str | None
    """What its value counts, as `--help` shows it; None: it takes no value."""
    default: float | None
    """None for a kind with a value: the value can be left out, and means what `effect` says."""
    effect: str


FAULT_KINDS: tuple[FaultKind, ...] = (
    FaultKind("no-accept", None, None, "the container does not accept the connection in time"),
    FaultKind("slow-accept", "MS", 200, "it takes this long until the container accepts the connection"),
    FaultKind("latency", "MS", 500, "extra time before the container gets the request"),
    FaultKind("timeout", "SECONDS", None, "no answer until the clock runs out, or SECONDS when given"),
    FaultKind("model-error", "STATUS", 500, "the container answers with this status"),
    FaultKind(
        "throttling", "STATUS", 429, "the platform refuses: 429 (too many requests) or 503 (unavailable)"
    ),
    FaultKind("model-not-ready", None, None, "the platform answers ModelNotReadyException"),
    FaultKind("internal-failure", None, None, "the platform answers InternalFailure"),
    FaultKind("break-stream", "PARTS", 3, "the container breaks off after this many parts"),
    FaultKind("break-stream-bytes", "BYTES", 64, "the container breaks off after this many bytes"),
    FaultKind("stream-timeout", "PARTS", 3, "the stream's clock runs out after this many parts"),
    FaultKind("stream-failure", "PARTS", 3, "the platform's own failure in a stream, after this many parts"),
    FaultKind(
        "truncated-frame", "PARTS", 3, "after this many parts the body ends in the middle of the next frame"
    ),
    FaultKind("corrupt-crc", "PARTS", 3, "after this many parts the next frame has a wrong checksum"),
)
STREAM_FAULTS = frozenset(
    (
        "break-stream",
        "break-stream-bytes",
        "stream-timeout",
        "stream-failure",
        "truncated-frame",
        "corrupt-crc",
    )
)

_KINDS = {kind.name: kind for kind in FAULT_KINDS}
_SYNTAX = re.compile(
    r"(?P<name>[a-z-]+)(=(?P<value>[0-9.]+))?(@(?P<endpoint>[a-zA-Z0-9-]+))?(%(?P<percent>[0-9.]+))?"
)
SYNTAX_HELP = "NAME[=VALUE][@ENDPOINT][%PROBABILITY], probability in percent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    name: str
    value: float | None = None
    endpoint: str | None = None
    """None: every endpoint."""
    probability: float = 1.0
    """Of hitting an invocation, 0 to 1."""


def parse_fault(text: str) -> Fault:
    """`break-stream=2@chat%10`: one invocation in ten of endpoint `chat` breaks off after two parts.

    Raises `ValueError` that names the wrong word and what is possible.
    """
    found = _SYNTAX.fullmatch(text)
    if found is None:
        raise ValueError(f"fault {text!r} is not of the form {SYNTAX_HELP}")
    kind = _KINDS.get(found["name"])
    if kind is None:
        raise ValueError(f"unknown fault {found['name']!r}; there are {', '.join(_KINDS)}")
    percent = _number(found["percent"] or "100", text)
    if percent > 100:
        raise ValueError(f"fault {text!r}: a probability is at most 100 (percent)")
    return Fault(
        name=kind.name,
        value=_value(kind, found["value"], text),
        endpoint=found["endpoint"],
        probability=percent / 100,
    )


def faults_help() -> str:
    """One line for each kind, for `--help`."""
    rows = [(kind.name + (f"[={kind.value}]" if kind.value else ""), kind) for kind in FAULT_KINDS]
    width = max(len(left) for left, _ in rows)
    return "\n".join(
        f"{left:<{width}}  {kind.effect}" + ("" if kind.default is None else f" (default {kind.default:g})")
        for left, kind in rows
    )


def _value(kind: FaultKind, given: str | None, text: str) -> float | None:
    if given is None:
        return kind.default
    if kind.value is None:
        raise ValueError(f"fault {text!r}: {kind.name} takes no value")
    value = _number(given, text)
    if kind.value in ("STATUS", "PARTS", "BYTES") and value != int(value):
        raise ValueError(f"fault {text!r}: {kind.value} is a whole number, not {given}")
    if kind.name == "throttling" and value not in (429, 503):
        raise ValueError(f"fault {text!r}: throttling answers 429 or 503, not {given}")
    if kind.name == "model-error" and not 400 <= value <= 599:
        raise ValueError(f"fault {text!r}: a container's error is 400 to 599, not {given}")
    return value


def _number(given: str, text: str) -> float:
    try:
        return float(given)
    except ValueError as error:
        raise ValueError(f"fault {text!r}: {given!r} is not a number") from error


@dataclass(frozen=True, slots=True)
class Injected:
    """The faults of one invocation, by name."""

    values: Mapping[str, float | None]

    def has(self, name: str) -> bool:
        return name in self.values

    def number(self, name: str) -> float:
        """The fault's value; 0 without the fault."""
        return self.values.get(name) or 0.0

    def in_stream(self) -> tuple[str, int] | None:
        """The fault that ends the stream, and after how many parts (of `break-stream-bytes`: bytes)."""
        return next(((name, int(self.number(name))) for name in self.values if name in STREAM_FAULTS), None)


class FaultPlan:
    """Decides which invocations are hit. The same seed and the same order of invocations give the same faults."""

    def __init__(self, faults: Iterable[Fault], *, seed: int) -> None:
        self._faults = tuple(faults)
        self._random = random.Random(seed)

    def draw(self, endpoint: str) -> Injected:
        hits = {
            fault.name: fault.value
            for fault in self._faults
            if fault.endpoint in (None, endpoint) and self._random.random() < fault.probability
        }
        return Injected(hits)
