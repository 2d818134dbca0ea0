"""Heat maps: values by row and column, each written into its cell."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from mesa_lm.reporting.costs import is_cost
from mesa_lm.reporting.figure_style import COLOURS, MARGIN, Line, add_frame, lines_of, text_width, wrapped
from mesa_lm.reporting.method_labels import name_of

CELL_WIDTH, CELL_HEIGHT = 0.42, 0.28  # inches, the least
WIDEST_CELL = 0.9  # inches
LABEL_WIDTH = 0.4  # of the figure's width, at most, for the labels of rows
LINE_HEIGHT = 0.17  # inches
# Written into cells; unlike the colours of paper and ink these two stay the same on a dark page.
ON_LIGHT, ON_DARK = "#000000", "#fafafa"
LIGHT = 0.42  # luma from which a cell is light


class Scale(NamedTuple):
    """Hold how values become colours and texts.

    Attributes:
        norm: Values to 0..1.
        colours: Name of matplotlib's colour map; the better values are the lighter ones.
        pattern: Of the text of a value, for `str.format`.
        factor: By what a value is multiplied for its text.
    """

    norm: Normalize
    colours: str
    pattern: str
    factor: float = 1.0


SHARES = Scale(Normalize(0, 1), "cividis", "{:.0f}", 100.0)


def scale_of(points: pd.DataFrame) -> Scale:
    """Return the scale of one metric's rows; `in_percent` says which of them are shares."""
    if points.in_percent.all():
        return SHARES
    least, most = points.value.min(), points.value.max()
    norm = LogNorm if is_cost(points.metric.iloc[0]) else Normalize
    # Cividis grows evenly in lightness, for every form of colour vision.
    colours = "cividis" if points.higher_is_better.fillna(True).iloc[0] else "cividis_r"
    return Scale(norm(least, most), colours, "{:.2f}" if 0.1 <= least <= most < 100 else "{:.3g}")


def cell_width(scale: Scale, values: pd.DataFrame, labels: Sequence[str]) -> float:
    """Return how wide the cells must be for all that is written in them and below them, in inches."""
    measured = values.to_numpy()[values.notna()]
    texts = [scale.pattern.format(scale.factor * value) for value in measured]
    return max(CELL_WIDTH, *(text_width(text) + MARGIN for text in [*texts, *labels]))


def add_heat_map(
    axes: Axes, values: pd.DataFrame, scale: Scale, labels: Sequence[str], heights: Sequence[float] = ()
) -> tuple[QuadMesh, list[float]]:
    """Draw a heat map with its values written in; what was not measured stays empty.

    Args:
        axes: Where to; column `i` is centred at `i`.
        values: By row and column.
        scale: Their colours and texts.
        labels: Of the columns.
        heights: Of the rows; all alike if empty.

    Returns:
        The mesh, and the centres of the rows.
    """
    edges = list(accumulate(heights or [1.0] * len(values), initial=0.0))
    middles = [(top + bottom) / 2 for top, bottom in pairwise(edges)]
    columns = [column - 0.5 for column in range(len(labels) + 1)]
    # The thin edge hides seams that some viewers draw between cells.
    mesh = axes.pcolormesh(columns, edges, values, cmap=scale.colours, norm=scale.norm, edgecolor="face", linewidth=0.2)
    axes.set_ylim(edges[-1], 0)
    for y, row in zip(middles, values.to_numpy(), strict=True):
        for x, value in enumerate(row):
            if not pd.isna(value):
                red, green, blue, _ = matplotlib.colormaps[scale.colours](scale.norm(value))
                colour = ON_LIGHT if 0.299 * red + 0.587 * green + 0.114 * blue > LIGHT else ON_DARK
                text = scale.pattern.format(scale.factor * value)
                axes.text(x, y, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh, middles


def mark_train_length(axes: Axes, lengths: Sequence[int], train_length: float) -> None:
    """Draw a dotted line between the columns of lengths within T and those beyond."""
    if not pd.isna(train_length):
        place = sum(length <= train_length for length in lengths) - 0.5
        # At the edge, too, it is seen.
        axes.axvline(place, color=COLOURS[0], linestyle=":", linewidth=2.5, clip_on=False)


def line_map(
    points: pd.DataFrame, values: str, title: str, subtitle: str, label: str, width: float
) -> tuple[Figure, Axes]:
    """Return a figure with a row per model and method, for more of them than lines can be told apart.

    Args:
        points: The rows of one metric, with `in_percent`, and `label`, the text below a column; without value
            where memory ran out.
        values: The column of `points` by which the columns of the map are ordered.
        title: Of the figure.
        subtitle: Of the figure.
        label: Of the axis below the columns.
        width: Of the figure in inches; more is taken where the cells need it, less where they are few.
    """
    scale = scale_of(points)
    lines = sorted(lines_of(points), key=_place)
    table = pd.DataFrame([line.points.set_index(values).value for line in lines])[sorted(set(points[values]))]
    labels = points.set_index(values).label.to_dict()
    columns = [labels[place] for place in table.columns]
    names = [wrapped(line.label, LABEL_WIDTH * width) for line in lines]
    side = max(map(text_width, names)) + 4 * MARGIN
    widest, least = (
        side + max(len(columns) * cell, text_width(label)) for cell in (WIDEST_CELL, cell_width(scale, table, columns))
    )
    heights = [max(CELL_HEIGHT, (name.count("\n") + 1) * LINE_HEIGHT + 0.06) for name in names]
    figure = Figure(figsize=(max(least, min(width, widest)), sum(heights) + 0.6))
    axes = figure.add_subplot()
    _, middles = add_heat_map(axes, table, scale, columns, heights)
    axes.set_yticks(middles, names)
    for y, line in zip(middles, lines, strict=True):
        for place in line.points[values][line.points.value.isna()]:
            axes.text(list(table.columns).index(place), y, "OOM", ha="center", va="center")
    axes.set_xlabel(label)
    add_frame(figure, title, subtitle)
    return figure, axes


def _place(line: Line) -> tuple[str, bool, float]:
    """Return by what lines are ordered: each model's origin first, then by their means, the best first."""
    first = line.points.iloc[0]
    sign = -1 if pd.isna(first.higher_is_better) or first.higher_is_better else 1
    mean = line.points.value.mean()
    return first.model, name_of(first.method) != "origin", math.inf if math.isnan(mean) else sign * mean
