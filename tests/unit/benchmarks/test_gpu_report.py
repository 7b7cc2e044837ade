"""What the GPU benchmark makes of traces and records, without a GPU."""

from __future__ import annotations

import json
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.floor import Ceilings
from benchmarks.gpu import plot, run, targets
from benchmarks.gpu.idle import Activity, activities, idle_of
from benchmarks.gpu.measures import Engine, Record, measure_steady
from benchmarks.gpu.summary import compare, merge, show
from benchmarks.gpu.workloads import FULL, TINY, long_prompts, saturated


def _steps(count: int, *, kernels: int = 10) -> Iterator[Activity]:
    """Captured steps of kernels of 9 us, 1 us apart; 20 us later the sampler's kernel of 10 us, then nothing for 10 us."""
    now_us = 1000.0
    for step in range(count):
        for _ in range(kernels):
            yield Activity(now_us, now_us + 9.0, launch=step)
            now_us += 10.0
        now_us += 19.0
        yield Activity(now_us, now_us + 10.0, launch=1000 + step)
        now_us += 20.0


def test_the_host_is_blamed_for_gaps_between_launches_only() -> None:
    found = idle_of(list(_steps(6)), skip=2)
    assert found is not None
    assert found.num_steps == 3
    assert found.step_us == pytest.approx(139.0)
    assert found.between_launches == pytest.approx(30.0 / 139.0)
    assert found.at_all == pytest.approx(39.0 / 139.0)


def test_activities_that_overlap_leave_no_gap() -> None:
    copies = [
        Activity(one.end_us - 5.0, one.end_us + 40.0, launch=5000) for one in _steps(6) if one.launch >= 1000
    ]
    ran = sorted([*_steps(6), *copies], key=lambda activity: activity.start_us)
    found = idle_of(ran, skip=0)
    assert found is not None
    assert found.between_launches == pytest.approx(20.0 / 139.0)


def test_steps_that_were_not_captured_say_nothing() -> None:
    assert idle_of(list(_steps(6, kernels=3)), skip=0) is None
    assert idle_of(list(_steps(3)), skip=2) is None
    assert idle_of([], skip=0) is None


def test_a_trace_is_read_for_what_ran_on_the_device() -> None:
    events: list[dict[str, Any]] = [
        {"ph": "X", "cat": "gpu_memcpy", "ts": 30.5, "dur": 2.0, "args": {"correlation": 8}},
        {"ph": "X", "cat": "kernel", "ts": 10.0, "dur": 5.5, "args": {"correlation": 7}},
        {"ph": "X", "cat": "cuda_runtime", "ts": 1.0, "dur": 90.0, "args": {"correlation": 7}},
        {"ph": "f", "cat": "ac2g", "ts": 10.0, "id": 7},
        {"ph": "M", "name": "process_name"},
    ]
    assert activities(events) == [Activity(10.0, 15.5, 7), Activity(30.5, 32.5, 8)]


