"""Draw a metric by depth and input length, a heat map per model and method."""

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label
from mesa_lm.reporting.figure_style import FONT_SIZE as SIZE
from mesa_lm.reporting.figure_style import (
    LINE_SPACING,
    MARGIN,
    METRIC_LABELS,
    add_frame,
    counted,
    house_style,
    lines_of,
    short_names,
    wrapped,
)
from mesa_lm.reporting.heat_map import CELL_HEIGHT, SHARES, add_heat_map, cell_width, mark_train_length
from mesa_lm.reporting.lm_eval_files import DEPTH

MAX_WIDTH = 9.5  # inches, of several maps beside each other
MAP_WIDTH = 2.0  # inches, the least
SIDE_WIDTH = 1.5  # inches left of the maps and right of them, with the colour bar


@house_style()
def depth_figure(table: pd.DataFrame, metric: str) -> Figure:
    """Return a figure of heat maps, all over the same lengths and depths and on one colour scale.

    Args:
        table: Rows of `Results.table`, all of one task; those named `METRIC_depth_P` are drawn.
        metric: The metric, a share from 0 to 1.

    Raises:
        UsageError: If no row says a depth.
    """
    depths = table.metric.str.extract(f"^{DEPTH}$")
    points = table.assign(depth=depths[1].astype(float))[depths[0] == metric]
    if points.empty:
        raise UsageError(f"no {metric} by depth in the results: needed are results of passkey_grid")
    whole = points.pivot_table(index="depth", columns="length", values="value")
    lengths = [int(length) for length in whole.columns]
    labels = [length_label(length) for length in lengths]
    lines = lines_of(points)
    wide = max(MAP_WIDTH, len(lengths) * cell_width(SHARES, whole, labels))
    rows = math.ceil(len(lines) / max(1, int((MAX_WIDTH - SIDE_WIDTH) / (wide + 2 * MARGIN))))
    columns = math.ceil(len(lines) / rows)
    titles = [wrapped(line.label, wide) for line in lines]
    title_lines = max(title.count("\n") + 1 for title in titles)
    high = CELL_HEIGHT * max(4, len(whole)) + title_lines * SIZE * LINE_SPACING / 72 + 0.35
    figure = Figure(figsize=(SIDE_WIDTH + columns * (wide + 2 * MARGIN), rows * high + 0.5))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, line, title in zip(grid.flat, lines, titles, strict=False):
        found = line.points.pivot(index="depth", columns="length", values="value").reindex_like(whole)
        mesh, middles = add_heat_map(axes, found, SHARES, labels)
        axes.set_yticks(middles, [f"{depth:g} %" for depth in whole.index])
        mark_train_length(axes, lengths, line.points.train_length.iloc[0])
        axes.set_title(title, size=SIZE, loc="left", linespacing=LINE_SPACING)
    for axes in grid.flat[len(lines) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, len(lines) - columns) : len(lines)]:
        axes.tick_params(labelbottom=True)
    measured = METRIC_LABELS.get(metric, metric)
    figure.supxlabel("input length (tokens)", size=SIZE)
    figure.supylabel("depth of the key", size=SIZE)
    format_ = PercentFormatter(xmax=1, symbol=" %")
    bar = figure.colorbar(mesh, ax=grid, label=measured, format=format_, aspect=12, shrink=1 / rows, anchor=(0, 1))
    bar.outline.set_visible(False)
    add_frame(figure, f"{points.task.iloc[0]}: {measured} by depth and input length", _subtitle(points))
    return figure


def _subtitle(points: pd.DataFrame) -> str:
    """Return which model the maps show, how many samples a cell stands for and what the dotted line is."""
    names = list(short_names(points).values())
    parts = [f"model {names[0]}"] if len(names) == 1 else []
    if count := counted(points.samples, "sample"):
        parts.append(f"{count} per cell")
    train_lengths = sorted(set(points.train_length.dropna()))
    if train_lengths:
        told = f" = {length_label(train_lengths[0])}" if len(train_lengths) == 1 else ""
        parts.append(f"dotted: training length T{told}")
    return "; ".join(parts)
