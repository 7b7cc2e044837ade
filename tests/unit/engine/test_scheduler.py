"""Scheduler and KV cache together, on the simulated worker that sees every wrong block."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine.block_pool import BlockAccountingError
from tests.unit.engine.simulated_worker import EOS, Simulation, reference


def _prompt(length: int, seed: int | str = 0) -> list[int]:
    return [token for token in random.Random(seed).choices(range(8, 50), k=length)]


@pytest.fixture(params=[False, True], ids=["one by one", "overlapped"])
def overlapped(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("max_step_tokens", [1, 7, 64, 1000])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_chunk_size_and_cache_do_not_change_output(
    max_step_tokens: int, prefix_caching: bool, overlapped: bool
) -> None:
    simulation = Simulation(
        num_blocks=200, max_step_tokens=max_step_tokens, prefix_caching=prefix_caching, overlapped=overlapped
    )
    prompts = {f"r{i}": _prompt(5 + 9 * i, seed=i % 3) for i in range(6)}
    for name, prompt in prompts.items():
        simulation.add(name, prompt, max_output=12)
    simulation.run()
    for name, prompt in prompts.items():
        assert simulation.outputs[name, 0] == reference(prompt, max_output=12, seed=0)


def test_preemption_recomputes_and_everybody_ends(overlapped: bool) -> None:
    simulation = Simulation(num_blocks=14, max_step_tokens=64, overlapped=overlapped)
    prompts = {f"r{i}": _prompt(6 + i, seed=10 + i) for i in range(6)}
    for name, prompt in prompts.items():
        simulation.add(name, prompt, max_output=25)
    simulation.run()
    assert simulation.scheduler.num_preemptions > 0
    for name, prompt in prompts.items():
        assert simulation.outputs[name, 0] == reference(prompt, max_output=25, seed=0)


def test_a_prefix_that_many_bring_at_once_is_computed_once(overlapped: bool) -> None:
    """They wait for the one that computes it; whoever does not share it passes."""
    simulation = Simulation(num_blocks=400, max_step_tokens=32, overlapped=overlapped)
    common = _prompt(200, seed=1)
    prompts = {f"r{i}": common + _prompt(5, seed=20 + i) for i in range(8)}
    prompts["other"] = _prompt(30, seed=99)
    for name, prompt in prompts.items():
        simulation.add(name, prompt, max_output=6)
    simulation.run()
    for name, prompt in prompts.items():
        assert simulation.outputs[name, 0] == reference(prompt, max_output=6, seed=0)
    # The common part once, every tail, and up to a block beside each that was not full.
    num_prompt_tokens = sum(row.num_tokens for batch in simulation.batches for row in batch.rows)
    num_prompt_tokens -= 6 * len(prompts)
    assert num_prompt_tokens < 200 + 30 + 8 * (5 + 4)
    first_rows = [new.row for batch in simulation.batches[:2] for new in batch.new_rows]
    assert len(first_rows) == 2, "the first of the eight, and the other one"


def test_waiting_for_a_prefix_ends_with_the_one_that_computes_it(overlapped: bool) -> None:
    simulation = Simulation(num_blocks=400, max_step_tokens=16, overlapped=overlapped)
    common = _prompt(120, seed=2)
    (owner,) = simulation.add("owner", [*common, 8], max_output=6)
    simulation.add("second", [*common, 9], max_output=6)
    simulation.step()
    simulation.scheduler.abort(owner)
    simulation.run()
    assert simulation.outputs["second", 0] == reference([*common, 9], max_output=6, seed=0)


def test_prefix_hit_skips_computed_blocks_and_leaves_one_token() -> None:
    simulation = Simulation(num_blocks=50)
    prompt = _prompt(16)
    simulation.add("first", prompt)
    simulation.run()
    (second,) = simulation.add("second", prompt)
    simulation.run()
    assert second.num_cached_tokens == 12
    assert simulation.batches[-1].rows
    assert simulation.outputs["second", 0] == simulation.outputs["first", 0]


def test_different_roots_share_nothing() -> None:
    simulation = Simulation(num_blocks=50)
    simulation.add("first", _prompt(16), root=b"salt a")
    simulation.run()
    (second,) = simulation.add("second", _prompt(16), root=b"salt b")
    simulation.run()
    assert second.num_cached_tokens == 0


@pytest.mark.parametrize("prompt_length", [1, 4, 5, 8, 9, 13])
@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("windows", [(None,), (6,), (None, 6)])
def test_group_forks_share_the_prompt(
    prompt_length: int, prefix_caching: bool, windows: tuple[int | None, ...], overlapped: bool
) -> None:
    simulation = Simulation(
        num_blocks=100, windows=windows, prefix_caching=prefix_caching, overlapped=overlapped
    )
    prompt = _prompt(prompt_length, seed=5)
    simulation.add("group", prompt, n=4, max_output=10, seed=100)
    simulation.run()
    for index in range(4):
        assert simulation.outputs["group", index] == reference(prompt, max_output=10, seed=100 + index)
    computed = sum(batch.num_tokens for batch in simulation.batches)
    outputs = sum(len(tokens) for tokens in simulation.outputs.values())
    if windows == (None,) and not overlapped:
        assert computed == prompt_length + 3 + outputs - 4, "the prompt was computed more than once"


def test_long_prompt_does_not_hold_up_short_ones() -> None:
    simulation = Simulation(num_blocks=600, max_step_tokens=32, max_num_seqs=16)
    simulation.add("long", _prompt(2000))
    simulation.step()
    for index in range(8):
        simulation.add(f"short{index}", _prompt(10, seed=index), max_output=2)
    for _ in range(20):
        simulation.step()
    assert all((f"short{index}", 0) in simulation.terminal for index in range(8))
    assert ("long", 0) not in simulation.outputs


def test_window_group_frees_what_it_cannot_see() -> None:
    simulation = Simulation(num_blocks=12, windows=(8,), max_step_tokens=4)
    prompt = _prompt(120)
    assert simulation.cache.fits_alone(140, 4)
    simulation.add("long", prompt, max_output=20)
    simulation.run()
    assert simulation.outputs["long", 0] == reference(prompt, max_output=20, seed=0)


def test_abort_frees_at_once() -> None:
    simulation = Simulation(num_blocks=30)
    (request,) = simulation.add("gone", _prompt(20), max_output=50)
    simulation.step()
    simulation.scheduler.abort(request)
    simulation.scheduler.check()
    assert simulation.cache.num_free_blocks == simulation.cache.num_blocks
    assert not simulation.step()


def test_overlap_wastes_one_row_per_sequence_that_ends_by_itself() -> None:
    simulation = Simulation(num_blocks=100, overlapped=True)
    prompts = [_prompt(5, seed=seed) for seed in range(20)]
    for index, prompt in enumerate(prompts):
        simulation.add(str(index), prompt, max_output=12)
    simulation.run()
    tokens = {name: ids for (name, _), ids in simulation.outputs.items()}
    assert tokens == {str(i): reference(prompt, max_output=12, seed=0) for i, prompt in enumerate(prompts)}
    sampled = sum(row.samples for batch in simulation.batches for row in batch.rows)
    early = sum(ids[-1] == EOS and len(ids) < 12 for ids in tokens.values())
    assert early > 0
    assert sampled == sum(map(len, tokens.values())) + early


def test_a_step_is_planned_while_another_runs() -> None:
    simulation = Simulation(num_blocks=100, overlapped=True)
    (request,) = simulation.add("r", _prompt(5), max_output=30)
    assert simulation.step() and not simulation.outputs, "launched, not read"
    assert simulation.step() and len(simulation.batches) == 2
    assert len(simulation.outputs["r", 0]) == 1 and request.num_pending_tokens == 1


def test_what_an_aborted_or_preempted_sequence_has_in_flight_is_dropped() -> None:
    simulation = Simulation(num_blocks=100, overlapped=True)
    (gone,) = simulation.add("gone", _prompt(5, seed=1), max_output=30)
    (stays,) = simulation.add("stays", _prompt(6, seed=2), max_output=10)
    simulation.step()
    simulation.step()
    simulation.scheduler.abort(gone)
    simulation.scheduler.check()
    (late,) = simulation.add("late", _prompt(7), max_output=10)  # gets the row of the one that is gone
    row = stays.row
    simulation.run()
    assert len(simulation.outputs["gone", 0]) == 1 and ("gone", 0) not in simulation.terminal
    assert late.status.finished and stays.status.finished and row >= 0
    for name, prompt in (("stays", _prompt(6, seed=2)), ("late", _prompt(7))):
        assert simulation.outputs[name, 0] == reference(prompt, max_output=10, seed=0)


def test_check_sees_a_leak() -> None:
    simulation = Simulation(num_blocks=30)
    simulation.add("request", _prompt(20), max_output=50)
    simulation.step()
    simulation.cache.pools[0].allocate()
    with pytest.raises(BlockAccountingError):
        simulation.scheduler.check()


@st.composite
def _scenario(draw: st.DrawFn) -> dict[str, object]:
    return {
        "num_blocks": draw(st.integers(10, 40)),
        "block_size": draw(st.sampled_from([1, 2, 4])),
        "windows": draw(st.sampled_from([(None,), (3,), (None, 5)])),
        "max_step_tokens": draw(st.sampled_from([1, 3, 8, 50])),
        "max_num_seqs": draw(st.integers(1, 6)),
        "prefix_caching": draw(st.booleans()),
        "overlapped": draw(st.booleans()),
    }


@settings(deadline=None)
@given(
    scenario=_scenario(),
    events=st.lists(
        st.tuples(
            st.integers(0, 6), st.integers(1, 14), st.integers(1, 10), st.integers(1, 3), st.integers(0, 3)
        ),
        min_size=1,
        max_size=14,
    ),
)
def test_random_arrivals_aborts_and_preemptions(
    scenario: dict, events: list[tuple[int, int, int, int, int]]
) -> None:
    """Random arrivals, groups, aborts and shortages: invariants after each step, right tokens, each sequence ends once."""
    simulation = Simulation(**scenario)
    expected: dict[tuple[str, int], list[int]] = {}
    living = []
    for number, (steps, prompt_length, max_output, n, abort) in enumerate(events):
        prompt = _prompt(prompt_length, seed=number % 2)
        if simulation.cache.fits_alone(prompt_length + max_output, scenario["max_step_tokens"]):
            group = simulation.add(f"r{number}", prompt, max_output=max_output, seed=10 * number, n=n)
            for request in group:
                expected[request.request_id, request.index] = reference(
                    prompt, max_output=max_output, seed=10 * number + request.index
                )
            living += group
        for _ in range(steps):
            simulation.step()
        if abort == 0 and living:
            victim = living.pop(len(living) // 2)
            key = (victim.request_id, victim.index)
            if key not in simulation.terminal:
                simulation.scheduler.abort(victim)
                simulation.terminal[key] = "abort"
                simulation.scheduler.check()
    simulation.run()
    assert simulation.terminal.keys() == expected.keys()
    for key, reason in simulation.terminal.items():
        tokens = simulation.outputs.get(key, [])
        if reason == "abort":
            assert tokens == expected[key][: len(tokens)]
        else:
            assert tokens == expected[key]
            assert reason == (
                "eos_token" if tokens[-1] == EOS and len(tokens) < _limit(events, key) else "length"
            )
    assert simulation.cache.num_free_blocks == simulation.cache.num_blocks


def _limit(events: list[tuple[int, int, int, int, int]], key: tuple[str, int]) -> int:
    return events[int(key[0][1:])][2]
