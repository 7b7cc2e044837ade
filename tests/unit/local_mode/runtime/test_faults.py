"""Faults in words, and which invocations they hit."""

from __future__ import annotations

import pytest

from local_mode.runtime import FAULT_KINDS, Fault, faults_help, parse_fault
from local_mode.runtime.faults import STREAM_FAULTS, FaultPlan
from local_mode.runtime.operations import Frames


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("no-accept", Fault(name="no-accept")),
        ("timeout", Fault(name="timeout")),
        ("timeout=1.5", Fault(name="timeout", value=1.5)),
        ("break-stream", Fault(name="break-stream", value=3)),
        (
            "break-stream=2@my-chat%25",
            Fault(name="break-stream", value=2, endpoint="my-chat", probability=0.25),
        ),
        ("model-error=429%0.5", Fault(name="model-error", value=429, probability=0.005)),
        ("latency@chat", Fault(name="latency", value=500, endpoint="chat")),
    ],
)
def test_faults_in_words(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("explode", "unknown fault 'explode'; there are no-accept, "),
        ("", "is not of the form NAME"),
        ("latency=fast", "is not of the form NAME"),
        ("latency=1.2.3", "'1.2.3' is not a number"),
        ("no-accept=1", "no-accept takes no value"),
        ("break-stream=1.5", "PARTS is a whole number, not 1.5"),
        ("model-error=200", "400 to 599, not 200"),
        ("throttling=500", "429 or 503, not 500"),
        ("latency%101", "at most 100"),
    ],
)
def test_wrong_words_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_fault(text)


def test_help_names_every_kind_once() -> None:
    lines = faults_help().splitlines()
    assert [line.split("[")[0].split()[0] for line in lines] == [kind.name for kind in FAULT_KINDS]
    assert "break-stream[=PARTS]" in faults_help()
    assert {kind.name for kind in FAULT_KINDS} > STREAM_FAULTS
    assert all(parse_fault(kind.name).name == kind.name for kind in FAULT_KINDS)


def test_plan_is_the_same_for_the_same_seed() -> None:
    faults = (parse_fault("latency%40"), parse_fault("timeout@other"))

    def drawn(seed: int) -> list[bool]:
        plan = FaultPlan(faults, seed=seed)
        return [plan.draw("chat").has("latency") for _ in range(200)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 50 < sum(drawn(1)) < 110
    assert FaultPlan(faults, seed=1).draw("other").has("timeout")
    assert not FaultPlan(faults, seed=1).draw("chat").has("timeout")


@pytest.mark.parametrize(("limit_bytes", "num_whole"), [(0, 0), (1, 0), (3, 1), (4, 1), (8, 2)])
def test_break_after_bytes_sends_exactly_these(limit_bytes: int, num_whole: int) -> None:
    frames = Frames(("break-stream-bytes", limit_bytes))
    sent = b"".join(frames.of([part]) for part in (b"abc", b"defgh", b"ij") if frames.end is None)
    assert frames.end is not None
    assert sent.count(b"PayloadPart") in (num_whole, num_whole + 1)
    assert b"ij" not in sent
