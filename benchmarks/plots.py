"""Pictures of a record: throughput against latency, bars with ratios, and what happens beyond capacity.

python -m benchmarks.plots RECORD.json ...       # draws again, next to each record
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from benchmarks.metrics import METRICS, summarize
from benchmarks.record import Record, load
from benchmarks.results import Row, rows, shown

# Okabe and Ito's colours, which colour-blind readers tell apart; ours is the first.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_MARKERS = "osD^vP*X"
_FLOOR_COLOUR = "#888888"
_DPI = 130
_BESIDE = {
    "facecolor": "white",
    "edgecolor": "none",
    "pad": 1.0,
}  # of a label, so that no line runs through it


def draw(record: Record, target: Path) -> list[Path]:
    """Writes `target`-NAME.png for each picture that the record has numbers for; returns what was written."""
    figures = {"bars": _bars(record)}
    if record.family == "batch":
        figures["curve"] = _curve(record)
    if record.family == "arrivals":
        figures = {"load": _load(record)}
    written = []
    for name, figure in figures.items():
        if figure is None:
            continue
        path = target.with_name(f"{target.name}-{name}.png")
        figure.savefig(path, dpi=_DPI, metadata={"Software": None})
        pyplot.close(figure)
        written.append(path)
    return written


def _bars(record: Record) -> Figure | None:
    """One panel per case, one bar per engine: the median, its range, the ratio, the share of the hardware floor."""
    metric = record.metrics[0]
    found = [row for row in rows(record) if row.metric == metric]
    cases = [case for case in record.cases if any(row.case == case.name for row in found)]
    if not cases:
        return None
    counts = [sum(row.case == case.name for row in found) for case in cases]
    figure, panels = pyplot.subplots(
        len(cases),
        1,
        figsize=(9, 1.3 + sum(0.5 * count + 0.75 for count in counts)),
        squeeze=False,
        sharex=bool(record.baseline),  # then the cases are compared with each other
        height_ratios=[count + 0.8 for count in counts],
        layout="constrained",
    )
    for panel, case in zip(panels[:, 0], cases, strict=True):
        _case_bars(panel, record, [row for row in found if row.case == case.name], case.floor.get(metric))
        panel.set_title(case.name, loc="left", fontsize=10)
    panels[-1, 0].set_xlabel(_axis(metric))
    figure.suptitle(_title(record), fontsize=10.5, x=0.01, ha="left")
    return figure


def _case_bars(panel: Axes, record: Record, found: Sequence[Row], floor: float | None) -> None:
    metric, names = record.metrics[0], list(record.contenders)
    scale = METRICS[metric].scale
    longest = max([row.summary.median * scale for row in found] + ([floor * scale] if floor else []))
    for at, row in enumerate(found):
        values = [scale * value for value in record.values(row.case, row.engine, metric)]
        median = scale * row.summary.median
        below_above = [[median - min(values)], [max(values) - median]]
        colour = _COLOURS[names.index(row.engine) % len(_COLOURS)]
        whisker = below_above if len(values) > 1 else None
        panel.barh(at, median, height=0.68, color=colour, xerr=whisker, ecolor="#333333", capsize=3)
        panel.text(
            max(values) + 0.012 * longest, at, _label(record, row), va="center", fontsize=9, bbox=_BESIDE
        )
    if floor:
        panel.axvline(scale * floor, color=_FLOOR_COLOUR, linestyle="--", linewidth=1.2)
        panel.text(
            scale * floor, -0.62, "hardware floor ", color=_FLOOR_COLOUR, fontsize=8, ha="right", va="center"
        )
    panel.set_yticks(range(len(found)), [row.engine for row in found])
    panel.set_ylim(len(found) - 0.5, -0.85)
    panel.set_xlim(0, max(1.42 * longest, panel.get_xlim()[1] if record.baseline else 0.0))
    _tidy(panel)


def _label(record: Record, row: Row) -> str:
    parts = [shown(row.metric, row.summary.median)]
    if row.floor_share is not None:
        parts.append(f"{100 * row.floor_share:.0f} % of the floor")
    if row.ratio is not None:
        first = next(iter(record.contenders))
        if record.baseline:
            parts.append(f"{row.ratio:.2f}x of {record.baseline}")
        else:
            parts.append(f"{first} is {row.ratio:.2f}x")
    return "  ·  ".join(parts)


def _curve(record: Record) -> Figure | None:
    """Up and to the left is better: tokens per second of the whole server against time per token of one stream."""
    figure, panel = pyplot.subplots(figsize=(8.5, 5.2), layout="constrained")
    for at, engine in enumerate(record.contenders):
        points = []
        for case in record.cases:
            latency = summarize(record.values(case.name, engine, "per_token_p50_s"))
            rate = summarize(record.values(case.name, engine, "tokens_per_s"))
            if latency and rate:
                points.append((1e3 * latency.median, rate.median, case.offered))
        if not points:
            continue
        colour, marker = _COLOURS[at % len(_COLOURS)], _MARKERS[at % len(_MARKERS)]
        across, up, streams = zip(*points, strict=True)
        panel.plot(across, up, marker=marker, color=colour, label=engine, linewidth=1.8, zorder=10 - at)
        if at == 0:
            for x, y, count in zip(across, up, streams, strict=True):
                panel.annotate(
                    f"{count:g}",
                    (x, y),
                    textcoords="offset points",
                    xytext=(-4, 8),
                    fontsize=9,
                    color=colour,
                    ha="right",
                )
    floor = [
        (1e3 * case.floor["per_token_p50_s"], case.floor["tokens_per_s"])
        for case in record.cases
        if case.floor
    ]
    if floor:
        panel.plot(
            *zip(*floor, strict=True), linestyle="--", marker=".", color=_FLOOR_COLOUR, label="hardware floor"
        )
    for axis, scale in ((panel.xaxis, panel.set_xscale), (panel.yaxis, panel.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("milliseconds per token of one stream, prompt included (median)")
    panel.set_ylabel("output tokens per second, all streams")
    panel.grid(True, which="both", alpha=0.22)
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        _title(record) + "\nnumbers at the points: streams at once", fontsize=10.5, x=0.01, ha="left"
    )
    return figure


def _load(record: Record) -> Figure | None:
    """Requests per second within the limits, and time to the first token, against requests offered per second."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for at, engine in enumerate(record.contenders):
        colour, marker = _COLOURS[at % len(_COLOURS)], _MARKERS[at % len(_MARKERS)]
        for metric, panel, style in (
            ("goodput_per_s", panels[0], "-"),
            ("first_token_p50_s", panels[1], "-"),
            ("first_token_p99_s", panels[1], ":"),
        ):
            points = []
            for case in record.cases:
                if summary := summarize(record.values(case.name, engine, metric)):
                    points.append((case.offered, METRICS[metric].scale * summary.median))
            if points:
                label = engine if metric == "goodput_per_s" else f"{engine}, {metric.split('_')[2]}"
                panel_x, panel_y = zip(*points, strict=True)
                panel.plot(panel_x, panel_y, style, marker=marker, color=colour, label=label)
    offered = [case.offered for case in record.cases]
    panels[0].plot(
        [0, max(offered)],
        [0, max(offered)],
        "--",
        color=_FLOOR_COLOUR,
        linewidth=1,
        label="all that is offered",
    )
    panels[0].set_ylabel(METRICS["goodput_per_s"].title)
    panels[0].set_ylim(0, None)
    panels[1].set_ylabel("milliseconds to the first token")
    panels[1].set_yscale("log")
    panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for panel in panels:
        panel.axvline(record.parameters["capacity_per_s"], color=_FLOOR_COLOUR, linewidth=1, linestyle=":")
        panel.set_xlabel("requests offered per second (dotted: capacity)")
        panel.legend(frameon=False, fontsize=9)
        panel.grid(True, alpha=0.22)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title(record), fontsize=10.5, x=0.01, ha="left")
    return figure


def _axis(metric: str) -> str:
    what = METRICS[metric]
    better = "more is better" if what.more_is_better else "less is better"
    unit = f", {what.unit}" if what.unit and what.unit != "tok/s" else ""
    return f"{what.title}{unit} ({better}); bars: medians, whiskers: smallest and largest repeat"


def _title(record: Record) -> str:
    where = f"{record.machine.cpu}, {record.num_threads} threads, float32"
    return f"{record.model}: {record.title}\n{where}; {record.date[:10]}, commit {record.commit}"


def _tidy(panel: Axes) -> None:
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    panel.grid(True, axis="x", alpha=0.22)
    panel.set_axisbelow(True)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    for name in sys.argv[1:]:
        for path in draw(load(Path(name)), Path(name).with_suffix("")):
            print(path)


if __name__ == "__main__":
    main()
