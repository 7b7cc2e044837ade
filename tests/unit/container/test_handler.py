"""The custom handler as PID 1 keeps it: announced once, started anew with growing pauses, given up in the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from container import handler as handlers
from container.handler import MOST_RESTARTS, CustomHandler
from container.processes import handler_environment
from container.run_dir import RunDirectory
from serving.config import HANDLER_FILE, HandlerHooks, ServerConfig, Stage


class FakeChild:
    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.running = True
        self.ending = "exit code 9"
        self.process = self
        self.pid = 2**22 + 1  # larger than any

    def end(self, *stages: Stage) -> None:
        self.stages += stages
        self.running = False


class FakeSupervisor:
    def __init__(self) -> None:
        self.started: list[tuple[list[str], dict[str, Any]]] = []
        self.child = FakeChild()

    def start(self, name: str, command: list[str], **options: Any) -> FakeChild:
        assert name == "handler"
        self.started.append((command, options))
        self.child = FakeChild()
        return self.child

    def stop(self, child: FakeChild, *, grace_s: float) -> None:
        child.running = False


class Kept:
    def __init__(self, run_dir: RunDirectory) -> None:
        self.supervisor = FakeSupervisor()
        self.run_dir = run_dir
        self.handler = CustomHandler(
            self.supervisor,  # type: ignore[arg-type]
            run_dir,
            ServerConfig(),
            script=Path("/model/code/inference.py"),
            model_dir=Path("/model"),
            environ={"API_KEY": "k", "HF_TOKEN": "t", "MINE": "x"},
        )
        self.handler.start()

    @property
    def child(self) -> FakeChild:
        return self.supervisor.child

    def become_ready(self) -> None:
        self.child.stages.append(Stage(stage="ready", detail="input_fn,output_fn"))
        self.handler.tend()


@pytest.fixture
def kept() -> Iterator[Kept]:
    run_dir = RunDirectory()
    kept = Kept(run_dir)
    yield kept
    kept.handler.stop()
    run_dir.remove()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(handlers.time, "monotonic", lambda: now[0])
    return now


def test_it_is_announced_when_it_is_ready(kept: Kept) -> None:
    path = kept.run_dir.path / HANDLER_FILE
    kept.handler.tend()
    assert not kept.handler.ready and not path.exists()
    kept.become_ready()
    assert kept.handler.ready
    assert msgspec.json.decode(path.read_bytes(), type=HandlerHooks).names == ("input_fn", "output_fn")


def test_its_process_is_told_all_by_arguments_and_no_secrets(kept: Kept) -> None:
    command, options = kept.supervisor.started[0]
    assert command[command.index("--timeout-s") + 1] == "10.0"
    environ = options["environ"]
    assert environ["MINE"] == "x" and not {"API_KEY", "HF_TOKEN"} & set(environ)
    assert Path(environ["HOME"]).is_dir()


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([Stage(stage="failed", detail="line 3: no")], "line 3: no"),
        ([], "/model/code/inference.py: the custom handler ended while it was imported (exit code 9)"),
    ],
)
def test_an_end_before_it_was_ready_ends_the_start(kept: Kept, stages: list[Stage], reason: str) -> None:
    kept.child.end(*stages)
    kept.handler.tend()
    assert (kept.handler.failure or "").startswith(reason)
    assert len(kept.supervisor.started) == 1


def test_the_first_end_costs_no_pause_and_the_next_ones_longer_pauses(kept: Kept, clock: list[float]) -> None:
    kept.become_ready()
    pauses = []
    for _ in range(MOST_RESTARTS):
        num_started = len(kept.supervisor.started)
        kept.child.end()
        ended_s = clock[0]
        while len(kept.supervisor.started) == num_started:
            kept.handler.tend()
            if len(kept.supervisor.started) == num_started:
                clock[0] += 0.0625 if num_started > 1 else 0.0
        pauses.append(clock[0] - ended_s)
    assert pauses[0] == 0.0
    assert pauses[1:] == sorted(pauses[1:]) and pauses[-1] <= 5.1
    kept.child.end(Stage(stage="failed", detail="gone bad"))
    kept.handler.tend()
    assert "ended 11 times within 300 s, at last with: gone bad" in (kept.handler.failure or "")
    kept.handler.tend()
    assert len(kept.supervisor.started) == 1 + MOST_RESTARTS


def test_ends_of_long_ago_do_not_count(kept: Kept, clock: list[float]) -> None:
    kept.become_ready()
    for _ in range(3 * MOST_RESTARTS):
        kept.child.end()
        kept.handler.tend()
        clock[0] += handlers.WINDOW_S
        kept.handler.tend()
    assert kept.handler.failure is None
    assert len(kept.supervisor.started) == 1 + 3 * MOST_RESTARTS


def test_what_it_prints_is_logged_and_a_flood_is_cut(
    kept: Kept, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    take = kept.supervisor.started[0][1]["on_output"]
    with caplog.at_level(logging.INFO, "container.handler"):
        for number in range(2000):
            take(b"%d\xff" % number)
        clock[0] += 1.0
        take(b"next")
    texts = [record.__dict__["text"] for record in caplog.records if "text" in record.__dict__]
    assert texts[0] == "0\ufffd" and texts[-1] == "next" and len(texts) == 501
    assert [record.__dict__["lines"] for record in caplog.records if "lines" in record.__dict__] == [1500]


def test_what_the_deployer_set_stays() -> None:
    environ = handler_environment({"HOME": "/root", "OMP_NUM_THREADS": "4", "A": "b"}, home="/tmp/own")
    assert environ == {
        "HOME": "/tmp/own",
        "OMP_NUM_THREADS": "4",
        "A": "b",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
