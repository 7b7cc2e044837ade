"""From records to verdicts: targets, ours over transformers and vLLM, and each over the hardware floor.

python -m benchmarks.gpu.summary REPORT.json ... [--plot PNG]

Several runs are shown as one: of each part the last that has results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import floor
from benchmarks.gpu import targets
from benchmarks.gpu.measures import decode_name
from benchmarks.gpu.models import SHAPES
from benchmarks.gpu.options import workload_of

_TARGETS_OF = "H100"


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report with the parts of all, in the order given. Raises `ValueError` for runs of different devices, or of a
    rehearsal and a measurement."""
    kinds = {bool(report.get("dry_run")) for report in reports}
    devices = {name for report in reports if (name := _machine(report["parts"]).get("device"))}
    if len(kinds) > 1 or len(devices) > 1:
        raise ValueError(f"not one machine: {', '.join(sorted(devices)) or 'a rehearsal among measurements'}")
    parts: dict[str, Any] = {}
    for report in reports:
        for name, part in report["parts"].items():
            if part.get("results") or name not in parts:
                parts[name] = part
    whole = {**reports[-1], "parts": parts, "comparison": compare(parts)}
    whole["commit"] = ", ".join(dict.fromkeys(str(report.get("commit", "")) for report in reports))
    return whole


def compare(parts: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Per model one row per measure: both engines' values, their ratio (above 1: ours is faster), shares of the floor.

    Shares are of the ceilings measured on the same machine, or the published ones of an H100 without a GPU.
    """
    ceilings = ceilings_of(parts)
    shapes = {name.partition(".")[2] for name in parts if name.partition(".")[2] in SHAPES}
    return {shape: _rows(shape, parts, ceilings) for shape in sorted(shapes)}


def ceilings_of(parts: dict[str, Any]) -> floor.Ceilings:
    machine, default = _machine(parts), floor.Ceilings()
    return floor.Ceilings(
        bytes_per_s=machine.get("ceiling.bytes_per_s", default.bytes_per_s),
        flop_per_s=machine.get("ceiling.flop_per_s", default.flop_per_s),
    )


def _machine(parts: dict[str, Any]) -> dict[str, Any]:
    return parts.get("machine", {}).get("results") or {}


def _rows(shape: str, parts: dict[str, Any], ceilings: floor.Ceilings) -> list[dict[str, Any]]:
    ours = {
        **(parts.get(f"saturated.{shape}", {}).get("results") or {}),
        **(parts.get(f"engine.{shape}", {}).get("results") or {}),
    }
    theirs = parts.get(f"transformers.{shape}", {}).get("results") or {}
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
    shape, workload = SHAPES[name], workload_of(name)
    measures: list[tuple[str, float, bool]] = []
    for length in workload.prefill_lengths:
        measures.append(
            (f"prefill.{length}.ms", 1e3 * floor.prefill_s(shape, ceilings, tokens=length), False)
        )
    for prompt in (workload.decode_prompt, workload.long_prompt):
        context = workload.decode_context(prompt)
        for batch in workload.decode_batches:
            step_s = floor.decode_step_s(shape, ceilings, batch=batch, context=context)
            measures.append((decode_name(batch, prompt), 1e3 * step_s, False))
    measures.append(("mix.tokens_per_s", targets.mix_floor(name, ceilings), True))
    for at_once in workload.saturated_rows:
        rate = targets.saturated_floor(name, ceilings, at_once)
        measures.append((f"saturated.{at_once}.tokens_per_s", rate, True))
    return measures


def _ratio(value: float | None, other: float | None, more_is_better: bool) -> float | None:
    if not value or not other:
        return None
    return value / other if more_is_better else other / value


def show(report: dict[str, Any]) -> None:
    parts = report["parts"]
    for name, part in parts.items():
        print(f"{name:32} {part['status']:8} {part.get('seconds', 0.0):6.1f} s")
    for name, part in parts.items():
        if name.startswith("tests"):
            results = part.get("results", {})
            print(f"{name}:", {key: value for key, value in results.items() if key != "names"})
            for test in results.get("names", []):
                print("  not passed:", test)
    print("share: of the hardware floor; ratio: above 1 ours is faster")
    for shape, rows in report["comparison"].items():
        print(f"\n{shape:28}{'ours':>11}{'peer':>11}{'ratio':>8}{'floor':>11}{'ours %':>8}{'peer %':>8}")
        for row in rows:
            values = [_number(row[key]) for key in ("ours", "transformers", "ratio", "floor")]
            shares = [_percent(row[key]) for key in ("ours_share_of_floor", "transformers_share_of_floor")]
            print(
                f"{row['measure']:28}{values[0]:>11}{values[1]:>11}{values[2]:>8}{values[3]:>11}"
                f"{shares[0]:>8}{shares[1]:>8}"
            )
    _show_vllm(parts)
    _show_targets(report)


def _show_vllm(parts: dict[str, Any]) -> None:
    """Tokens per second over HTTP, with each engine's share of the floor."""
    for name, part in parts.items():
        found = part.get("results") or {}
        cases = [
            key.split(".")[1] for key in found if key.startswith("ours.") and key.endswith("tokens_per_s")
        ]
        if not name.startswith("vllm.") or not cases:
            continue
        print(
            f"\n{name + ', over HTTP':28}{'ours':>11}{'vLLM':>11}{'again':>11}{'ratio':>8}{'ours %':>8}{'vLLM %':>8}"
        )
        for case in cases:
            rates = [
                _number(found.get(f"{engine}.{case}.tokens_per_s"))
                for engine in ("ours", "vllm", "ours_again")
            ]
            shares = [_percent(found.get(f"{engine}.{case}.share_of_floor")) for engine in ("ours", "vllm")]
            print(
                f"{case:28}{rates[0]:>11}{rates[1]:>11}{rates[2]:>11}{_number(found.get(f'ratio.{case}')):>8}"
                f"{shares[0]:>8}{shares[1]:>8}"
            )


def _show_targets(report: dict[str, Any]) -> None:
    dry = bool(report.get("dry_run"))
    rows = targets.rows(report["parts"], ceilings_of(report["parts"]), dry=dry)
    device = _machine(report["parts"]).get("device", "no GPU")
    note = "" if _TARGETS_OF in device else f"; these are an {_TARGETS_OF}'s"
    print(f"\ntargets on {device}{note}; commit {report.get('commit', '')}")
    width = max(len(row.what) for row in rows)
    print(f"{'':{width}}{'target':>11}{'measured':>10}{'floor':>9}{'%':>6}  verdict")
    for row in rows:
        floor_text = _number(row.floor) if row.floor else "-"
        print(
            f"{row.what:{width}}{row.target:>11}{_number(row.value):>10}{floor_text:>9}"
            f"{_percent(row.share_of_floor):>6}  {row.verdict(dry=dry)}"
            f"{f' ({row.peers})' if row.peers else ''}"
        )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.2f}" if value >= 0.01 else f"{value:.1e}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "reports", type=Path, nargs="+", help="what benchmarks.gpu.run wrote, the oldest first"
    )
    parser.add_argument("--plot", type=Path, help="PNG with the shares of the hardware floor")
    options = parser.parse_args()
    report = merge([json.loads(path.read_text()) for path in options.reports])
    show(report)
    if options.plot:
        from benchmarks.gpu.plot import draw

        draw(report, options.plot)
        print(f"written: {options.plot}")


if __name__ == "__main__":
    main()
