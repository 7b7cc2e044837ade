"""One comparison from options to a record: the model, the machine's rates, the turns, and what is written after each."""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks import floor, machine
from benchmarks.alternation import Clock, Entry, Stable, Turn, left_to_do, measure, measure_start, warm_up
from benchmarks.ceilings import measure as measure_ceilings
from benchmarks.metrics import METRICS, Limits
from benchmarks.model_fixture import SHAPES, prompt_ids, write_model
from benchmarks.peers.contracts import Engine, EngineFailed, Settings
from benchmarks.record import CaseRecord, Contender, Record, Run
from benchmarks.results import shown
from benchmarks.workloads import Family, Sizes, arrivals, batch, long_prompt, nano_mix, shared_prefix, start
from serving.version import VERSION

# Of the model that a workload needs; where it is not said, the fixture's own.
_CONTEXTS = {"long": 32768, "prefix": 4096}
DEFAULT_CONTEXT = 2048
_LEAST_CONTEXT = 512  # of the engines' caches


def prepare(options: argparse.Namespace, chosen: Mapping[str, Engine], console: Console) -> Path:
    """The model's folder, with everything converted that an engine wants in a format of its own."""
    with console.status("writing the model"):
        model = write_model(options.model, context=_CONTEXTS.get(options.workload, DEFAULT_CONTEXT))
    for name, engine in chosen.items():
        if engine.why_not() is None:
            with console.status(f"converting the model for {name}"):
                engine.prepare(model)
    return model


