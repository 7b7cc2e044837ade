"""The targets on one H100, and whether a report meets them.

Targets are fixed numbers; floors follow the ceilings of the machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from benchmarks import floor
from benchmarks.gpu.measures import decode_name
from benchmarks.gpu.models import SHAPES
from benchmarks.gpu.options import workload_of
from benchmarks.gpu.workloads import mix, saturated

Verdict = Literal["met", "missed", "not measured", "rehearsed"]
_BLOCK_TOKENS = 16  # a prefix is kept in whole blocks


@dataclass(slots=True, frozen=True)
class Shapes:
    """The large model and the small one."""

    large: str
    small: str


REAL = Shapes("llama-3.1-8b", "qwen3-0.6b")
TINY = Shapes("tiny-llama", "tiny-qwen3")


@dataclass(slots=True, frozen=True)
class Row:
    """One target. `limit` is the least value where `more_is_better`, else the most; `floor` is the hardware's value."""

    what: str
    value: float | None
    limit: float
    more_is_better: bool
    floor: float | None = None
    peers: str = ""

    @property
    def share_of_floor(self) -> float | None:
        if not self.value or not self.floor:
            return None
        return self.value / self.floor if self.more_is_better else self.floor / self.value

    @property
    def target(self) -> str:
        return f"{'>=' if self.more_is_better else '<='} {self.limit:,g}"

    def verdict(self, *, dry: bool) -> Verdict:
        """A rehearsal with tiny models on a CPU says nothing of a target."""
        if self.value is None:
            return "not measured"
        if dry:
            return "rehearsed"
        met = self.value >= self.limit if self.more_is_better else self.value <= self.limit
        return "met" if met else "missed"


def rows(parts: dict[str, Any], ceilings: floor.Ceilings, *, dry: bool) -> list[Row]:
    """Of the parts of a report, by their names; a part that is not there leaves its rows without a value."""
    shapes = TINY if dry else REAL
    found = {name: part.get("results") or {} for name, part in parts.items()}
    return [
        *_steps(found, ceilings, shapes),
        *_throughput(found, ceilings, shapes),
        *_over_http(found, ceilings, shapes),
        *_beside_peers(found, shapes),
    ]


def _steps(found: dict[str, Any], ceilings: floor.Ceilings, shapes: Shapes) -> Iterable[Row]:
    for shape, limit, peers in (
        (shapes.large, 5.5, "vLLM 6.44, SGLang 6.3"),
        (shapes.small, 0.75, ""),
    ):
        workload = workload_of(shape)
        prompt = workload.decode_prompt
        yield Row(
            f"{shape}, 1 sequence: ms a step",
            _of(found, f"engine.{shape}", decode_name(1, prompt)),
            limit,
            more_is_better=False,
            floor=1e3 * _step_floor_s(shape, ceilings, 1, prompt),
            peers=peers,
        )
    shape, workload = shapes.large, workload_of(shapes.large)
    batch, prompt = workload.decode_batches[-1], workload.long_prompt
    floor_ms = 1e3 * _step_floor_s(shape, ceilings, batch, prompt)
    measured_ms = _of(found, f"engine.{shape}", decode_name(batch, prompt))
    yield Row(
        f"{shape}, {batch} sequences of {prompt} tokens: share of the floor ({floor_ms:.3g} ms)",
        floor_ms / measured_ms if measured_ms else None,
        0.75,
        more_is_better=True,
        floor=1.0,
    )
    for shape in (shapes.large, shapes.small):
        shares = [
            _of(found, f"engine.{shape}", f"idle.{batch}.host_share")
            for batch in workload_of(shape).decode_batches
        ]
        seen = [share for share in shares if share is not None]
        yield Row(
            f"{shape}: share of a decode step that the device waits for the host (worst batch size)",
            max(seen) if seen else None,
            0.03,
            more_is_better=False,
        )


