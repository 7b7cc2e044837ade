"""A comparison on disk: one dated JSON file with the machine, the versions, and every repeat of every engine.

Written after each repeat, so that what was stopped can be continued.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.machine import Machine

SCHEMA = 1


class Contender(msgspec.Struct, kw_only=True):
    """One engine in one configuration, as it took part or why it did not."""

    kind: str
    dtype: str
    version: str
    prefix_cache: bool
    absent: str = ""
    """Why there are no runs of it, with the command that brings it."""
    start_s: float | None = None
    """Process start to first token, as it went the last time."""


class Run(msgspec.Struct, kw_only=True):
    """One repeat of one case by one engine. Shares are of all cores: 1 is the whole machine."""

    case: str
    engine: str
    round: int
    date: str
    metrics: dict[str, float]
    wall_s: float
    load_average_before: float
    busy_share_before: float | None
    foreign_share: float | None
    """What neither the engine nor its client used, other guests of the host included, while this ran."""
    client_cpu_s: float
    engine_cpu_s: float
    error: str = ""


class CaseRecord(msgspec.Struct, kw_only=True):
    name: str
    offered: float
    floor: dict[str, float] = {}
    """What the hardware allows, by metric."""


class Record(msgspec.Struct, kw_only=True):
    schema: int = SCHEMA
    date: str
    commit: str
    command: list[str]
    family: str
    title: str
    model: str
    model_shape: dict[str, int]
    parameters: dict[str, float]
    metrics: list[str]
    """The first is what ratios are taken of."""
    baseline: str
    num_threads: int
    rounds: int
    machine: Machine
    ceilings: dict[str, float]
    """The best that was seen: bytes_per_s, flop_per_s."""
    versions: dict[str, str]
    cases: list[CaseRecord]
    contenders: dict[str, Contender]
    runs: list[Run] = []
    finished: bool = False

    def values(self, case: str, engine: str, metric: str) -> list[float]:
        """Repeats that are measurements, in the order of their rounds; a round done twice counts once, the later one."""
        by_round = {
            run.round: run.metrics[metric]
            for run in self.runs
            if run.case == case and run.engine == engine and not run.error and metric in run.metrics
        }
        return [by_round[number] for number in sorted(by_round)]

    def has(self, case: str, engine: str, number: int) -> bool:
        return any((run.case, run.engine, run.round) == (case, engine, number) for run in self.runs)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        unfinished.replace(path)


def load(path: Path) -> Record:
    """Raises `ValueError` for a file that is no record, or one of another schema."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no record of a comparison: {error}; name another file") from error
    if record.schema != SCHEMA:
        raise ValueError(f"{path} has schema {record.schema}, this program reads {SCHEMA}; start a new file")
    return record
