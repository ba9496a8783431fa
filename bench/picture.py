"""Figure of a suite: the ratio of each contender to jaxrnn, for each undisturbed case."""

from pathlib import Path
from typing import Any

from bench.core import BASELINE
from bench.summary import contenders, ratios

Record = dict[str, Any]

COLOURS = (
    *("#d1495b", "#00798c", "#edae49", "#66439b", "#2e933c", "#8d6b4f", "#7f8c8d"),
    *("#e377c2", "#1f3a93", "#17becf"),
)
MARKERS = "osD^vPX<>*"

VAST = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
COARSE = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
MIDDLE = (0.25, 0.5, 0.7, 0.85, 1, 1.25, 1.5, 2, 2.5, 3)
FINE = (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4)
"""Where the axis of ratios is marked."""


def draw(report: Record, path: Path) -> bool:
    """Save the figure; return False if no ratio exists."""
    records = [r for r in report["records"] if ratios(r) and not r["disturbed"]]
    if not records:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter

    tables = list(dict.fromkeys(record["table"] for record in records))
    panels = [[record for record in records if record["table"] == name] for name in tables]
    tallest = max(len(panel) for panel in panels)
    names = [name for name in contenders(records) if name != BASELINE]
    figure = Figure(figsize=(2.5 + 4.5 * len(panels), 2.0 + 0.28 * tallest), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    found = [value for record in records for value in ratios(record).values()]
    low, high = min(0.8, min(found) / 1.15), max(1.3, max(found) * 1.15)
    for axis, title, panel in zip(axes, tables, panels, strict=True):
        for k, name in enumerate(names):
            points = [(ratios(r)[name], i) for i, r in enumerate(panel) if name in ratios(r)]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
            axis.plot(x, y, linestyle="none", markersize=6, alpha=0.85, label=name, **style)
        axis.axvline(1.0, color="black", linewidth=1)
        axis.axvspan(low, 1.0, color="#d1495b", alpha=0.06, linewidth=0)
        axis.set_xscale("log")
        axis.set_xlim(low, high)
        steps = ((300, VAST), (4, COARSE), (1.9, MIDDLE), (0, FINE))
        places = next(places for least, places in steps if high / low > least)
        ticks = [t for t in places if low <= t <= high]
        axis.xaxis.set_major_locator(FixedLocator(ticks))
        axis.xaxis.set_minor_locator(FixedLocator([]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axis.set_yticks(range(len(panel)), [record["row"] for record in panel], fontsize=8)
        axis.set_ylim(len(panel) - 0.5, -0.5)
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("times as much as jaxrnn (right of the line: jaxrnn is ahead)", fontsize=8)
    handles, labels = [], []
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    columns = min(len(labels), 4 * len(panels))  # As many as fit under the panels.
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
    header = report["header"]
    where = header["cpu"] if header["backend"] == "cpu" else ", ".join(header["devices"])
    figure.suptitle(f"{report['suite']}: {where}, {header['date'][:10]}", fontsize=11)
    figure.savefig(path, dpi=130)
    return True