def _throughput(found: dict[str, Any], ceilings: floor.Ceilings, shapes: Shapes) -> Iterable[Row]:
    large = workload_of(shapes.large)
    yield Row(
        f"{shapes.small}, nano-vllm's mix: output tokens/s",
        _of(found, f"engine.{shapes.small}", "mix.tokens_per_s"),
        19_000,
        more_is_better=True,
        floor=mix_floor(shapes.small, ceilings),
    )
    rates = {
        rows: rate
        for rows in large.saturated_rows
        if (rate := _of(found, f"saturated.{shapes.large}", f"saturated.{rows}.tokens_per_s"))
    }
    best = max(rates, key=lambda rows: rates[rows]) if rates else large.saturated_rows[0]
    yield Row(
        f"{shapes.large}, saturated with 128/128 ({best} at once): output tokens/s",
        rates.get(best),
        16_200,
        more_is_better=True,
        floor=saturated_floor(shapes.large, ceilings, best),
        peers="SGLang 16.2k, vLLM 12.6k",
    )


def _over_http(found: dict[str, Any], ceilings: floor.Ceilings, shapes: Shapes) -> Iterable[Row]:
    shape, part = shapes.large, f"server.{shapes.large}"
    length = workload_of(shape).first_token_prompt
    yield Row(
        f"{shape}, prompt of {length} tokens to first token over HTTP: ms",
        _of(found, part, f"http.{length}.cold_ms"),
        25.0,
        more_is_better=False,
        floor=1e3 * floor.prefill_s(SHAPES[shape], ceilings, tokens=length),
    )
    cold, warm = (_of(found, part, f"http.long.{kind}_ms") for kind in ("cold", "warm"))
    shortest, longest = workload_of(shape).prefix_lengths
    typical = (shortest + longest) // 2
    kept = (typical - 1) // _BLOCK_TOKENS * _BLOCK_TOKENS
    yield Row(
        f"{shape}, prompts of {shortest} to {longest} tokens: first token, times faster when seen before",
        cold / warm if cold and warm else None,
        20.0,
        more_is_better=True,
        floor=floor.prefill_s(SHAPES[shape], ceilings, tokens=typical)
        / floor.prefill_s(SHAPES[shape], ceilings, tokens=typical, cached=kept),
    )
    for shape, limit, peers in ((shapes.large, 10.0, "vLLM 62, SGLang 58 in all"), (shapes.small, 3.0, "")):
        yield Row(
            f"{shape}, container start to first token: s beyond import and allocation",
            _of(found, f"server.{shape}", "start.beyond_s"),
            limit,
            more_is_better=False,
            peers=peers,
        )


def _beside_peers(found: dict[str, Any], shapes: Shapes) -> Iterable[Row]:
    shape = shapes.small
    ours, theirs = (_of(found, f"{part}.{shape}", "mix.tokens_per_s") for part in ("engine", "transformers"))
    yield Row(
        f"{shape}, nano-vllm's mix: ours over transformers' continuous batching",
        ours / theirs if ours and theirs else None,
        2.0,
        more_is_better=True,
    )
    yield Row(
        f"{shape}, nano-vllm's mix over HTTP: ours over vLLM 0.26",
        _of(found, f"vllm.{shape}", "ratio.mix"),
        1.3,
        more_is_better=True,
    )


def _of(found: dict[str, Any], part: str, name: str) -> float | None:
    value = found.get(part, {}).get(name)
    return None if value is None else float(value)


def _step_floor_s(shape: str, ceilings: floor.Ceilings, batch: int, prompt: int) -> float:
    context = workload_of(shape).decode_context(prompt)
    return floor.decode_step_s(SHAPES[shape], ceilings, batch=batch, context=context)


@cache
def mix_floor(shape: str, ceilings: floor.Ceilings) -> float:
    """Output tokens per second."""
    return _jobs_floor(shape, ceilings, mix(workload_of(shape)), None)


@cache
def saturated_floor(shape: str, ceilings: floor.Ceilings, at_once: int) -> float:
    """Output tokens per second, with at most so many sequences at once."""
    return _jobs_floor(shape, ceilings, saturated(workload_of(shape), seed=1), at_once)


def _jobs_floor(
    shape: str, ceilings: floor.Ceilings, asked: tuple[list[list[int]], list[int]], at_once: int | None
) -> float:
    prompts, outputs = asked
    jobs = [floor.Job(len(prompt), output) for prompt, output in zip(prompts, outputs, strict=True)]
    return sum(outputs) / floor.jobs_s(SHAPES[shape], ceilings, jobs, concurrency=at_once)
