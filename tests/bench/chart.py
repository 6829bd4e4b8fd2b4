"""The curves of a run as one SVG: throughput and p99 against calls in flight, and cost against size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.results import Results
from tests.bench.rounds import split

# Readable on white and on black alike, and told apart by those who see fewer colours.
_INK: Final = "#808080"
_COLOURS: Final = {"AddMemory": "#d9730d", "GetMemory": "#2f80ed", "AddMemory echo": "#8a8a8a", "first page": "#27a567"}


@dataclass(frozen=True)
class Panel:
    """One of the charts: a figure of an experiment whose contenders are series of sizes."""

    title: str
    experiment: str
    figure: str
    x: str
    y: str


PANELS: Final = [
    Panel("Throughput", "calls_in_flight", "rate", "calls in flight", "calls/s"),
    Panel("Latency, 99th percentile", "calls_in_flight", "p99_ms", "calls in flight", "ms"),
    Panel("Cost and session length", "lengths", "p50_ms", "messages in the session", "p50, ms"),
    Panel("Cost and number of sessions", "counts", "p50_ms", "sessions", "p50, ms"),
]


def draw(results: Results, path: Path) -> None:
    """Draws the curves that were measured. Raises ImportError without the extra `bench`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "recalld",  # the same results make the same file
        "font.family": "sans-serif",
        "font.size": 10,
        **{f"{part}.color": _INK for part in ("text", "xtick", "ytick")},
        **{f"axes.{part}": _INK for part in ("edgecolor", "labelcolor", "titlecolor")},
    }
    with rc_context(style):
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            _draw_panel(axes, panel, series(results, panel))
        figure.savefig(path, format=path.suffix[1:], transparent=True, metadata={"Date": None})


def series(results: Results, panel: Panel) -> dict[str, list[tuple[int, float, float, float]]]:
    """The points of each line: size, median, lowest and highest round."""
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    experiment = results["experiments"].get(panel.experiment, {"medians": {}})
    for contender, medians in experiment["medians"].items():
        name, size = split(contender)
        if size is not None:
            values = [one[panel.figure] for one in experiment["rounds"][contender]]
            lines.setdefault(name, []).append((size, medians[panel.figure], min(values), max(values)))
    return {name: sorted(points) for name, points in lines.items()}


def _draw_panel(axes: Any, panel: Panel, lines: dict[str, list[tuple[int, float, float, float]]]) -> None:
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y, xscale="log")
    if panel.figure == "p99_ms":
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,g}")
    for name, points in lines.items():
        sizes, medians, lows, highs = zip(*points, strict=True)
        colour = _COLOURS.get(name, _INK)
        axes.plot(sizes, medians, marker="o", markersize=4, linewidth=1.8, color=colour, label=name)
        axes.fill_between(sizes, lows, highs, color=colour, alpha=0.18, linewidth=0)
    if lines:
        ticks = sorted({point[0] for points in lines.values() for point in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.legend(frameon=False)
    if panel.figure != "p99_ms":
        axes.set_ylim(bottom=0)
    axes.grid(color=_INK, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
