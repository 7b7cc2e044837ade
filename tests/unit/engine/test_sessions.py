"""Sessions and what they keep: the table, the pins on the simulated worker, and both under random traffic."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine.block_pool import BlockAccountingError, BlockPool
from serving.engine.request import Request
from serving.engine.session_pins import SessionPins
from serving.engine.sessions import SessionTable
from serving.errors import Overloaded, SessionRefused
from tests.unit.engine.simulated_worker import Simulation, reference
from tests.unit.engine.test_scheduler import _prompt


def _table(*, ttl_s: float = 10.0, max_sessions: int = 3) -> SessionTable:
    return SessionTable(SessionPins([BlockPool(9)], kv_fraction=0.5), ttl_s=ttl_s, max_sessions=max_sessions)


def _turn(simulation: Simulation, name: str, prompt: list[int], session: str, **settings: int) -> list[int]:
    """Prompt and answer of a turn that has run to its end."""
    simulation.add(name, prompt, session_id=session, **settings)  # type: ignore[arg-type]
    simulation.run()
    return prompt + simulation.outputs[name, 0]


def _flush(simulation: Simulation, name: str = "flush") -> None:
    """Traffic that takes every block that is free."""
    length = simulation.cache.block_size * min(pool.num_free for pool in simulation.cache.pools)
    simulation.add(name, _prompt(length - 2, seed=name), max_output=1)
    simulation.run()


def _cached(simulation: Simulation, name: str, prompt: list[int], session: str = "") -> int:
    (request,) = simulation.add(name, prompt, session_id=session, max_output=1)
    simulation.run()
    return request.num_cached_tokens


# ---------------------------------------------------------------- the table


def test_ids_are_long_random_and_well_formed() -> None:
    table = _table(max_sessions=1000)
    ids = {table.open(0.0) for _ in range(500)}
    assert len(ids) == 500
    assert all(re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*", name) and 32 <= len(name) <= 256 for name in ids)


def test_life_of_a_session() -> None:
    table = _table()
    assert table.seconds_to_expiry(0.0) is None
    first, second = table.open(0.0), table.open(4.0)
    assert table.seconds_to_expiry(4.0) == 6.0
    table.expire(9.99)
    table.use(first)
    table.expire(10.0)
    with pytest.raises(SessionRefused, match="session not found"):
        table.use(first)
    table.use(second)
    assert len(table) == 1 and table.seconds_to_expiry(20.0) == 0.0
    table.close(second)
    for call in (table.close, table.require, table.use):
        with pytest.raises(SessionRefused, match="session not found"):
            call(second)


def test_too_many_sessions_are_told_when_to_come_back() -> None:
    table = _table(ttl_s=100.0)
    first = table.open(0.0)
    table.open(1.0), table.open(2.0)
    for now_s, wait_s in ((3.0, 60.0), (70.0, 30.0), (99.9, 1.0)):
        with pytest.raises(Overloaded, match="3 sessions are open") as caught:
            table.open(now_s)
        assert caught.value.retry_after_s == pytest.approx(wait_s)
    table.close(first)
    table.open(5.0)


# ---------------------------------------------------------------- pins


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("windows", [(None,), (6,), (None, 6)])
def test_the_next_turn_hits_whatever_came_between(windows: tuple[int | None, ...], overlapped: bool) -> None:
    simulation = Simulation(num_blocks=40, windows=windows, session_kv_fraction=0.5, overlapped=overlapped)
    simulation.pins.open("s")
    history = _turn(simulation, "one", _prompt(21), "s", max_output=9)
    plain = _turn(simulation, "other", _prompt(21, seed=1), "", max_output=9)
    _flush(simulation)
    _flush(simulation, "again")
    num_full = (len(history) - 1) // 4 * 4
    assert _cached(simulation, "two", [*history, 9, 9], "s") == num_full
    assert _cached(simulation, "not mine", [*plain, 9, 9]) == 0
    assert simulation.outputs["two", 0] == reference([*history, 9, 9], max_output=1, seed=0)


def test_the_pin_goes_with_the_conversation() -> None:
    simulation = Simulation(num_blocks=60, session_kv_fraction=0.5)
    pins = simulation.pins
    pins.open("s")
    first = _turn(simulation, "one", _prompt(20), "s", max_output=4)
    few = pins.num_blocks
    longer = _turn(simulation, "two", first + _prompt(12, seed=1), "s", max_output=4)
    assert pins.num_blocks == (len(longer) - 1) // 4 > few
    _turn(simulation, "back", first[:9], "s", max_output=1)
    assert pins.num_blocks == (len(longer) - 1) // 4, "a shorter beginning of the same does not replace it"
    other = _turn(simulation, "new topic", _prompt(12, seed=2), "s", max_output=4)
    assert pins.num_blocks == (len(other) - 1) // 4
    pins.close("s")
    assert pins.num_blocks == 0 and simulation.cache.num_free_blocks == simulation.cache.num_blocks
    simulation.scheduler.check()


def test_what_is_not_published_is_not_kept() -> None:
    simulation = Simulation(num_blocks=30, session_kv_fraction=1.0)
    simulation.pins.open("s")
    (request,) = simulation.add("gone", _prompt(40), max_output=5, session_id="s")
    simulation.scheduler.abort(request)
    assert simulation.pins.num_blocks == 0
    (request,) = simulation.add("half", _prompt(40), max_output=5, session_id="s")
    simulation.step()
    simulation.scheduler.abort(request)
    simulation.scheduler.check()
    assert simulation.pins.num_blocks == 16 // 4, "one step's worth"
    off = Simulation(num_blocks=30, prefix_caching=False, session_kv_fraction=1.0)
    off.pins.open("s")
    _turn(off, "one", _prompt(20), "s")
    assert off.pins.num_blocks == 0


def test_a_session_that_is_not_open_keeps_nothing() -> None:
    simulation = Simulation(num_blocks=30, session_kv_fraction=1.0)
    simulation.pins.open("s")
    (request,) = simulation.add("late", _prompt(20), max_output=30, session_id="s")
    simulation.step()
    simulation.pins.close("s")
    simulation.run()
    assert request.status.finished and simulation.pins.num_blocks == 0
    assert simulation.cache.num_free_blocks == simulation.cache.num_blocks


def test_the_quota_takes_from_the_least_recently_used() -> None:
    simulation = Simulation(num_blocks=41, session_kv_fraction=0.3)
    pins = simulation.pins
    prompts = {name: _prompt(22, seed=number) for number, name in enumerate("abc")}
    for name, prompt in prompts.items():
        pins.open(name)
        _turn(simulation, f"first {name}", prompt, name, max_output=1)
        pins.touch("a")
    assert (pins.num_blocks, pins.num_given_up) == (10, 1)
    _flush(simulation)
    hits = {name: _cached(simulation, f"second {name}", prompt) for name, prompt in prompts.items()}
    assert hits["a"] == hits["c"] == 20 and hits["b"] == 0


def test_shared_blocks_count_once() -> None:
    simulation = Simulation(num_blocks=41, session_kv_fraction=0.2)
    for number in range(6):
        simulation.pins.open(f"s{number}")
        _turn(simulation, f"r{number}", [*_prompt(24), 8 + number], f"s{number}", max_output=1)
    assert (simulation.pins.num_blocks, simulation.pins.num_given_up) == (6, 0)


@pytest.mark.parametrize(("windows", "kept"), [((None,), 4), ((6,), 2), ((None, 6), 0)])
def test_a_pin_over_the_quota_keeps_its_beginning_where_that_helps(
    windows: tuple[int | None, ...], kept: int
) -> None:
    simulation = Simulation(num_blocks=41, windows=windows, session_kv_fraction=0.1)
    simulation.pins.open("s")
    prompt = _prompt(60)
    _turn(simulation, "long", prompt, "s", max_output=1)
    simulation.scheduler.check()
    assert simulation.pins.num_blocks == kept
    _flush(simulation)
    if windows == (None,):
        assert _cached(simulation, "again", prompt, "s") == 16


def test_nothing_is_kept_without_a_share() -> None:
    simulation = Simulation(num_blocks=30, session_kv_fraction=0.0)
    simulation.pins.open("s")
    _turn(simulation, "one", _prompt(20), "s")
    assert (simulation.pins.num_blocks, simulation.pins.num_given_up) == (0, 0)


def test_pins_go_before_anybody_is_preempted_or_waits() -> None:
    simulation = Simulation(num_blocks=21, max_step_tokens=100, session_kv_fraction=1.0)
    pins = simulation.pins
    for name in "ab":
        pins.open(name)
        _turn(simulation, name, _prompt(32, seed=ord(name)), name, max_output=1)
    assert pins.num_blocks == 16
    simulation.add("running", _prompt(14, seed=3), max_output=4)
    simulation.step()
    assert pins.num_given_up == 0
    simulation.add("admitted", _prompt(20, seed=4), max_output=2)
    simulation.step()
    assert simulation.scheduler.num_running == 2 and pins.num_given_up == 1
    simulation.run()
    assert simulation.scheduler.num_preemptions == 0
    assert len(simulation.terminal) == 4 and pins.num_given_up == 1, "no more than needed"


def test_pins_stay_when_giving_them_up_would_not_help() -> None:
    simulation = Simulation(num_blocks=21, max_step_tokens=100, session_kv_fraction=0.2)
    simulation.pins.open("s")
    _turn(simulation, "turn", _prompt(16), "s", max_output=1)
    simulation.add("running", _prompt(40, seed=1), max_output=8)
    simulation.step()
    simulation.add("large", _prompt(60, seed=2), max_output=1)
    simulation.step()
    assert simulation.scheduler.num_waiting == 1 and simulation.pins.num_given_up == 0
    simulation.run()
    assert len(simulation.terminal) == 3


def test_pins_stay_while_running_requests_hold_their_blocks() -> None:
    pool = BlockPool(9)
    pins = SessionPins([pool], kv_fraction=1.0)
    table = [pool.allocate() for _ in range(4)]
    hashes = [bytes([number]) * 32 for number in range(4)]
    pins.open("s")
    pins.keep("s", hashes, [table], starts=[0])
    assert not pins.give_up_for([3]) and pins.num_given_up == 0
    for block in table:
        pool.release(block)
    assert pins.give_up_for([3]) and pool.num_free == pool.num_allocatable


def test_check_sees_a_pin_that_is_not_in_the_books() -> None:
    simulation = Simulation(num_blocks=30, session_kv_fraction=1.0)
    simulation.pins.open("s")
    _turn(simulation, "one", _prompt(20), "s")
    simulation.cache.pools[0].acquire(simulation.pins._pins["s"].blocks[0][0])
    with pytest.raises(BlockAccountingError):
        simulation.scheduler.check()


# ---------------------------------------------------------------- random traffic


@st.composite
def _scenario(draw: st.DrawFn) -> dict[str, object]:
    return {
        "num_blocks": draw(st.integers(10, 40)),
        "block_size": draw(st.sampled_from([1, 2, 4])),
        "windows": draw(st.sampled_from([(None,), (3,), (None, 5)])),
        "max_step_tokens": draw(st.sampled_from([1, 3, 8, 50])),
        "max_num_seqs": draw(st.integers(1, 6)),
        "prefix_caching": draw(st.sampled_from([True, True, False])),
        "session_kv_fraction": draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])),
    }


_turns = st.tuples(
    st.just("turn"),
    st.integers(0, 3),  # session
    st.integers(1, 14),  # new tokens
    st.integers(1, 10),  # answer
    st.integers(1, 2),  # n
    st.booleans(),  # go on where the session was, or begin anew
)
_others = st.tuples(st.sampled_from(["open", "close", "expire", "abort", "steal"]), st.integers(0, 3))


class _Conversations:
    """Random turns of four sessions; everything is checked after every step."""

    def __init__(self, scenario: dict[str, object]) -> None:
        self.simulation = Simulation(**scenario)  # type: ignore[arg-type]
        self.max_step = int(str(scenario["max_step_tokens"]))
        self.table = SessionTable(self.simulation.pins, ttl_s=6.0, max_sessions=3)
        self.ids = ["", "", "", ""]
        self.histories: list[list[int]] = [[], [], [], []]
        self.expected: dict[tuple[str, int], list[int]] = {}
        self.living: list[Request] = []
        self.now_s = 0.0

    def turn(self, which: int, length: int, answer: int, n: int, goes_on: bool) -> None:
        name = f"r{len(self.expected)}-{which}"
        history = self.histories[which][:30] if goes_on else []
        prompt = history + _prompt(length, seed=len(self.expected) % 2)
        if not self.simulation.cache.fits_alone(len(prompt) + answer, self.max_step):
            return
        self.living += self.simulation.add(
            name, prompt, max_output=answer, seed=7, n=n, session_id=self.ids[which]
        )
        self.simulation.pins.touch(self.ids[which])
        for index in range(n):
            self.expected[name, index] = reference(prompt, max_output=answer, seed=7 + index)
        self.histories[which] = prompt + self.expected[name, 0]

    def other(self, event: str, which: int) -> None:
        if event == "open" and not self.ids[which] and len(self.table) < 3:
            self.ids[which] = self.table.open(self.now_s)
        elif event == "close" and self.ids[which]:
            self.table.close(self.ids[which])
            self.ids[which] = ""
        elif event == "expire":
            self.now_s += 2.0
            self.table.expire(self.now_s)
            self.ids = [name if name in self.table._expiry_s else "" for name in self.ids]
        elif event == "steal":
            self.simulation.pins.give_up_for([1] * len(self.simulation.cache.pools))
        elif event == "abort" and self.living:
            victim = self.living.pop(which % len(self.living))
            if (victim.request_id, victim.index) not in self.simulation.terminal:
                self.simulation.scheduler.abort(victim)
                self.simulation.terminal[victim.request_id, victim.index] = "abort"
        self.simulation.scheduler.check()


@settings(deadline=None)
@given(
    scenario=_scenario(),
    events=st.lists(st.tuples(st.one_of(_turns, _others), st.integers(0, 5)), min_size=1, max_size=30),
)
def test_sessions_change_no_answer_and_hold_nobody_up(
    scenario: dict[str, object], events: list[tuple[tuple, int]]
) -> None:
    """Random turns, openings, ends and thefts under shortage: the right tokens, every sequence ends, the books balance."""
    world = _Conversations(scenario)
    for (event, *details), steps in events:
        if event == "turn":
            world.turn(*details)
        else:
            world.other(event, *details)
        for _ in range(steps):
            world.simulation.step()
    world.simulation.run()
    simulation = world.simulation
    assert simulation.terminal.keys() == world.expected.keys()
    for key, reason in simulation.terminal.items():
        tokens = simulation.outputs.get(key, [])
        assert tokens == world.expected[key][: len(tokens)]
        assert reason == "abort" or len(tokens) == len(world.expected[key])
    assert simulation.cache.num_free_blocks == simulation.cache.num_blocks
    for name in filter(None, world.ids):
        world.table.close(name)
    simulation.scheduler.check()
    assert all(pool.num_free == pool.num_allocatable for pool in simulation.cache.pools)
