"""What engines are asked, and the numbers that come of it."""

from __future__ import annotations

import random

import pytest

from benchmarks import floor
from benchmarks.metrics import Limits, open_loop, percentile, ratio, steady, summarize
from benchmarks.peers.contracts import Measured, Request, RequestTimes, Workload
from benchmarks.workloads import Sizes, arrivals, nano_mix, shared_prefix


def ids(count: int, seed: str) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(1000), k=count))


LIMITS = Limits(first_token_s=1.0, between_s=0.1)


def test_the_mix_has_the_published_token_counts() -> None:
    [case] = nano_mix(Sizes(ids=ids)).cases
    requests = case.make(1).requests
    assert len(requests) == 256
    assert sum(len(one.prompt_ids) for one in requests) == 142_827
    assert sum(one.num_output_tokens for one in requests) == 133_966
    assert {
        100 <= len(one.prompt_ids) <= 1024 and 100 <= one.num_output_tokens <= 1024 for one in requests
    } == {True}


def test_a_scaled_mix_says_so_and_keeps_its_requests() -> None:
    family = nano_mix(Sizes(ids=ids, scale=0.1))
    requests = family.cases[0].make(1).requests
    assert len(requests) == 256
    assert sum(one.num_output_tokens for one in requests) == pytest.approx(13_397, abs=130)
    assert "every length times 0.1" in family.title


def test_a_shared_prefix_is_shared_within_a_round_only() -> None:
    family = shared_prefix(Sizes(ids=ids))
    assert len(family.cases[0].make(1).requests) == 64
    first, second = (family.cases[0].make(number).requests for number in (1, 2))
    assert len({one.prompt_ids[:2048] for one in first}) == 1
    assert len({one.prompt_ids[2048:] for one in first}) == 64
    assert first[0].prompt_ids[:2048] != second[0].prompt_ids[:2048]
    jobs = family.cases[0].jobs()
    assert [jobs[0].cached, jobs[1].cached] == [0, 2048]


def test_arrivals_come_at_the_rate_they_say() -> None:
    family = arrivals(
        Sizes(ids=ids), capacity_per_s=40.0, loads=[0.5, 2.0], duration_s=50.0, limits=LIMITS, num_running=8
    )
    assert [case.offered for case in family.cases] == [20.0, 80.0]
    requests = family.cases[1].make(1).requests
    assert len(requests) == 4000
    assert requests[-1].arrival_s == pytest.approx(50.0, rel=0.05)
    assert family.max_concurrency == 8


def test_percentiles_and_spread() -> None:
    assert percentile([5.0, 1.0, 3.0], 0.5) == 3.0
    assert percentile([1.0] * 99 + [9.0], 0.99) == 1.0
    assert percentile([1.0] * 98 + [9.0, 9.0], 0.99) == 9.0
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)
    found = summarize([90.0, 100.0, 120.0])
    assert found is not None
    assert (found.median, found.spread, found.count) == (100.0, pytest.approx(0.3), 3)
    assert summarize([]) is None


def test_a_ratio_above_one_is_always_good() -> None:
    assert ratio("tokens_per_s", 200.0, 100.0) == 2.0
    assert ratio("start_s", 2.0, 6.0) == 3.0


def test_times_of_a_closed_loop_count_from_sending() -> None:
    workload = Workload((Request((1, 2), 3), Request((3, 4), 3)), concurrency=1)
    done = [
        RequestTimes(0.0, 0.5, 1.5, 3, [0.5, 1.0, 1.5]),
        RequestTimes(1.5, 1.75, 2.5, 3, [1.75, 2.0, 2.5]),
    ]
    numbers = steady(workload, Measured(done, 2.5))
    assert numbers["tokens_per_s"] == pytest.approx(6 / 2.5)
    assert numbers["first_token_p50_s"] == pytest.approx(0.375)
    assert numbers["between_max_s"] == pytest.approx(0.5)


def test_an_engine_that_tells_only_the_end_has_no_times_between_tokens() -> None:
    workload = Workload((Request((1, 2), 3),))
    numbers = steady(workload, Measured([RequestTimes(0.0, None, 1.5, 3)], 1.5))
    assert set(numbers) == {"tokens_per_s", "requests_per_s", "per_token_p50_s"}


def test_times_of_an_open_loop_count_from_when_a_request_was_due() -> None:
    workload = Workload(tuple(Request((1,), 2, arrival_s=at) for at in (0.0, 1.0, 2.0)))
    done = [
        RequestTimes(0.0, 0.5, 0.55, 2, [0.5, 0.55]),
        RequestTimes(2.5, 2.6, 2.65, 2, [2.6, 2.65]),  # sent late: the client's own delay counts
        RequestTimes(2.0, error="429"),
    ]
    numbers = open_loop(LIMITS)(workload, Measured(done, 3.0))
    assert numbers["refused"] == 1
    assert numbers["goodput_per_s"] == pytest.approx(1 / 3.0)
    assert numbers["first_token_p99_s"] == pytest.approx(1.6)


def test_a_cached_prefix_is_not_computed_again_by_the_floor() -> None:
    model = floor.Checkpoint(10**6, 10**4, 1024, 4, 2, 4, 64)
    rates = floor.Ceilings(bytes_per_s=1e30, flop_per_s=1e9)
    whole = floor.prefill_s(model, rates, tokens=1000)
    first, rest = (
        floor.prefill_s(model, rates, tokens=600),
        floor.prefill_s(model, rates, tokens=1000, cached=600),
    )
    head_s = 2 * model.head_parameters / rates.flop_per_s
    assert first + rest - head_s == pytest.approx(whole)


def test_the_floor_of_a_closed_loop_grows_with_waves() -> None:
    model = floor.Checkpoint(10**6, 10**4, 1024, 4, 2, 4, 64)
    rates = floor.Ceilings(bytes_per_s=1e9, flop_per_s=1e12)
    jobs = [floor.Job(16, 9)] * 4
    one_wave, two_waves = floor.jobs_s(model, rates, jobs), floor.jobs_s(model, rates, jobs, concurrency=2)
    weights_s = 4 * (model.body_parameters + model.head_parameters) / rates.bytes_per_s
    assert two_waves - one_wave == pytest.approx(8 * weights_s, rel=0.01)
