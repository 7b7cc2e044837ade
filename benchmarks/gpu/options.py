"""The command line shared by the measuring processes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.gpu.models import SHAPES
from benchmarks.gpu.workloads import FULL, TINY, Workload


@dataclass(slots=True, frozen=True)
class Options:
    shape: str
    folder: Path
    record: Path
    device: Literal["cuda", "cpu"]
    mix: bool
    limit_s: float
    async_scheduling: Literal["auto", "on", "off"]
    kv_cache_dtype: Literal["auto", "fp8_e4m3"]

    @property
    def workload(self) -> Workload:
        return workload_of(self.shape)


def workload_of(shape: str) -> Workload:
    """Tiny shapes rehearse with tiny numbers."""
    return TINY if shape.startswith("tiny") else FULL


def parse(description: str | None) -> Options:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_place(parser)
    parser.add_argument("--mix", action="store_true", help="the mixed workload too")
    parser.add_argument("--limit-s", type=float, default=600.0, help="the mixed workload stops here")
    parser.add_argument("--async-scheduling", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8_e4m3"), default="auto")
    return Options(**vars(parser.parse_args()))


def add_place(parser: argparse.ArgumentParser) -> None:
    """The arguments of every measuring process."""
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path, help="where the model is, or will be written")
    parser.add_argument("record", type=Path, help="JSON file for the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
