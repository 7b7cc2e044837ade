"""Bars of what share of the hardware floor each measure reaches, ours beside the peers that took part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

_COLOURS = {"ours": "#0072B2", "transformers": "#E69F00"}  # of Okabe and Ito, as in the plots of the CPU
_BESIDE = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # so that no line runs through a label
_DPI = 130


def draw(report: dict[str, Any], target: Path) -> None:
    """One panel per model. Raises `ValueError` for a report without a figure that has a floor."""
    panels = {
        shape: [row for row in rows if row["ours_share_of_floor"] or row["transformers_share_of_floor"]]
        for shape, rows in report["comparison"].items()
    }
    panels = {shape: rows for shape, rows in panels.items() if rows}
    if not panels:
        raise ValueError("nothing was measured that has a hardware floor")
    heights = [len(rows) + 1 for rows in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8.5, 1.0 + 0.42 * sum(heights)), squeeze=False, height_ratios=heights,
        layout="constrained",
    )  # fmt: skip
    for axis, (shape, rows) in zip(axes[:, 0], panels.items(), strict=True):
        for offset, (engine, colour) in enumerate(_COLOURS.items()):
            bars = [
                (at + 0.4 * offset - 0.2, 100 * row[f"{engine}_share_of_floor"], row[engine])
                for at, row in enumerate(rows)
                if row[f"{engine}_share_of_floor"]
            ]
            if not bars:
                continue
            axis.barh(
                [place for place, _, _ in bars],
                [share for _, share, _ in bars],
                height=0.38,
                color=colour,
                label=engine,
            )
            for place, share, value in bars:
                figure_text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
                text = f"{share:.0f} %  ({figure_text})"
                axis.text(share + 0.8, place, text, va="center", fontsize=8, bbox=_BESIDE)
        axis.set_yticks(range(len(rows)), [row["measure"] for row in rows], fontsize=8)
        axis.set_ylim(len(rows) - 0.4, -0.7)
        axis.set_xlim(0, 140)
        axis.axvline(100, color="#888888", linestyle="--", linewidth=1)
        axis.set_title(shape, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    axes[-1, 0].set_xlabel("% of the hardware floor (in brackets the figure itself; medians)")
    device = (report["parts"].get("machine", {}).get("results") or {}).get("device", "no GPU: a rehearsal")
    figure.suptitle(
        f"{device}; {report['date'][:10]}, commit {report['commit']}", fontsize=10, x=0.01, ha="left"
    )
    figure.savefig(target, dpi=_DPI, metadata={"Software": None})
    pyplot.close(figure)
