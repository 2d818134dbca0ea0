"""Draw a metric against input length in a panel per method: for more methods than one figure's lines tell apart."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from mesa_lm.lengths import length_label
from mesa_lm.reporting.figure_style import (
    GRID,
    METRIC_LABELS,
    MUTED,
    Line,
    add_frame,
    counted,
    house_style,
    lines_of,
    wrapped,
)
from mesa_lm.reporting.method_labels import name_of

COLUMNS = 3
PANEL_HEIGHT = 1.15  # inches, without its title
LINE_HEIGHT = 0.17


@house_style()
def panels_figure(points: pd.DataFrame, width: float) -> Figure:
    """Return a figure with a panel per method, the best first, each beside the line of `origin`.

    Args:
        points: Rows of `Results.table`, all of one model, task and metric.
        width: Of the figure in inches.
    """
    lines = lines_of(points)
    sign = 1 if points.higher_is_better.fillna(True).iloc[0] else -1
    origin = next((line for line in lines if name_of(line.label) == "origin"), None)
    lines.sort(key=lambda line: -sign * line.points.value.mean())
    names = [wrapped(line.label, 0.85 * width / COLUMNS) for line in lines]
    rows = math.ceil(len(lines) / COLUMNS)
    title_height = LINE_HEIGHT * max(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(width, rows * (PANEL_HEIGHT + title_height)))
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    lengths = sorted(set(points.length))
    for axes, line, name in zip(panels.flat, lines, names, strict=False):
        if origin is not None and line is not origin:
            axes.plot(origin.points.length, origin.points.value, color=MUTED, linewidth=1, linestyle=":")
        _add_panel(axes, line, name)
    for axes in list(panels.flat)[len(lines) :]:
        axes.set_visible(False)
    first = panels.flat[0]
    first.set_xscale("log", base=2)
    ends = [lengths[0], lengths[-1]] if len(lengths) > 1 else lengths
    first.set_xticks(ends, [length_label(length) for length in ends])
    first.xaxis.set_minor_locator(NullLocator())
    if points.value.between(0, 1).all() and sign > 0:
        first.set_ylim(-0.03, 1.03)
        first.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    label = METRIC_LABELS.get(points.metric.iloc[0], points.metric.iloc[0])
    told = [f"{count} per length" if (count := counted(points.samples, "sample")) else ""]
    told += ["thin: origin" if origin is not None else "", "the best first"]
    add_frame(figure, f"{points.task.iloc[0]}: {label} by input length", "; ".join(filter(None, told)))
    return figure


def _add_panel(axes: Axes, line: Line, name: str) -> None:
    """Draw a method's line with its intervals."""
    own = line.points
    axes.plot(own.length, own.value, markersize=4, linewidth=1.5, clip_on=False, **line.look.style)
    low, high = own.low.fillna(own.value), own.high.fillna(own.value)
    axes.fill_between(own.length, low, high, color=line.look.colour, alpha=0.15, linewidth=0)
    for length in set(own.train_length.dropna()):
        axes.axvline(length, color=MUTED, linestyle=":", linewidth=1)
    axes.set_title(name, loc="left", fontsize=10)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
