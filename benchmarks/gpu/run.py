"""Everything worth knowing on a GPU machine in one command of under 9 minutes.

python -m benchmarks.gpu.run --out DIR             # tests, our engine, our server, peers; a dated JSON file in DIR
python -m benchmarks.gpu.run --out DIR --dry-run   # the same with tiny models on the CPU: does it work?

Every part is a process with a time limit of its own: one that fails, hangs or corrupts the device costs only itself. The
JSON file is written anew every few seconds, so that a run that was ended from outside leaves what it had.
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
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu import targets
from benchmarks.gpu.summary import ceilings_of, compare, show
from benchmarks.machine import commit

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
    "tests/gpu/test_weights.py",
    "tests/gpu/test_structured_output.py",
    "tests/gpu/test_memory.py",
    "tests/gpu/test_server.py",
    "tests/gpu/test_one_shot.py",
)
_TAIL_CHARACTERS = 6000
_LEAST_S = 5.0  # a part that had less would only be begun
_WRITE_EVERY_S = 5.0


@dataclass(slots=True, frozen=True)
class Part:
    name: str
    limit_s: float
    command: Callable[[Path], list[str]]
    """From the file its results go to."""


class Report:
    """The dated JSON file, and beside it an archive of what the parts printed and recorded."""

    def __init__(self, out: Path, *, commit_named: str, dry_run: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        stem = f"{now:%Y-%m-%d-%H%M}-gpu{'-dry' if dry_run else ''}"
        self.path, self._archive = out / f"{stem}.json", out / f"{stem}-logs.tar.gz"
        self.content: dict[str, Any] = {
            "date": now.isoformat(timespec="seconds"),
            "commit": commit_named,
            "command": sys.argv[1:],
            "dry_run": dry_run,
            "parts": {},
        }

    def put(self, part: str, result: dict[str, Any]) -> None:
        self.content["parts"][part] = result
        self.write()

    def write(self) -> None:
        """Whole or not at all: the process may be killed in the middle."""
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.content, indent=1))
        unfinished.replace(self.path)

    def pack(self, folder: Path) -> None:
        unfinished = self._archive.with_suffix(".part")
        with tarfile.open(unfinished, "w:gz") as archive:
            archive.add(folder, arcname=self._archive.name.removesuffix(".tar.gz"))
        unfinished.replace(self._archive)


def main() -> int:
    options = _parse()
    report = Report(options.out, commit_named=options.commit or commit(), dry_run=options.dry_run)
    deadline_s = time.monotonic() + options.limit_s
    with tempfile.TemporaryDirectory() as scratch:
        models, logs = options.models or Path(scratch, "models"), Path(scratch, "logs")
        models.mkdir(parents=True, exist_ok=True)
        logs.mkdir()
        for part in _parts(options, models, report):
            print(f"\n=== {part.name} (up to {part.limit_s:.0f} s)", flush=True)
            _run(part, logs, deadline_s, report)
            report.pack(logs)
    parts = report.content["parts"]
    report.content["comparison"] = compare(parts)
    report.write()
    show(report.content)
    print(f"written: {report.path}")
    return 0 if all(part["status"] == "ok" for part in parts.values()) else 1


def _parts(options: argparse.Namespace, models: Path, report: Report) -> list[Part]:
    """In the order of their worth, should the time run out."""
    device = "cpu" if options.dry_run else "cuda"
    shapes = targets.TINY if options.dry_run else targets.REAL
    large, small = shapes.large, shapes.small

    def measuring(name: str, module: str, shape: str, limit_s: float, *more: str) -> Part:
        return Part(
            f"{name}.{shape}",
            limit_s,
            lambda record: _module(module, shape, models / shape, record, "--device", device, *more),
        )

    def engine(name: str, module: str, shape: str, limit_s: float) -> Part:
        mix = ("--mix",) if shape == small or options.all_mixes else ()
        return measuring(name, module, shape, limit_s, "--limit-s", str(limit_s - 30), *mix)

    def beside_vllm(shape: str, limit_s: float) -> Part:
        """Ours, vLLM, ours again, each a server of its own; in a dry run ours alone."""
        vllm = ("--without-vllm",) if options.dry_run else ("--vllm-site", str(options.vllm_site))
        plain = measuring("vllm", "vllm_peer", shape, limit_s, *vllm)

        def command(record: Path) -> list[str]:
            ceilings = ceilings_of(report.content["parts"])
            rates = ("--bytes-per-s", str(ceilings.bytes_per_s), "--flop-per-s", str(ceilings.flop_per_s))
            return [*plain.command(record), *rates]

        return Part(plain.name, limit_s, command)

    parts = [
        Part("machine", 60, lambda record: _module("machine", record)),
        *_test_parts(dry_run=options.dry_run),
        engine("engine", "engine", large, 150),
        engine("engine", "engine", small, 120),
        measuring("saturated", "saturated", large, 150),
        measuring("server", "server", large, 180),
        measuring("server", "server", small, 120),
        engine("transformers", "transformers_peer", small, 100),
        engine("transformers", "transformers_peer", large, 75),
    ]
    if options.vllm_site:
        parts += [beside_vllm(small, 330), beside_vllm(large, 420)]
    chosen = options.parts.split(",") if options.parts else [""]
    return [part for part in parts if any(part.name.startswith(prefix) for prefix in chosen)]


def _test_parts(*, dry_run: bool) -> list[Part]:
    if dry_run:
        return [Part("tests", 120, lambda record: _tests(record, "not gpu", ["tests/gpu"]))]
    return [
        Part("tests.kernels", 120, lambda record: _tests(record, "gpu", KERNEL_TESTS, processes=6)),
        Part("tests.engine", 180, lambda record: _tests(record, "gpu", ENGINE_TESTS)),
    ]


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.gpu.{name}", *map(str, arguments)]


def _tests(record: Path, marker: str, paths: Sequence[str], *, processes: int = 0) -> list[str]:
    """Tests of kernels only compile and compute, so several processes may share the device."""
    command = [sys.executable, "-m", "pytest", *paths, "-v", "--durations=15", "-p", "no:cacheprovider"]
    if processes and importlib.util.find_spec("xdist"):
        command += ["-n", str(processes)]
    # The versions on a GPU machine are its own, and so are the warnings of their imports.
    return [*command, "-W", "default", "-m", marker, f"--junitxml={record.with_suffix('.xml')}"]


def _run(part: Part, logs: Path, deadline_s: float, report: Report) -> None:
    """Puts into the report: status (`running`, `ok`, `failed`, `timeout`, `skipped`, `error`), seconds, results so far and
    the end of the output."""
    started_s = time.monotonic()
    left_s = deadline_s - started_s
    if left_s < _LEAST_S:
        report.put(part.name, {"status": "skipped", "reason": "no time left"})
        return
    record, log = logs / f"{part.name}.json", logs / f"{part.name}.log"

    def note(status: str) -> dict[str, Any]:
        result: dict[str, Any] = {"status": status, "seconds": time.monotonic() - started_s}
        result["results"] = json.loads(record.read_text()) if record.exists() else {}
        if part.name.startswith("tests") and log.exists():
            result["results"] = _outcomes(log.read_text(errors="replace"))
        if status != "ok" and log.exists():
            result["output_tail"] = log.read_text(errors="replace")[-_TAIL_CHARACTERS:]
        report.put(part.name, result)
        return result

    try:
        result = note(
            _execute(part.command(record), log, min(part.limit_s, left_s), meanwhile=lambda: note("running"))
        )
    except Exception as error:  # the outermost loop: whatever happened, the other parts still run
        traceback.print_exc()
        result = {**report.content["parts"].get(part.name, {}), "status": "error", "reason": repr(error)}
        report.put(part.name, result)
    if "output_tail" in result:
        print(result["output_tail"])
    print(f"--- {part.name}: {result['status']} after {time.monotonic() - started_s:.1f} s", flush=True)


def _execute(command: list[str], log: Path, limit_s: float, *, meanwhile: Callable[[], object]) -> str:
    """`meanwhile` is called every few seconds."""
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(search), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings, "TOKENIZERS_PARALLELISM": "false"}
    deadline_s = time.monotonic() + limit_s
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
            while (left_s := deadline_s - time.monotonic()) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return "ok" if child.wait(min(_WRITE_EVERY_S, left_s)) == 0 else "failed"
                meanwhile()
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


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the report, records and logs")
    parser.add_argument(
        "--models", type=Path, help="folder where the models (20 GB) are kept; default: they are not"
    )
    parser.add_argument(
        "--limit-s", type=float, default=530.0, help="parts that would start later are skipped"
    )
    parser.add_argument("--commit", help="what is measured, where the checkout cannot tell")
    parser.add_argument("--parts", help="only parts whose names begin so, separated by commas")
    parser.add_argument("--vllm-site", type=Path, help="also beside the vLLM that vllm_parts unpacked there")
    parser.add_argument("--all-mixes", action="store_true", help="the mixed workload on the large model too")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