class Comparison:
    """Made from the parsed command line of `benchmarks.compare`. With a record, it goes on where that ended."""

    def __init__(
        self,
        options: argparse.Namespace,
        chosen: Mapping[str, Engine],
        console: Console,
        *,
        command: list[str] | None = None,
        record: Record | None = None,
    ) -> None:
        self._options = options
        self._console = console
        self._chosen = chosen
        self._model = prepare(options, chosen, console)
        with console.status("measuring what the machine reads and computes"):
            self._ceilings = measure_ceilings(options.threads)
        self._capacity_per_s = record.parameters.get("capacity_per_s") if record else options.capacity
        self._family = self._make_family()
        self._entries = self._make_entries()
        self.record = record or self._new_record(command or [])
        for entry in self._entries:  # what failed or was missing the last time may be there now
            self.record.contenders[entry.label].absent = entry.engine.why_not() or ""
            self.record.contenders[entry.label].version = entry.engine.version()
        self.path = (
            options.resume or options.out / f"{self.record.date[:10]}-{options.workload}-{options.model}.json"
        )
        self._note_ceilings()
        self._clock = Clock(options.limit_s, self.record)

    @property
    def num_left(self) -> int:
        return len(left_to_do(self._family, self._options.rounds, self._entries, self.record))

    def run(self) -> bool:
        """True when nothing is left to do. What was measured is on disk after every repeat."""
        self.record.finished = False
        self.record.save(self.path)
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
        )
        with bar, Stable(self._model, warm_up(self._family)) as stable:
            task = bar.add_task("", total=self.num_left, left="")
            while left := left_to_do(self._family, self._options.rounds, self._entries, self.record):
                turn = left[0]
                up = stable.start_s(turn.entry.label) is not None
                if not self._clock.fits(turn, is_up=up):
                    return False
                self._announce(bar, task, turn, left)
                self._take(turn, stable)
                self.record.save(self.path)
                bar.advance(task)
        self.record.finished = True
        self.record.save(self.path)
        return True

    def _take(self, turn: Turn, stable: Stable) -> None:
        contender = self.record.contenders[turn.entry.label]
        try:
            if self._family.name == "start":
                run = measure_start(turn, self._model)
            else:
                run = measure(turn, self._family, stable)
                contender.start_s = stable.start_s(turn.entry.label)
        except EngineFailed as error:
            stable.drop(turn.entry.label)
            # A record is for everybody: what failed, not where on this machine. All of it is on the screen.
            contender.absent = f"it failed: {(str(error).strip() or type(error).__name__).splitlines()[-1]}"
            self._console.print(f"[red]{turn.entry.label} is out:[/] {escape(str(error))}", highlight=False)
            return
        self.record.runs.append(run)
        self._console.print(self._line(run), highlight=False)

    def _line(self, run: Run) -> str:
        metric = self.record.metrics[0]
        value = (
            "does not count" if run.error else f"{shown(metric, run.metrics[metric])} {METRICS[metric].unit}"
        )
        others = "" if run.foreign_share is None else f", others took {100 * run.foreign_share:.0f} %"
        return f"{run.case}, round {run.round}, {run.engine}: {value} [dim](load {run.load_average_before:.1f}{others})[/]"

    def _announce(self, bar: Progress, task: TaskID, turn: Turn, left: list[Turn]) -> None:
        seconds = sum(self._clock.expected_s(one, is_up=True) for one in left)
        about = (
            f"about {seconds / 60:.0f} min left"
            if seconds > 90
            else f"about {seconds:.0f} s left"
            if seconds
            else ""
        )
        bar.update(task, description=f"{turn.case.name}, round {turn.round}, {turn.entry.label}", left=about)

    def _make_family(self) -> Family:
        options = self._options
        sizes = Sizes(
            ids=lambda count, seed: tuple(prompt_ids(self._model, count, zlib.crc32(seed.encode()))),
            prompt_tokens=options.prompt_tokens,
            new_tokens=options.new_tokens,
            min_requests=options.min_requests,
            scale=options.scale,
        )
        if options.workload == "arrivals":
            return self._make_arrivals(sizes)
        makers = {"mix": nano_mix, "prefix": shared_prefix, "long": long_prompt, "start": start}
        if options.workload == "batch":
            return batch(sizes, options.concurrency)
        return makers[options.workload](sizes)

    def _make_arrivals(self, sizes: Sizes) -> Family:
        options = self._options
        if self._capacity_per_s is None:
            self._capacity_per_s = self._measure_capacity(sizes)
        return arrivals(
            sizes,
            capacity_per_s=self._capacity_per_s,
            loads=options.loads,
            duration_s=options.duration_s,
            limits=Limits(first_token_s=options.limit_first_token_s, between_s=options.limit_per_token_s),
            num_running=options.running,
        )

    def _measure_capacity(self, sizes: Sizes) -> float:
        """Requests per second of the first engine with all its places taken, in a closed loop."""
        label, engine = next(iter(self._chosen.items()))
        family = batch(sizes, [self._options.running])
        settings = self._settings(family, label)
        with (
            self._console.status(f"measuring the capacity of {label}"),
            engine.start(self._model, settings) as up,
        ):
            up.run(warm_up(family))
            measured = up.run(family.cases[0].make(0))
        return len(measured.requests) / measured.wall_s

    def _settings(self, family: Family, label: str) -> Settings:
        return Settings(
            num_threads=self._options.threads,
            max_concurrency=family.max_concurrency,
            max_context=max(_LEAST_CONTEXT, family.max_context + 16),
            prefix_cache=family.name == "prefix" and not label.endswith(":nocache"),
        )

    def _make_entries(self) -> list[Entry]:
        return [
            Entry(label, engine, self._settings(self._family, label))
            for label, engine in self._chosen.items()
        ]

    def _new_record(self, command: list[str]) -> Record:
        options, family = self._options, self._family
        numbers = {
            name: float(value)
            for name, value in vars(options).items()
            if isinstance(value, int | float) and name != "limit_s"
        }
        if self._capacity_per_s is not None:
            numbers["capacity_per_s"] = self._capacity_per_s
        return Record(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=machine.commit(),
            command=command,
            family=family.name,
            title=family.title,
            model=options.model,
            model_shape=SHAPES[options.model],
            parameters=numbers,
            metrics=list(family.metrics),
            baseline=family.baseline,
            num_threads=options.threads,
            rounds=options.rounds,
            machine=machine.describe(),
            ceilings={},
            versions={name: version(name) for name in ("torch", "transformers")}
            | {"textgen-endpoint": VERSION},
            cases=[CaseRecord(name=case.name, offered=case.offered) for case in family.cases],
            contenders={
                entry.label: Contender(
                    kind=entry.engine.kind,
                    dtype=entry.engine.dtype,
                    version=entry.engine.version(),
                    prefix_cache=entry.settings.prefix_cache,
                    absent=entry.engine.why_not() or "",
                )
                for entry in self._entries
            },
        )

    def _note_ceilings(self) -> None:
        """The best rates of all pieces of this record, and the floors that follow from them."""
        seen = {"bytes_per_s": self._ceilings.bytes_per_s, "flop_per_s": self._ceilings.flop_per_s}
        best = {name: max(rate, self.record.ceilings.get(name, 0.0)) for name, rate in seen.items()}
        self.record.ceilings = best
        if not self._family.has_floor:
            return
        dimensions = floor.Checkpoint.read(self._model)
        for case, recorded in zip(self._family.cases, self.record.cases, strict=True):
            streams, jobs = case.make(0).concurrency, case.jobs()
            seconds = floor.jobs_s(dimensions, floor.Ceilings(**best), jobs, concurrency=streams)
            num_tokens = sum(job.output for job in jobs)
            recorded.floor = {"tokens_per_s": num_tokens / seconds}
            if streams is not None:
                recorded.floor["per_token_p50_s"] = streams * seconds / num_tokens
