"""What engines are asked in a comparison: families of cases, each case a workload for every round.

The prompts of a round are the same for all engines and differ from those of every other round, so no prefix cache knows
them, except where sharing is what is measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.floor import Job
from benchmarks.gpu.workloads import FULL, mix
from benchmarks.metrics import Limits, Measure, beside_a_long_prompt, open_loop, steady
from benchmarks.peers.contracts import Request, Workload

Ids = Callable[[int, str], tuple[int, ...]]
"""So many token ids from a seed: equal seeds, equal ids."""


@dataclass(slots=True, frozen=True)
class Case:
    """One point of a comparison. `offered` is its place on an axis: streams at once, or requests per second."""

    name: str
    offered: float
    make: Callable[[int], Workload]
    """From the round's number."""
    measure: Measure
    shared_prefix: int = 0

    def jobs(self) -> list[Job]:
        """For the hardware floor: what all prompts begin with is computed once."""
        return [
            Job(len(one.prompt_ids), one.num_output_tokens, cached=self.shared_prefix if index else 0)
            for index, one in enumerate(self.make(0).requests)
        ]


@dataclass(slots=True, frozen=True)
class Family:
    """Cases that belong to one comparison, and the numbers that say how it went."""

    name: str
    title: str
    cases: tuple[Case, ...]
    metrics: tuple[str, ...]
    """The first is what ratios are taken of."""
    has_floor: bool = True
    closed_loop: bool = True
    """Every request must end as asked; in an open loop some are refused."""
    baseline: str = ""
    """Name of the case that the other cases are compared with, within one engine."""
    num_running: int | None = None
    """Sequences that may run at once; None: as many as there ever are."""

    @property
    def max_concurrency(self) -> int:
        if self.num_running is not None:
            return self.num_running
        found = [case.make(0) for case in self.cases]
        return max(one.concurrency or len(one.requests) for one in found)

    @property
    def max_context(self) -> int:
        requests = (one for case in self.cases for one in case.make(0).requests)
        return max(len(one.prompt_ids) + one.num_output_tokens for one in requests)


@dataclass(slots=True, frozen=True)
class Sizes:
    """Where prompts come from, and the lengths that a command line may change."""

    ids: Ids
    prompt_tokens: int = 128
    new_tokens: int = 128
    min_requests: int = 4
    scale: float = 1.0


def batch(sizes: Sizes, concurrency: Sequence[int]) -> Family:
    """Equal requests, so many at once; as many requests as streams, and at least `min_requests`."""

    def case(streams: int) -> Case:
        def make(number: int) -> Workload:
            count = max(streams, sizes.min_requests)
            seeds = (f"batch {streams} {number} {index}" for index in range(count))
            prompts = (sizes.ids(sizes.prompt_tokens, seed) for seed in seeds)
            return Workload(tuple(Request(ids, sizes.new_tokens) for ids in prompts), concurrency=streams)

        return Case(f"{streams} at once", streams, make, steady)

    return Family(
        name="batch",
        title=f"{sizes.prompt_tokens} prompt and {sizes.new_tokens} output tokens, closed loop",
        cases=tuple(case(streams) for streams in concurrency),
        metrics=("tokens_per_s", "first_token_p50_s", "per_token_p50_s", "between_p50_s", "between_p99_s"),
    )


def nano_mix(sizes: Sizes) -> Family:
    """The requests of nano-vllm's bench.py: 256, prompt and output uniform in 100..1,024, all at once.

    `scale` shortens every length; 1 gives 142,827 prompt and 133,966 output tokens.
    """
    prompts, outputs = mix(FULL)
    lengths = [
        (max(1, round(len(ids) * sizes.scale)), max(1, round(output * sizes.scale)))
        for ids, output in zip(prompts, outputs, strict=True)
    ]

    def make(number: int) -> Workload:
        return Workload(
            tuple(
                Request(sizes.ids(length, f"mix {number} {index}"), output)
                for index, (length, output) in enumerate(lengths)
            )
        )

    num_prompt, num_output = (sum(column) for column in zip(*lengths, strict=True))
    scaled = "" if sizes.scale == 1 else f", every length times {sizes.scale:g}"
    return Family(
        name="mix",
        title=f"256 requests at once, {num_prompt:,} prompt and {num_output:,} output tokens{scaled}",
        cases=(Case("mix", len(prompts), make, steady),),
        metrics=("tokens_per_s", "first_token_p50_s", "per_token_p50_s", "between_p50_s", "between_p99_s"),
    )