class _Clockwork:
    """Prompts take 10 ms each at first, nothing later; a step takes a millisecond per sequence."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now_s = 0.0
        self._seen: set[tuple[int, ...]] = set()
        monkeypatch.setattr(time, "perf_counter", lambda: self._now_s)

    def run(self, prompts: list[list[int]], num_tokens: int) -> None:
        new = {tuple(prompt) for prompt in prompts} - self._seen
        self._seen |= new
        self._now_s += 0.01 * len(new) + 0.001 * len(prompts) * (num_tokens - 1)


def test_steps_are_told_apart_from_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Engine = _Clockwork(monkeypatch)
    measure_steady(engine, TINY, Record(tmp_path / "record.json"), long=True)
    found = json.loads((tmp_path / "record.json").read_text())
    assert found["prefill.64.ms"] == pytest.approx(10.0)
    assert len(found["prefill.64.ms.all"]) == TINY.repeats
    assert found["decode.1@16.step_ms"] == pytest.approx(1.0)
    assert found["decode.4@48.step_ms"] == pytest.approx(4.0)


def test_a_crowd_has_new_prompts_and_the_same_lengths_each_time() -> None:
    (first, outputs), (second, again) = saturated(FULL, seed=1), saturated(FULL, seed=2)
    assert list(map(len, first)) == list(map(len, second))
    assert outputs == again
    assert not {tuple(prompt) for prompt in first} & {tuple(prompt) for prompt in second}
    assert len(first) == 1024
    assert sum(map(len, first)) / 1024 == pytest.approx(128, rel=0.03)
    assert sum(outputs) / 1024 == pytest.approx(128, rel=0.03)


def test_long_prompts_are_as_many_as_the_published_test_has() -> None:
    asked = long_prompts(FULL)
    assert len(asked) == 20
    assert 160_000 < sum(map(len, asked)) < 205_000


def _report(**results: dict[str, float]) -> dict[str, Any]:
    parts = {name.replace("__", "."): {"status": "ok", "results": found} for name, found in results.items()}
    return {"date": "2026-01-02T03:04:05+00:00", "commit": "abc", "dry_run": False, "parts": parts}


def _verdicts(report: dict[str, Any]) -> dict[str, str]:
    rows = targets.rows(report["parts"], Ceilings(), dry=report["dry_run"])
    return {row.what: row.verdict(dry=report["dry_run"]) for row in rows}


def test_nothing_measured_is_nothing_met() -> None:
    verdicts = _verdicts(_report())
    assert len(verdicts) == 13
    assert set(verdicts.values()) == {"not measured"}


@pytest.mark.parametrize(
    ("part", "values", "of", "verdict"),
    [
        ("engine.llama-3.1-8b", {"decode.1@128.step_ms": 5.5}, "llama-3.1-8b, 1 sequence", "met"),
        ("engine.llama-3.1-8b", {"decode.1@128.step_ms": 5.6}, "llama-3.1-8b, 1 sequence", "missed"),
        ("engine.llama-3.1-8b", {"decode.256@1024.step_ms": 22.0}, "llama-3.1-8b, 256 sequences", "met"),
        ("engine.llama-3.1-8b", {"decode.256@1024.step_ms": 25.0}, "llama-3.1-8b, 256 sequences", "missed"),
        (
            "engine.qwen3-0.6b",
            {"idle.1.host_share": 0.01, "idle.256.host_share": 0.2},
            "qwen3-0.6b: share of a decode step",
            "missed",
        ),
        ("engine.qwen3-0.6b", {"idle.1.num_steps": 0}, "qwen3-0.6b: share of a decode step", "not measured"),
        (
            "saturated.llama-3.1-8b",
            {"saturated.256.tokens_per_s": 15e3, "saturated.512.tokens_per_s": 17e3},
            "llama-3.1-8b, saturated with 128/128 (512 at once)",
            "met",
        ),
        (
            "server.llama-3.1-8b",
            {"http.long.cold_ms": 210.0, "http.long.warm_ms": 11.0},
            "llama-3.1-8b, prompts of 8192",
            "missed",
        ),
        ("server.qwen3-0.6b", {"start.beyond_s": 2.9}, "qwen3-0.6b, container start", "met"),
        ("vllm.qwen3-0.6b", {"ratio.mix": 1.29}, "qwen3-0.6b, nano-vllm's mix over HTTP", "missed"),
    ],
)
def test_a_target_is_met_or_missed(part: str, values: dict[str, float], of: str, verdict: str) -> None:
    found = _verdicts(_report(**{part: values}))
    [got] = [verdict for what, verdict in found.items() if what.startswith(of)]
    assert got == verdict
    assert sum(verdict != "not measured" for verdict in found.values()) == (verdict != "not measured")


def test_a_rehearsal_meets_no_target() -> None:
    report = _report(**{"engine.tiny-llama": {"decode.1@16.step_ms": 0.1}})
    report["dry_run"] = True
    assert sorted(set(_verdicts(report).values())) == ["not measured", "rehearsed"]


def test_several_runs_are_one_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    device = {"device": "NVIDIA H100 80GB HBM3", "ceiling.bytes_per_s": 3.1e12, "ceiling.flop_per_s": 7.9e14}
    first = _report(machine=device, **{"engine.qwen3-0.6b": {"decode.1@128.step_ms": 0.7}})
    second = _report(machine=device, **{"server.qwen3-0.6b": {"start.beyond_s": 2.0}})
    second["parts"]["engine.qwen3-0.6b"] = {"status": "skipped"}
    whole = merge([first, second])
    show(whole)
    shown = capsys.readouterr().out
    assert shown.count(" met") == 2
    assert "targets on NVIDIA H100 80GB HBM3; commit abc" in shown
    plot.draw(whole, tmp_path / "shares.png")
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_two_devices_are_no_table() -> None:
    reports = [_report(machine={"device": name}) for name in ("NVIDIA H100", "NVIDIA H200")]  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="not one machine: NVIDIA H100, NVIDIA H200"):
        merge(reports)


def test_a_plot_of_nothing_is_refused(tmp_path: Path) -> None:
    report = _report(machine={})
    with pytest.raises(ValueError, match="nothing was measured"):
        plot.draw({**report, "comparison": compare(report["parts"])}, tmp_path / "shares.png")


_SLOW_PART = """
import pathlib, sys, time
from benchmarks.gpu.measures import Record
Record(pathlib.Path(sys.argv[1])).add("first", 1.5)
time.sleep(60)
"""


def test_a_part_that_is_stopped_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_WRITE_EVERY_S", 0.1)
    report = run.Report(tmp_path, commit_named="abc", dry_run=True)
    seen: list[str] = []
    put = report.put

    def watch(part: str, result: dict[str, Any]) -> None:
        put(part, result)
        on_disk = json.loads(report.path.read_text())["parts"][part]
        if on_disk["results"]:
            seen.append(on_disk["status"])

    monkeypatch.setattr(report, "put", watch)
    logs = tmp_path / "logs"
    logs.mkdir()
    part = run.Part("slow", 4.0, lambda record: [sys.executable, "-c", _SLOW_PART, str(record)])
    run._run(part, logs, time.monotonic() + 60, report)
    report.pack(logs)
    assert set(seen) == {"running", "timeout"}  # on disk while it ran, had the whole run been killed then
    found = json.loads(report.path.read_text())["parts"]["slow"]
    assert found["results"] == {"first": 1.5}
    assert "first = 1.5" in found["output_tail"]
    [archive] = tmp_path.glob("*-logs.tar.gz")
    with tarfile.open(archive) as packed:
        assert sorted(Path(name).name for name in packed.getnames())[-2:] == ["slow.json", "slow.log"]


def test_a_run_without_parts_leaves_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path), "--parts", "none", "--commit", "abc"]
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    assert run.main() == 0
    assert capsys.readouterr().out.count("not measured") == 13
    [written] = tmp_path.glob("*-gpu.json")
    found = json.loads(written.read_text())
    assert (found["commit"], found["command"], found["parts"]) == ("abc", arguments, {})


@pytest.mark.parametrize("dry", [False, True])
def test_every_target_has_a_part_in_the_order_of_worth(
    dry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["run", "--out", str(tmp_path), "--vllm-site", "SITE", *["--dry-run"] * dry]
    )
    options = run._parse()
    report = run.Report(tmp_path, commit_named="abc", dry_run=dry)
    report.put(
        "machine", {"status": "ok", "results": {"ceiling.bytes_per_s": 3.25e12, "ceiling.flop_per_s": 7.5e14}}
    )
    parts = run._parts(options, tmp_path, report)
    kinds = list(dict.fromkeys(part.name.split(".")[0] for part in parts))
    assert kinds == ["machine", "tests", "engine", "saturated", "server", "transformers", "vllm"]
    assert len({part.name for part in parts}) == len(parts)
    command = parts[-1].command(tmp_path / "record.json")
    assert command[-4:] == ["--bytes-per-s", "3250000000000.0", "--flop-per-s", "750000000000000.0"]
    assert ("--without-vllm" in command) == dry


def test_every_gpu_test_is_run() -> None:
    marked = {
        str(path.relative_to(run.ROOT))
        for path in (run.ROOT / "tests" / "gpu").glob("test_*.py")
        if "pytestmark = pytest.mark.gpu" in path.read_text()
    }
    assert marked
    assert sorted(marked) == sorted({*run.KERNEL_TESTS, *run.ENGINE_TESTS})
