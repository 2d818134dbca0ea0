"""Draw the loss by position within inputs of one length."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label
from mesa_lm.reporting.figure_style import (
    GRID,
    MAX_LINES,
    MUTED,
    add_frame,
    counted,
    house_style,
    lines_of,
    short_names,
    ticks_with_room,
)
from mesa_lm.reporting.heat_map import line_map, mark_train_length

POSITION = "^nll_([0-9]+)_([0-9]+)$"  # NLL of the tokens from one position to another
WIDTH, HEIGHT = 7.0, 3.6  # inches, the height without title and legend
AXES_WIDTH = 0.85  # of the figure's, at least


@house_style()
def position_figure(table: pd.DataFrame, length: int | None = None) -> Figure:
    """Return a figure of the mean NLL by position, a line per model and method with 95% bands.

    More than eight lines cannot be told apart and become a heat map.

    Args:
        table: Rows of `Results.table`, all of one task; those named `nll_FROM_TO` are drawn.
        length: Input length in tokens; None for the longest there is.

    Raises:
        UsageError: If no row says a position, or none has that length.
    """
    places = table.metric.str.extract(POSITION).astype(float)
    points = table.assign(start=places[0], end=places[1], middle=places.mean(axis=1))[places[0].notna()]
    if points.empty:
        raise UsageError("no NLL by position in the results: needed are results of long_ppl")
    lengths = sorted(set(points.length))
    if length is None:
        length = lengths[-1]
    if length not in lengths:
        raise UsageError(f"no NLL by position at length {length} (allowed: {', '.join(map(str, lengths))})")
    points = points[points.length == length].sort_values("start")
    title = f"{points.task.iloc[0]}: NLL by position in inputs of {length_label(length)} tokens"
    lines = lines_of(points)
    if len(lines) > MAX_LINES:
        labels = [f"to {length_label(int(end))}" for end in points.end]
        about = _subtitle(points, ["mean NLL (nats per token) of each stretch", "dotted: training length T"])
        figure, axes = line_map(
            points.assign(label=labels, in_percent=False),
            "start",
            title,
            about,
            "stretch, up to a position (tokens)",
            WIDTH,
        )
        if points.train_length.nunique() == 1:
            mark_train_length(axes, sorted(set(points.end)), points.train_length.iloc[0])
        return figure
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_subplot()
    for line in lines:
        own = line.points
        axes.plot(own.middle, own.value, label=line.label, **line.look.style)
        low, high = (own[bound].fillna(own.value) for bound in ("low", "high"))
        axes.fill_between(own.middle, low, high, color=line.look.colour, alpha=0.15, linewidth=0)
    for train_length in sorted(set(points.train_length.dropna())):
        label = f"training length T = {length_label(train_length)}"
        axes.axvline(train_length, color=MUTED, linestyle=":", label=label)
    _set_positions(axes, points)
    axes.set_ylabel("mean NLL (nats per token)")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    told = ["bands: 95 % confidence"] if (points.low < points.high).any() else []
    add_frame(figure, title, _subtitle(points, told), list(zip(*axes.get_legend_handles_labels(), strict=True)))
    return figure


def _set_positions(axes: Axes, points: pd.DataFrame) -> None:
    """Scale the position axis and label the ends of stretches that have room, the last ones first."""
    axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()
    edges = [int(edge) for edge in sorted({*points.start, *points.end} - {0}) if low <= edge <= high]
    inches = AXES_WIDTH * WIDTH / math.log2(high / low)
    places, labels = [inches * math.log2(edge) for edge in edges], [length_label(edge) for edge in edges]
    ticks = ticks_with_room(places, labels, range(len(edges) - 1, -1, -1))
    axes.set_xticks([edges[tick] for tick in ticks], [labels[tick] for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("position (tokens), each point the middle of its stretch")


def _subtitle(points: pd.DataFrame, told: list[str]) -> str:
    """Return which model the lines show, of how many samples, and what else is told of them."""
    names, samples = list(short_names(points).values()), counted(points.samples, "sample")
    parts = [f"model {names[0]}"] if len(names) == 1 else []
    return "; ".join([*parts, *([samples] if samples else []), *told, "lower is better"])
