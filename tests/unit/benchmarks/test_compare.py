"""The comparison without a real engine: who is measured when, what is kept, what is drawn."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast

import pytest
from rich.console import Console

from benchmarks import compare, machine
from benchmarks.alternation import Clock, Entry, Stable, left_to_do, measure, warm_up
from benchmarks.peers.contracts import (
    EngineFailed,
    Kind,
    Measured,
    Request,
    RequestTimes,
    Running,
    Settings,
    Workload,
)
from benchmarks.plots import draw
from benchmarks.record import CaseRecord, Contender, Record, load
from benchmarks.results import rows, show
from benchmarks.workloads import Family, Sizes, batch, long_prompt


def ids(count: int, seed: str) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(100), k=count))


SIZES = Sizes(ids=ids, prompt_tokens=8, new_tokens=4, min_requests=2)


@dataclass
class FakeRunning:
    """Answers at once; a token every `step_s`."""

    name: str
    step_s: float
    calls: list[str]
    fails: bool = False
    ready_s: float = 0.5
    first_token_s: float = 0.75
    pid: int = 1
    is_paused: bool = False

    def run(self, workload: Workload) -> Measured:
        assert not self.is_paused
        self.calls.append(f"{self.name} {len(workload.requests)}")
        done = []
        for asked in workload.requests:
            count = asked.num_output_tokens - int(self.fails and len(self.calls) > 1)
            times = [asked.arrival_s + self.step_s * (step + 1) for step in range(count)]
            done.append(RequestTimes(asked.arrival_s, times[0], times[-1], count, times))
        return Measured(done, wall_s=max(one.end_s for one in done), client_cpu_s=0.01, engine_cpu_s=0.02)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def close(self) -> None:
        self.calls.append(f"{self.name} ends")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass
class FakeEngine:
    name: str
    step_s: float
    calls: list[str] = field(default_factory=list)
    absent: str | None = None
    fails: bool = False
    kind: Kind = "http"
    dtype: str = "float32"

    def version(self) -> str:
        return "1.0"

    def why_not(self) -> str | None:
        return self.absent

    def prepare(self, model: Path) -> None:
        pass

    def start(self, model: Path, settings: Settings) -> Running:
        self.calls.append(f"{self.name} starts")
        return FakeRunning(self.name, self.step_s, self.calls, self.fails)


def entries_of(*engines: FakeEngine) -> list[Entry]:
    return [Entry(engine.name, engine, Settings()) for engine in engines]


def new_record(family: Family, entries: list[Entry]) -> Record:
    return Record(
        date="2026-01-02T03:04:05+00:00",
        commit="abc",
        command=["--model", "32m"],
        family=family.name,
        title=family.title,
        model="32m",
        model_shape={"hidden_size": 8},
        parameters={"scale": 1.0},
        metrics=list(family.metrics),
        baseline=family.baseline,
        num_threads=2,
        rounds=2,
        machine=machine.describe(),
        ceilings={"bytes_per_s": 3e10, "flop_per_s": 1.6e11},
        versions={"torch": "2"},
        cases=[
            CaseRecord(
                name=case.name,
                offered=case.offered,
                floor={} if family.baseline else {"tokens_per_s": 1000.0, "per_token_p50_s": 0.001},
            )
            for case in family.cases
        ],
        contenders={
            one.label: Contender(
                kind="http",
                dtype="float32",
                version="1",
                prefix_cache=False,
                absent=one.engine.why_not() or "",
            )
            for one in entries
        },
    )


def run_all(family: Family, entries: list[Entry], record: Record, folder: Path, *, rounds: int) -> None:
    with Stable(folder, warm_up(family)) as stable:
        for turn in left_to_do(family, rounds, entries, record):
            record.runs.append(measure(turn, family, stable))


@pytest.fixture(autouse=True)
def _no_look_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "busy_share", lambda: 0.01)


@pytest.fixture
def compared(tmp_path: Path) -> tuple[Record, list[str]]:
    calls: list[str] = []
    entries = entries_of(FakeEngine("ours", 0.01, calls), FakeEngine("peer", 0.02, calls))
    family = batch(SIZES, [1, 4])
    record = new_record(family, entries)
    run_all(family, entries, record, tmp_path, rounds=2)
    return record, calls


def test_engines_take_turns_in_every_round_of_every_case(compared: tuple[Record, list[str]]) -> None:
    record, calls = compared
    order = [(run.case, run.round, run.engine) for run in record.runs]
    assert order == [
        (case, number, engine)
        for case in ("1 at once", "4 at once")
        for number in (1, 2)
        for engine in ("ours", "peer")
    ]
    assert [call for call in calls if "starts" in call] == ["ours starts", "peer starts"]
    assert calls[-2:] == ["peer ends", "ours ends"] or calls[-2:] == ["ours ends", "peer ends"]


def test_only_the_engine_whose_turn_it_is_goes_on(tmp_path: Path) -> None:
    entries = entries_of(*(FakeEngine(name, 0.01) for name in ("ours", "peer", "other")))
    with Stable(tmp_path, warm_up(batch(SIZES, [1]))) as stable:
        running = {entry.label: stable.get(entry) for entry in entries}
        for entry in (*entries, *reversed(entries)):
            assert stable.get(entry) is running[entry.label]
            going_on = [label for label, one in running.items() if not cast(FakeRunning, one).is_paused]
            assert going_on == [entry.label]


def test_what_is_in_the_record_is_not_done_again(compared: tuple[Record, list[str]]) -> None:
    record, _ = compared
    entries = entries_of(FakeEngine("ours", 0.01), FakeEngine("peer", 0.02))
    family = batch(SIZES, [1, 4])
    assert left_to_do(family, 2, entries, record) == []
    del record.runs[2:]
    left = [(turn.case.name, turn.round, turn.entry.label) for turn in left_to_do(family, 2, entries, record)]
    assert left[:2] == [("1 at once", 2, "ours"), ("1 at once", 2, "peer")]
    assert len(left) == 6


def test_rounds_have_prompts_of_their_own_and_engines_share_them() -> None:
    family = batch(SIZES, [2])
    make = family.cases[0].make
    assert make(1) == make(1)
    prompts = [one.prompt_ids for number in (0, 1, 2) for one in make(number).requests]
    assert len(set(prompts)) == len(prompts)


def test_ratios_and_shares_of_the_floor(compared: tuple[Record, list[str]]) -> None:
    record, _ = compared
    found = {(row.case, row.engine, row.metric): row for row in rows(record)}
    ours, peer = (found["1 at once", name, "tokens_per_s"] for name in ("ours", "peer"))
    assert ours.ratio is None
    assert peer.ratio == pytest.approx(2.0)
    # Every request of the stand-in begins at 0: two of four tokens within 0.04 s.
    assert ours.summary.median == pytest.approx(8 / 0.04)
    assert ours.floor_share == pytest.approx(0.2)
    latency = found["1 at once", "peer", "per_token_p50_s"]
    assert latency.ratio == pytest.approx(2.0), "less time is better, and the ratio still says so"
    assert latency.floor_share == pytest.approx(0.05)


def test_a_record_comes_back_as_it_was_and_is_drawn(
    compared: tuple[Record, list[str]], tmp_path: Path
) -> None:
    record, _ = compared
    record.contenders["absent"] = Contender(
        kind="http", dtype="float32", version="", prefix_cache=False, absent="not installed; `install it`"
    )
    path = tmp_path / "2026-01-02-batch-32m.json"
    record.save(path)
    assert load(path) == record
    pictures = draw(load(path), path.with_suffix(""))
    assert [one.name for one in pictures] == [
        "2026-01-02-batch-32m-bars.png",
        "2026-01-02-batch-32m-curve.png",
    ]
    assert all(one.read_bytes().startswith(b"\x89PNG") for one in pictures)
    console = Console(record=True, width=140)
    show(record, console)
    text = console.export_text()
    assert "absent did not take part: not installed; `install it`" in text
    assert "2.00x" in text


@pytest.mark.parametrize(("field_name", "value"), [("schema", 0), ("runs", "many")])
def test_another_schema_is_refused(
    compared: tuple[Record, list[str]], tmp_path: Path, field_name: str, value: object
) -> None:
    record, _ = compared
    setattr(record, field_name, value)
    path = tmp_path / "record.json"
    record.save(path)
    with pytest.raises(ValueError, match=r"record\.json"):
        load(path)


def test_a_run_that_is_not_what_was_asked_does_not_count(tmp_path: Path) -> None:
    entries = entries_of(FakeEngine("ours", 0.01, fails=True))
    family = batch(SIZES, [1])
    record = new_record(family, entries)
    run_all(family, entries, record, tmp_path, rounds=1)
    assert record.runs[0].error == "2 of 2: request 0: 3 tokens instead of 4"
    assert record.values("1 at once", "ours", "tokens_per_s") == []


def test_an_engine_that_fails_its_warm_up_is_ended(tmp_path: Path) -> None:
    class Broken(FakeEngine):
        def start(self, model: Path, settings: Settings) -> Running:
            running = FakeRunning(self.name, self.step_s, self.calls)
            running.run = lambda workload: Measured([RequestTimes(error="no")], 1.0)  # type: ignore[method-assign]
            return running

    engine = Broken("peer", 0.01)
    family = batch(SIZES, [1])
    with Stable(tmp_path, warm_up(family)) as stable, pytest.raises(EngineFailed, match="warm-up: no"):
        stable.get(Entry("peer", engine, Settings()))
    assert engine.calls == ["peer ends"]


def test_an_absent_engine_has_no_turns() -> None:
    entries = entries_of(FakeEngine("ours", 0.01), FakeEngine("peer", 0.02, absent="not installed"))
    family = batch(SIZES, [1])
    left = left_to_do(family, 3, entries, new_record(family, entries))
    assert [turn.entry.label for turn in left] == ["ours"] * 3


def test_the_clock_begins_nothing_that_would_end_late(compared: tuple[Record, list[str]]) -> None:
    record, _ = compared
    turn = left_to_do(batch(SIZES, [1]), 3, entries_of(FakeEngine("ours", 0.01)), record)[0]
    record.runs[-1].wall_s = 50.0
    clocks = [Clock(limit_s, record) for limit_s in (None, 60.0, 40.0)]
    record.contenders["ours"].start_s = 40.0
    assert clocks[1].expected_s(turn, is_up=False) == pytest.approx(40.04)
    assert [clock.fits(turn, is_up=False) for clock in clocks] == [True] * 3, (
        "a piece does something at least"
    )
    record.runs.append(record.runs[0])
    assert [clock.fits(turn, is_up=False) for clock in clocks] == [True, True, False]
    assert [clock.fits(turn, is_up=True) for clock in clocks] == [True] * 3


def test_time_between_tokens_counts_only_beside_the_long_prompt() -> None:
    family = long_prompt(Sizes(ids=ids, new_tokens=400), num_streams=2)
    alone, beside = family.cases
    steady = [0.1 * step for step in range(1, 401)]
    stretched = [time_s + (0.5 if time_s > 5.0 else 0.0) for time_s in steady]
    done = [RequestTimes(0.0, times[0], times[-1], 400, times) for times in (steady, stretched)]
    numbers = alone.measure(alone.make(0), Measured(done, 41.0))
    assert numbers["between_max_s"] == pytest.approx(0.6)
    late = RequestTimes(2.0, 4.5, 4.5, 1, [4.5])
    numbers = beside.measure(beside.make(0), Measured([*done, late], 41.0))
    assert numbers["between_max_s"] == pytest.approx(0.1), "the long gap was after the long prompt"
    assert numbers["long_first_token_s"] == 2.5


def test_a_request_is_what_the_contract_says() -> None:
    request = batch(SIZES, [1]).cases[0].make(3).requests[0]
    assert request == Request(ids(8, "batch 1 3 0"), 4)


def test_a_record_keeps_the_comparison_and_not_the_call() -> None:
    given = ["--model", "32m", "--resume", "/somewhere/record.json", "--limit-s=160", "--rounds", "2"]
    assert compare._lasting(given) == ["--model", "32m", "--rounds", "2"]