def shared_prefix(sizes: Sizes, *, num_requests: int = 64, prefix_tokens: int = 2048) -> Family:
    """Requests that begin alike; `scale` changes how many there are."""
    count = max(2, round(num_requests * sizes.scale))

    def make(number: int) -> Workload:
        prefix = sizes.ids(prefix_tokens, f"prefix {number}")
        ends = (sizes.ids(32, f"end {number} {index}") for index in range(count))
        return Workload(tuple(Request(prefix + end, 32) for end in ends))

    return Family(
        name="prefix",
        title=f"{count} requests at once that share {prefix_tokens:,} tokens; 32 more and 32 output tokens each",
        cases=(Case("shared prefix", count, make, steady, shared_prefix=prefix_tokens),),
        metrics=("tokens_per_s", "first_token_p50_s", "first_token_p99_s", "between_p99_s"),
    )


def long_prompt(sizes: Sizes, *, num_streams: int = 50, long_tokens: int = 30_000) -> Family:
    """Short streams with and without one long prompt that comes when they run; `scale` shortens that prompt."""
    length = max(1001, round(long_tokens * sizes.scale))

    def make(number: int, with_long: bool) -> Workload:
        requests = [
            Request(sizes.ids(32, f"short {number} {with_long} {index}"), sizes.new_tokens)
            for index in range(num_streams)
        ]
        if with_long:
            requests.append(Request(sizes.ids(length, f"long {number}"), 1, arrival_s=2.0))
        return Workload(tuple(requests))

    def case(name: str, with_long: bool) -> Case:
        return Case(name, float(with_long), lambda number: make(number, with_long), beside_a_long_prompt)

    return Family(
        name="long",
        title=f"{num_streams} streams, and a prompt of {length:,} tokens that comes after 2 s",
        cases=(case("streams alone", False), case("beside the prompt", True)),
        metrics=("between_p99_s", "between_p50_s", "between_max_s", "tokens_per_s", "long_first_token_s"),
        has_floor=False,
        baseline="streams alone",
    )


def arrivals(
    sizes: Sizes,
    *,
    capacity_per_s: float,
    loads: Sequence[float],
    duration_s: float,
    limits: Limits,
    num_running: int,
) -> Family:
    """Poisson arrivals at shares of a capacity, whether or not earlier requests have ended."""

    def case(load: float) -> Case:
        rate = load * capacity_per_s
        count = max(2, round(rate * duration_s))

        def make(number: int) -> Workload:
            rng = random.Random(f"arrivals {load} {number}")
            due_s, requests = 0.0, []
            for index in range(count):
                ids = sizes.ids(sizes.prompt_tokens, f"arrivals {load} {number} {index}")
                requests.append(Request(ids, sizes.new_tokens, arrival_s=due_s))
                due_s += rng.expovariate(rate)
            return Workload(tuple(requests))

        return Case(f"{load:g} x capacity", rate, make, open_loop(limits))

    return Family(
        name="arrivals",
        title=f"Poisson arrivals for {duration_s:g} s, capacity {capacity_per_s:.2f} requests/s; within the limits: "
        f"first token {limits.first_token_s:g} s, {1e3 * limits.between_s:g} ms per token",
        cases=tuple(case(load) for load in loads),
        metrics=(
            "goodput_per_s",
            "tokens_per_s",
            "first_token_p50_s",
            "first_token_p99_s",
            "between_p50_s",
            "between_p99_s",
            "refused",
        ),
        has_floor=False,
        closed_loop=False,
        num_running=num_running,
    )


def start(sizes: Sizes) -> Family:
    """Process start to the first token of a one-token request; the engine is started anew in every round."""
    one = Workload((Request(sizes.ids(sizes.prompt_tokens, "start"), 1),), concurrency=1)
    return Family(
        name="start",
        title="process start to first token, files in the page cache",
        cases=(Case("start", 1, lambda _: one, steady),),
        metrics=("start_s", "ready_s"),
        has_floor=False,
    )
