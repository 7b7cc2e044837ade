"""Everything worth knowing on a GPU machine in one command of under 9 minutes.

python -m benchmarks.gpu.run --out DIR             # tests, our engine, transformers; a dated JSON file in DIR
python -m benchmarks.gpu.run --out DIR --dry-run   # the same with tiny models on the CPU: does it work?

Every part is a process with a time limit of its own: one that fails, hangs or corrupts the device costs only itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.summary import compare, show

ROOT = Path(__file__).parents[2]
KERNEL_TESTS = (
    "tests/gpu/test_attention.py",
    "tests/gpu/test_pointwise.py",
    "tests/gpu/test_sampler.py",
    "tests/gpu/test_models.py",
)
ENGINE_TESTS = (
    "tests/gpu/test_engine.py",
    "tests/gpu/test_graphs.py",
    "tests/gpu/test_structured_output.py",
    "tests/gpu/test_memory.py",
    "tests/gpu/test_server.py",
)
_TAIL_CHARACTERS = 6000


@dataclass(slots=True, frozen=True)
class Part:
    name: str
    limit_s: float
    command: Callable[[Path], list[str]]
    """From the file its results go to."""


def main() -> int:
    options = _parse()
    options.out.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    report: dict[str, Any] = {"date": now.isoformat(timespec="seconds"), "commit": _commit(), "parts": {}}
    target = options.out / f"{now:%Y-%m-%d-%H%M}-gpu{'-dry' if options.dry_run else ''}.json"
    deadline_s = time.monotonic() + options.limit_s
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for part in _parts(options, Path(scratch)):
            print(f"\n=== {part.name} (up to {part.limit_s:.0f} s)", flush=True)
            report["parts"][part.name] = _run(part, options.out, deadline_s)
            target.write_text(json.dumps(report, indent=1))
    report["comparison"] = compare(report["parts"])
    target.write_text(json.dumps(report, indent=1))
    show(report)
    print(f"written: {target}")
    return 0 if all(part["status"] == "ok" for part in report["parts"].values()) else 1


def _parts(options: argparse.Namespace, scratch: Path) -> list[Part]:
    """In the order of their worth, should the time run out."""
    device = "cpu" if options.dry_run else "cuda"
    shapes = ("tiny-qwen3", "tiny-llama") if options.dry_run else ("qwen3-0.6b", "llama-3.1-8b")
    parts = [Part("machine", 60, lambda record: _module("machine", record))]
    if options.dry_run:
        parts.append(Part("tests", 120, lambda record: _tests(record, "not gpu", ["tests/gpu"])))
    else:
        parts.append(
            Part("tests.kernels", 120, lambda record: _tests(record, "gpu", KERNEL_TESTS, processes=6))
        )
        parts.append(Part("tests.engine", 180, lambda record: _tests(record, "gpu", ENGINE_TESTS)))
    for engine, module, limit_s in (("engine", "engine", 120), ("transformers", "transformers_peer", 75)):
        for index, shape in enumerate(shapes):
            mix = ["--mix"] if index == 0 or options.all_mixes else []
            arguments = [shape, str(scratch / shape)]
            more = ["--device", device, "--limit-s", str(limit_s - 15), *mix]
            parts.append(Part(f"{engine}.{shape}", limit_s, _measuring(module, arguments, more)))
    # Last: it takes most of the time, so it is rather run alone, with --parts machine,vllm.
    parts += [_beside_vllm(shape, scratch, options, device) for shape in shapes if options.vllm_site]
    chosen = options.parts.split(",") if options.parts else [""]
    return [part for part in parts if any(part.name.startswith(prefix) for prefix in chosen)]


def _beside_vllm(shape: str, scratch: Path, options: argparse.Namespace, device: str) -> Part:
    """Ours, vLLM, ours again, each a server of its own; in a dry run ours alone."""
    more = [
        "--device",
        device,
        *(["--without-vllm"] if options.dry_run else ["--vllm-site", str(options.vllm_site)]),
    ]
    return Part(f"vllm.{shape}", 420, _measuring("vllm_peer", [shape, str(scratch / shape)], more))


def _measuring(module: str, arguments: list[str], more: list[str]) -> Callable[[Path], list[str]]:
    return lambda record: [*_module(module, *arguments, record), *more]


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.gpu.{name}", *map(str, arguments)]


def _tests(record: Path, marker: str, paths: Sequence[str], *, processes: int = 0) -> list[str]:
    """Tests of kernels only compile and compute, so several processes may share the device."""
    command = [sys.executable, "-m", "pytest", *paths, "-v", "--durations=15", "-p", "no:cacheprovider"]
    if processes and importlib.util.find_spec("xdist"):
        command += ["-n", str(processes)]
    # The versions on a GPU machine are its own, and so are the warnings of their imports.
    return [*command, "-W", "default", "-m", marker, f"--junitxml={record.with_suffix('.xml')}"]


def _run(part: Part, out: Path, deadline_s: float) -> dict[str, Any]:
    """Status (`ok`, `failed`, `timeout`, `skipped`, `error`), seconds, results so far and the end of the output."""
    started_s = time.monotonic()
    limit_s = min(part.limit_s, deadline_s - started_s)
    if limit_s < 5:
        return {"status": "skipped", "reason": "no time left"}
    record, log = out / f"{part.name}.json", out / f"{part.name}.log"
    record.unlink(missing_ok=True)
    result: dict[str, Any] = {}
    try:
        result["status"] = _execute(part.command(record), log, limit_s)
        result["results"] = json.loads(record.read_text()) if record.exists() else {}
        if part.name.startswith("tests"):
            result["results"] = _outcomes(log.read_text(errors="replace"))
    except Exception as error:  # the outermost loop: whatever happened, the other parts still run
        traceback.print_exc()
        result |= {"status": "error", "reason": repr(error)}
    result["seconds"] = time.monotonic() - started_s
    if result["status"] != "ok" and log.exists():
        result["output_tail"] = log.read_text(errors="replace")[-_TAIL_CHARACTERS:]
        print(result["output_tail"])
    print(f"--- {part.name}: {result['status']} after {result['seconds']:.1f} s", flush=True)
    return result


def _execute(command: list[str], log: Path, limit_s: float) -> str:
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(search), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings, "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w") as output:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return "ok" if child.wait(limit_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            _end_group(child)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """The part's own process group, with every server it may have left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _outcomes(log: str) -> dict[str, Any]:
    """Counts and names from pytest's own lines, which are there also when it was stopped."""
    serial = re.findall(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", log, re.MULTILINE)
    parallel = re.findall(r"^\[gw\d+\].*? (PASSED|FAILED|ERROR|SKIPPED) (tests/\S+::.+)$", log, re.MULTILINE)
    found = serial + [(name.strip(), outcome) for outcome, name in parallel]
    counts: dict[str, int] = {}
    for _, outcome in found:
        counts[outcome.lower()] = counts.get(outcome.lower(), 0) + 1
    return {**counts, "names": [name for name, outcome in found if outcome in ("FAILED", "ERROR")]}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the report, records and logs")
    parser.add_argument("--scratch", type=Path, help="folder for the models (20 GB); default: the system's")
    parser.add_argument(
        "--limit-s", type=float, default=530.0, help="parts that would start later are skipped"
    )
    parser.add_argument("--parts", help="only parts whose names begin so, separated by commas")
    parser.add_argument("--vllm-site", type=Path, help="also beside the vLLM that vllm_parts unpacked there")
    parser.add_argument("--all-mixes", action="store_true", help="the mixed workload on the large model too")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
