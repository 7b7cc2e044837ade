"""From records to ratios: ours over transformers, and each over the hardware floor."""

from __future__ import annotations

from typing import Any

from benchmarks import floor
from benchmarks.gpu.models import SHAPES
from benchmarks.gpu.workloads import FULL, TINY, mix


def compare(parts: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Per model one row per measure: both engines' values, their ratio (above 1: ours is faster), shares of the floor.

    Shares are of the ceilings measured on the same machine, or the published ones of an H100 without a GPU.
    """
    ceilings = _ceilings(parts.get("machine", {}).get("results", {}))
    shapes = {name.partition(".")[2] for name in parts if name.partition(".")[2] in SHAPES}
    return {shape: _rows(shape, parts, ceilings) for shape in sorted(shapes)}


def _ceilings(machine: dict[str, Any]) -> floor.Ceilings:
    default = floor.Ceilings()
    return floor.Ceilings(
        bytes_per_s=machine.get("ceiling.bytes_per_s", default.bytes_per_s),
        flop_per_s=machine.get("ceiling.flop_per_s", default.flop_per_s),
    )


def _rows(shape: str, parts: dict[str, Any], ceilings: floor.Ceilings) -> list[dict[str, Any]]:
    ours = parts.get(f"engine.{shape}", {}).get("results", {})
    theirs = parts.get(f"transformers.{shape}", {}).get("results", {})
    rows = []
    for name, floor_value, more_is_better in _measures(shape, ceilings):
        mine, other = ours.get(name), theirs.get(name)
        rows.append(
            {
                "measure": name,
                "ours": mine,
                "transformers": other,
                "floor": floor_value,
                "ratio": _ratio(mine, other, more_is_better),
                "ours_share_of_floor": _ratio(mine, floor_value, more_is_better),
                "transformers_share_of_floor": _ratio(other, floor_value, more_is_better),
            }
        )
    return rows


def _measures(name: str, ceilings: floor.Ceilings) -> list[tuple[str, float, bool]]:
    """(record name, value at the floor, more is better)."""
    shape = SHAPES[name]
    workload = TINY if name.startswith("tiny") else FULL
    context = workload.decode_prompt + workload.decode_skip + workload.decode_steps / 2
    measures: list[tuple[str, float, bool]] = []
    for length in workload.prefill_lengths:
        measures.append(
            (f"prefill.{length}.ms", 1e3 * floor.prefill_s(shape, ceilings, tokens=length), False)
        )
    for batch in workload.decode_batches:
        step_s = floor.decode_step_s(shape, ceilings, batch=batch, context=context)
        measures.append((f"decode.{batch}.step_ms", 1e3 * step_s, False))
    prompts, outputs = mix(workload)
    jobs = [floor.Job(len(prompt), output) for prompt, output in zip(prompts, outputs, strict=True)]
    measures.append(("mix.tokens_per_s", sum(outputs) / floor.jobs_s(shape, ceilings, jobs), True))
    return measures


def _ratio(value: float | None, other: float | None, more_is_better: bool) -> float | None:
    if not value or not other:
        return None
    return value / other if more_is_better else other / value


def show(report: dict[str, Any]) -> None:
    for name, part in report["parts"].items():
        print(f"{name:32} {part['status']:8} {part.get('seconds', 0.0):6.1f} s")
    for name, part in report["parts"].items():
        if name.startswith("tests"):
            results = part.get("results", {})
            print(f"{name}:", {key: value for key, value in results.items() if key != "names"})
            for test in results.get("names", []):
                print("  not passed:", test)
    print("share: of the hardware floor; ratio: above 1 ours is faster")
    for shape, rows in report["comparison"].items():
        print(f"\n{shape:24}{'ours':>11}{'peer':>11}{'ratio':>8}{'floor':>11}{'ours %':>8}{'peer %':>8}")
        for row in rows:
            values = [_number(row[key]) for key in ("ours", "transformers", "ratio", "floor")]
            shares = [_percent(row[key]) for key in ("ours_share_of_floor", "transformers_share_of_floor")]
            print(
                f"{row['measure']:24}{values[0]:>11}{values[1]:>11}{values[2]:>8}{values[3]:>11}"
                f"{shares[0]:>8}{shares[1]:>8}"
            )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.2f}" if value >= 0.01 else f"{value:.1e}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
