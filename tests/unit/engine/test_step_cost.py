"""What steps are learned to cost, and what prompts get of a step. All times are made up."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from serving.batch import SampledToken, ScheduledBatch, StepResult
from serving.config import KVGroupConfig
from serving.engine.kv_cache import KVCacheManager
from serving.engine.least_squares import LeastSquares
from serving.engine.request import Request
from serving.engine.scheduler import Scheduler
from serving.engine.step_cost import StepCost, StepLoad
from serving.sampling_params import SamplingParams

MAX_STEP_S = 0.25
TOKEN_S, PAIR_S, KEY_S, MIXED_S = 4e-4, 4e-7, 1e-6, 3e-3


def decode_s(load: StepLoad) -> float:
    return 3e-3 + 2e-4 * load.num_decodes + 5e-7 * load.decode_keys


def step_s(load: StepLoad) -> float:
    if not load.num_prompt_tokens:
        return decode_s(load)
    prompts_s = TOKEN_S * load.num_prompt_tokens + PAIR_S * load.num_prompt_pairs + KEY_S * load.prompt_keys
    return decode_s(load) + MIXED_S + prompts_s


class Engine:
    """A scheduler whose steps take what `seconds` says. Every prompt token is another one."""

    def __init__(self, seconds: Callable[[StepLoad], float], *, max_num_seqs: int = 256) -> None:
        cache = KVCacheManager([KVGroupConfig(name="full")], [20_000], block_size=16, prefix_caching=False)
        self.scheduler = Scheduler(
            cache, max_step_tokens=512, max_num_seqs=max_num_seqs, step_time_budget_s=MAX_STEP_S
        )
        self.seconds = seconds
        self.now_s = 0.0
        self.requests: dict[str, Request] = {}
        self.first_token_s: dict[str, float] = {}
        self.loads: list[StepLoad] = []
        """Of the steps so far."""

    def add(self, name: str, num_prompt_tokens: int, *, max_output: int) -> Request:
        request = self.requests[name] = Request(
            request_id=name,
            index=0,
            params=SamplingParams(),
            seed=0,
            token_ids=list(range(num_prompt_tokens)),
            num_prompt_tokens=num_prompt_tokens,
            max_output_tokens=max_output,
            eos_token_ids=frozenset(),
            cache_root=b"",
            arrival_s=self.now_s,
        )
        self.scheduler.add(request)
        return request

    def step(self) -> StepLoad:
        batch = self.scheduler.schedule(self.now_s)
        assert batch is not None, "nothing could run"
        load = self._load(batch)
        self.loads.append(load)
        seconds = self.seconds(load)
        self.now_s += seconds
        sampled = [SampledToken(row=row.row, token_id=1, logprob=-1.0) for row in batch.rows if row.samples]
        result = StepResult(step=batch.step, sampled=sampled, forward_s=seconds)
        for output in self.scheduler.update(batch, result, self.now_s):
            self.first_token_s.setdefault(output.request_id, self.now_s)
        return load

    def run(self, limit: int = 5000) -> None:
        for _ in range(limit):
            if not self.scheduler.num_running and not self.scheduler.num_waiting:
                return
            self.step()
        raise AssertionError("the scheduler did not come to an end")

    def _load(self, batch: ScheduledBatch) -> StepLoad:
        load = StepLoad()
        rows = {request.row: request for request in self.requests.values() if request.row >= 0}
        for row in batch.rows:
            context = rows[row.row].num_computed_tokens - row.num_tokens
            if row.num_tokens == 1:
                load.num_decodes += 1
                load.decode_keys += context
            else:
                load.add_chunk(context, row.num_tokens)
        return load


def _noisy(seed: int) -> Callable[[StepLoad], float]:
    """A tenth up or down, and one step in twenty takes up to eight times as long."""
    rng = random.Random(seed)

    def seconds(load: StepLoad) -> float:
        slow = rng.uniform(2.0, 8.0) if rng.random() < 0.05 else 1.0
        return step_s(load) * rng.uniform(0.9, 1.1) * slow

    return seconds


# ------------------------------------------------------------ least squares


def test_coefficients_are_found_among_outliers() -> None:
    rng = random.Random(1)
    fit = LeastSquares((1e-6, 1e-6, 1e-6), memory=0.99)
    for index in range(400):
        inputs = (1.0, rng.uniform(1, 50), rng.uniform(1e3, 1e6))
        value = 2.0 + 0.3 * inputs[1] + 1e-5 * inputs[2]
        value *= 10.0 if index % 20 == 0 else 1.0
        fit.observe(inputs, value, scale=value)
    assert fit.coefficients == pytest.approx([2.0, 0.3, 1e-5], rel=0.1)


def test_no_coefficient_is_negative_and_an_input_that_never_came_costs_nothing() -> None:
    fit = LeastSquares((1e-3, 1e-3, 1e-3), memory=0.9)
    for x in (1.0, 2.0, 3.0, 4.0):
        fit.observe((1.0, x, 0.0), 10.0 - x, scale=1.0)
    constant, falling, never = fit.coefficients
    assert falling == never == 0.0 and constant == pytest.approx(7.5, abs=1.0)


def test_what_samples_leave_open_goes_to_the_input_with_less_caution() -> None:
    fit = LeastSquares((0.1, 1e-3), memory=0.9)
    fit.observe((1.0, 512.0), 0.2, scale=0.2)
    fixed, per_token = fit.coefficients
    assert per_token * 512 > 0.95 * 0.2 and fixed < 0.01


def test_old_samples_are_forgotten() -> None:
    fit = LeastSquares((1e-3,), memory=0.9)
    for value in [1.0] * 200 + [2.0] * 60:
        fit.observe((1.0,), value, scale=value)
    assert fit.predict((1.0,)) == pytest.approx(2.0, rel=0.05)


def test_a_chunk_as_long_as_it_fits_takes_the_time_it_was_given() -> None:
    cost = StepCost()
    rng = random.Random(2)
    for _ in range(100):
        load = StepLoad(num_decodes=rng.randrange(1, 60))
        load.decode_keys = rng.randrange(100, 500) * load.num_decodes
        cost.observe(load, step_s(load))
        load.add_chunk(rng.randrange(0, 8000), rng.randrange(4, 200))
        cost.observe(load, step_s(load))
    for context in (0, 500, 4000, 8000):
        decodes = StepLoad(20, 4000)
        num_tokens = cost.tokens_within(0.05, decodes, context)
        decodes.add_chunk(context, num_tokens)
        assert step_s(decodes) - decode_s(decodes) == pytest.approx(0.05, rel=0.15)


# ------------------------------------------------------------ the share of prompts


@pytest.mark.parametrize("seconds", [step_s, _noisy(3)], ids=["steady", "noisy"])
def test_a_long_prompt_slows_fifty_streams_by_less_than_twice(seconds: Callable[[StepLoad], float]) -> None:
    engine = Engine(seconds)
    for index in range(50):
        engine.add(f"short {index}", 32, max_output=5000)
    for _ in range(100):
        engine.step()
    long = engine.add("long", 5000, max_output=1)
    slower = []
    while not long.status.finished:
        load = engine.step()
        assert load.num_decodes == 50, "nobody is left out"
        slower.append(step_s(load) / decode_s(load))
    slower.sort()
    assert slower[len(slower) // 2] == pytest.approx(1.8, abs=0.15), "and the prompt gets what there is"
    assert slower[int(0.98 * len(slower))] < 2.0


def test_a_prompt_advances_however_dear_it_is() -> None:
    """At 30,000 keys one token costs more than the whole step of the only other stream."""
    engine = Engine(lambda load: decode_s(load) + 1e-6 * load.prompt_keys + 1e-5 * load.num_prompt_pairs)
    engine.add("short", 8, max_output=10_000)
    for _ in range(10):
        engine.step()
    long = engine.add("long", 30_000, max_output=1)
    for _ in range(200):
        before = long.num_computed_tokens
        engine.step()
        engine.step()
        assert long.num_computed_tokens > before


def test_steps_of_prompts_alone_stay_within_the_longest_step() -> None:
    engine = Engine(lambda load: 1e-3 * load.num_prompt_tokens + 1e-6 * load.num_prompt_pairs)
    engine.add("long", 6000, max_output=1)
    engine.run()
    assert max(map(engine.seconds, engine.loads[4:])) < 1.1 * MAX_STEP_S
    assert len(engine.loads) < 1.3 * sum(map(engine.seconds, engine.loads)) / MAX_STEP_S


def test_a_burst_is_let_in_before_its_first_are_done() -> None:
    engine = Engine(step_s)
    for index in range(16):
        engine.add(str(index), 128, max_output=128)
    while len(engine.first_token_s) < 16:
        engine.step()
    alone_s = 16 * 128 * TOKEN_S
    assert engine.now_s < 2.0 * alone_s
    engine.run()
    assert engine.now_s < alone_s + 1.35 * 128 * decode_s(StepLoad(16, 16 * 192))


@pytest.mark.parametrize(("num_prompts", "budgets"), [(1, 1), (2, 2), (4, 4), (12, 4)])
def test_prompts_that_wait_together_may_make_a_step_longer(num_prompts: int, budgets: int) -> None:
    engine = Engine(lambda load: 10 * step_s(load))
    engine.add("running", 64, max_output=1000)
    engine.add("teaches what prompts cost", 300, max_output=1)
    for _ in range(40):
        engine.step()
    for number in range(num_prompts):
        engine.add(f"prompt {number}", 400, max_output=1)
    times = [engine.seconds(engine.step()) for _ in range(3)]
    assert max(times) == pytest.approx(budgets * MAX_STEP_S, rel=0.2)


# ------------------------------------------------------------ order


def test_equal_prompts_are_finished_one_after_the_other() -> None:
    engine = Engine(step_s)
    for index in range(16):
        engine.add(f"{index:02}", 2048, max_output=1)
    engine.run()
    assert list(engine.first_token_s) == sorted(engine.first_token_s)
    times = sorted(engine.first_token_s.values())
    assert times[8] < 0.6 * times[-1], "half of them in half of the time"
    assert all(load.prompt_keys < 3 * 2048 for load in engine.loads), "few contexts are read in one step"


def test_a_long_prompt_neither_holds_up_short_ones_nor_starves_among_them() -> None:
    engine = Engine(step_s)
    long = engine.add("long", 8000, max_output=1)
    engine.step()
    for number in range(400):
        engine.add(f"short {number}", 256, max_output=1)
        engine.step()
        if long.status.finished:
            break
    assert long.status.finished, "short ones came all the time"
    waits = [
        engine.first_token_s[name] - request.arrival_s
        for name, request in engine.requests.items()
        if name in engine.first_token_s and name != "long"
    ]
    assert len(waits) > 0.9 * number and sorted(waits)[len(waits) // 2] < 3 * MAX_STEP_S
