"""Draw a metric by depth and input length, a heat map per model and method."""

import math
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label
from mesa_lm.reporting.figure_style import METRIC_LABELS, house_style, lines_of, short_names
from mesa_lm.reporting.lm_eval_files import DEPTH

PANELS = 3  # beside each other
CELL_WIDTH, CELL_HEIGHT = 0.52, 0.3  # inches
# Where a value is written in black instead of white: the upper, light half of the colour map.
LIGHT = 0.55


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
    lines = list(lines_of(points))
    columns = min(PANELS, len(lines))
    rows = math.ceil(len(lines) / columns)
    width = columns * max(3.2, CELL_WIDTH * len(whole.columns) + 0.9) + 1.0
    height = rows * (CELL_HEIGHT * max(4, len(whole)) + 0.9) + 0.7
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, line in zip(grid.flat, lines, strict=False):
        found = line.points.pivot(index="depth", columns="length", values="value").reindex_like(whole)
        image = _add_map(axes, found, line.points.train_length.iloc[0])
        axes.set_title(fill(line.label, 34), fontsize=10, loc="left")
    for axes in grid.flat[len(lines) :]:
        axes.set_axis_off()
    measured = METRIC_LABELS.get(metric, metric)
    names = list(short_names(points).values())
    model = f", model {names[0]}" if len(names) == 1 else ""
    title = f"{points.task.iloc[0]}: {measured} by depth and input length{model}"
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    figure.supxlabel("input length (tokens); dotted: training length T", fontsize=10)
    figure.supylabel("depth (% of the text before the key)", fontsize=10)
    figure.colorbar(image, ax=grid, label=measured, fraction=0.05)
    return figure


def _add_map(axes: Axes, values: pd.DataFrame, train_length: int) -> AxesImage:
    """Draw one heat map, depths by lengths, with its values written in; what was not measured stays empty."""
    # Cividis grows evenly in lightness, for every form of colour vision.
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(values.to_numpy()):
        for x, value in enumerate(row):
            if not math.isnan(value):
                colour = "black" if value > LIGHT else "white"
                axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    lengths = values.columns.astype(int)
    axes.set_xticks(range(len(lengths)), [length_label(length) for length in lengths])
    axes.set_yticks(range(len(values)), [f"{depth:g}" for depth in values.index])
    if not pd.isna(train_length):
        # Between the lengths within T and those beyond; a line at the edge is seen there, too.
        place = (lengths <= train_length).sum() - 0.5
        axes.axvline(place, color="#D55E00", linestyle=":", linewidth=2.5, clip_on=False)
    return image
