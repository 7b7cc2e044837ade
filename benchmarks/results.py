"""A record as people read it: per case one row per engine with median, spread, ratio and share of the hardware floor."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.metrics import METRICS, Summary, ratio, summarize
from benchmarks.record import Record

# What others take of the machine while a repeat runs; beyond it the repeat says little.
NOISE_SHARE = 0.05


@dataclass(slots=True, frozen=True)
class Row:
    case: str
    engine: str
    metric: str
    summary: Summary
    ratio: float | None
    """Of the first engine over this one, above 1 when the first is better; with a baseline case, this case to that one."""
    floor_share: float | None


def rows(record: Record) -> list[Row]:
    """Only what was measured."""
    found = []
    for case in record.cases:
        for engine in record.contenders:
            for metric in record.metrics:
                summary = summarize(record.values(case.name, engine, metric))
                if summary is None:
                    continue
                share = None
                if metric in case.floor and summary.median:
                    share = 1.0 / ratio(metric, case.floor[metric], summary.median)
                found.append(
                    Row(case.name, engine, metric, summary, _ratio(record, case.name, engine, metric), share)
                )
    return found


def _ratio(record: Record, case: str, engine: str, metric: str) -> float | None:
    first = next(iter(record.contenders))
    if record.baseline:
        other_case, other_engine = record.baseline, engine
        here, there = (
            summarize(record.values(case, engine, metric)),
            summarize(record.values(other_case, other_engine, metric)),
        )
        same = case == record.baseline
    else:
        here, there = (
            summarize(record.values(case, first, metric)),
            summarize(record.values(case, engine, metric)),
        )
        same = engine == first
    if same or here is None or there is None or not there.median:
        return None
    return here.median / there.median if record.baseline else ratio(metric, here.median, there.median)


def shown(metric: str, value: float) -> str:
    what = METRICS[metric]
    value *= what.scale
    digits = 0 if value >= 1000 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def show(record: Record, console: Console) -> None:
    console.print(f"\n[bold]{record.title}[/], model {record.model}, float32, {record.num_threads} threads")
    rates = record.ceilings
    console.print(
        f"{record.machine.cpu}, {record.machine.num_cores} cores: reads {rates['bytes_per_s'] / 1e9:.1f} GB/s, "
        f"computes {rates['flop_per_s'] / 1e9:.0f} GFLOP/s (measured now); textgen-endpoint {record.commit}"
    )
    for case in record.cases:
        if table := _table(record, case.name):
            console.print(table)
    _show_notes(record, console)


def _table(record: Record, case: str) -> Table | None:
    here = {(row.engine, row.metric): row for row in rows(record) if row.case == case}
    if not here:
        return None
    first, *others = record.metrics
    table = Table(title=f"{case}: {METRICS[first].title}", title_justify="left", title_style="bold")
    table.add_column("engine")
    table.add_column("through")
    table.add_column(_unit(first) or "median", justify="right")
    table.add_column("spread", justify="right")
    over = f"over {record.baseline}" if record.baseline else f"{next(iter(record.contenders))} is"
    table.add_column(over, justify="right")
    table.add_column("of the floor", justify="right")
    shown_others = [name for name in others if any(metric == name for _, metric in here)]
    for name in shown_others:
        title = METRICS[name].title.replace(", ", "\n")
        table.add_column(f"{title} {_unit(name)}", justify="right")
    for engine, contender in record.contenders.items():
        row = here.get((engine, first))
        if row is None:
            continue
        cells = [
            engine,
            contender.kind,
            shown(first, row.summary.median),
            f"{100 * row.summary.spread:.0f} %",
        ]
        cells.append("" if row.ratio is None else f"{row.ratio:.2f}x")
        cells.append("" if row.floor_share is None else f"{100 * row.floor_share:.0f} %")
        for name in shown_others:
            other = here.get((engine, name))
            cells.append("" if other is None else shown(name, other.summary.median))
        table.add_row(*cells)
    return table


def _unit(metric: str) -> str:
    return METRICS[metric].unit


def _show_notes(record: Record, console: Console) -> None:
    versions = [f"{name} {one.version}" for name, one in record.contenders.items() if one.version]
    console.print(
        f"[dim]medians; spread: largest less smallest repeat; {'; '.join(versions)}[/]", highlight=False
    )
    for name, contender in record.contenders.items():
        if contender.absent:
            console.print(f"[yellow]{name} did not take part:[/] {escape(contender.absent)}", highlight=False)
    for run in record.runs:
        if run.error:
            console.print(
                f"[red]{run.engine}, {run.case}, round {run.round} does not count:[/] {escape(run.error)}"
            )
    noisy = [run for run in record.runs if (run.foreign_share or 0.0) > NOISE_SHARE]
    if noisy:
        worst = max(run.foreign_share or 0.0 for run in noisy)
        console.print(
            f"[yellow]{len(noisy)} of {len(record.runs)} repeats shared the machine with others "
            f"(up to {100 * worst:.0f} % of it); see foreign_share in the record[/]"
        )
    busy = [run.client_cpu_s / run.wall_s for run in record.runs if run.client_cpu_s]
    if busy:
        console.print(f"[dim]the client took up to {100 * max(busy):.0f} % of one core[/]")
