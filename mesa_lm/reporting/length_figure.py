"""Draw a metric against input length: a line per model and method, or a heat map where these are many."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator, PercentFormatter, StrMethodFormatter
from matplotlib.transforms import offset_copy

from mesa_lm.lengths import length_label
from mesa_lm.reporting.costs import COSTS, OOM_METRIC
from mesa_lm.reporting.figure_style import (
    FIGURE_WIDTH,
    GRID,
    MAX_LINES,
    METRIC_LABELS,
    MUTED,
    Line,
    add_frame,
    counted,
    house_style,
    lines_of,
    short_names,
    ticks_with_room,
)
from mesa_lm.reporting.heat_map import line_map, mark_train_length

HEIGHT = 3.6  # inches, without title and legend
LENGTH_AXIS = "input length (tokens)"
AXES_WIDTH = 0.85  # of the figure's, at least
MAX_BANDS = 4  # Of a figure; more of them cover each other, and bars have to do.


class _PlainLogFormatter(LogFormatter):
    """matplotlib's choice of which ticks between powers of ten to label, as plain numbers: 0.6, not 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


@house_style()
def length_figure(points: pd.DataFrame, others: pd.DataFrame | None = None, width: float = FIGURE_WIDTH) -> Figure:
    """Return a figure of one metric of one task against the input length.

    The length axis is logarithmic. Bars, and the bands of few lines, are 95% confidence intervals; the points of one
    length are set side by side by a little, so that equal values stay visible. A dotted line marks each training length
    that the results name. Times and memory have a logarithmic axis, bars from the least to the most, and a mark at the
    top where a method ran out of memory. More than eight lines cannot be told apart and become a heat map.

    Args:
        points: Rows of `Results.table`, all of one task and metric.
        others: All rows of the results. Those of the same task named `METRIC_min`, `METRIC_max` and `oom` say how far
            repeated measurements lie apart, and where memory ran out.
        width: Of the figure in inches; a heat map takes more where its cells need it.
    """
    task, metric = points.iloc[0][["task", "metric"]]
    is_cost, label = metric in COSTS, METRIC_LABELS.get(metric, metric.replace("_", " "))
    points = _with_bounds(points)
    if is_cost:
        points = _with_costs(points, points if others is None else others[others.task == task])
    lines = lines_of(points)
    if len(lines) > MAX_LINES:
        return _length_map(points, f"{task}: {label} by input length", is_cost, width)
    lengths, train_lengths = set(points.length), set(points.train_length.dropna())
    figure = Figure(figsize=(width, HEIGHT))
    axes = figure.add_subplot()
    # Times and memory hardly ever coincide, as scores do.
    shift = 0.0 if is_cost else _shift(lengths | train_lengths, lengths, len(lines))
    for index, line in enumerate(lines):
        _add_line(axes, line, 2 ** (shift * (index - (len(lines) - 1) / 2)), len(lines) <= MAX_BANDS)
    _mark_failures(axes, lines)
    legend = list(zip(*axes.get_legend_handles_labels(), strict=True))
    for length in sorted(train_lengths):
        mark = axes.axvline(length, color=MUTED, linestyle=":", linewidth=1.4, zorder=1)
        legend.append((mark, f"training length T = {length_label(length)}"))
    _set_lengths(axes, lengths, train_lengths, width)
    axes.set_ylabel(label)
    if is_cost:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(2, 0.5)))
    if points.in_percent.all():
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    title = f"{task}: {label.partition(' (')[0]} by input length"
    add_frame(figure, title, _subtitle(points, is_cost), legend)
    return figure


def _length_map(points: pd.DataFrame, title: str, is_cost: bool, width: float) -> Figure:
    """Return a figure of a metric by method and length; intervals have no place in it."""
    points = points.assign(label=points.length.map(length_label))
    train_lengths = sorted(set(points.train_length.dropna()))
    about = [_subtitle(points.assign(low=points.value, high=points.value), is_cost)]
    if points.in_percent.all():
        about.append("in percent")
    if len(train_lengths) == 1:
        about.append(f"dotted: training length T = {length_label(train_lengths[0])}")
    figure, axes = line_map(points, "length", title, "; ".join(filter(None, about)), LENGTH_AXIS, width)
    if len(train_lengths) == 1:
        mark_train_length(axes, sorted(set(points.length)), train_lengths[0])
    return figure


def _with_bounds(points: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with bounds everywhere, the value itself where none are known, and whether they are percents."""
    low, high = (points[bound].fillna(points.value) for bound in ("low", "high"))
    # A share of samples, or a score between 0 and 1.
    in_percent = points.is_share | (points.higher_is_better.fillna(False) & points.value.between(0, 1))
    return points.assign(low=low, high=high, in_percent=in_percent.astype(bool))


def _with_costs(points: pd.DataFrame, same_task: pd.DataFrame) -> pd.DataFrame:
    """Return a cost in the unit of its axis, from the least to the most, and without value where memory ran out."""
    metric, place = points.metric.iloc[0], ["model", "method", "length"]
    points = points.set_index(place)
    by_metric = same_task.pivot(index=place, columns="metric", values="value")
    ends = by_metric.reindex(columns=[f"{metric}_min", f"{metric}_max"]).dropna()
    points.update(ends.set_axis(["low", "high"], axis="columns"))
    points[["value", "low", "high"]] /= COSTS[metric].divisor
    failed = same_task[(same_task.metric == OOM_METRIC) & (same_task.value == 1)]
    failed = failed.assign(value=math.nan, in_percent=False)
    return pd.concat([points.reset_index(), failed]).sort_values(place)


def _add_line(axes: Axes, line: Line, factor: float, in_band: bool) -> None:
    """Draw one line with its intervals, moved by a factor; unclipped, since many points lie on the axis limits."""
    points = line.points.assign(place=line.points.length * factor)
    measured = points[points.value.notna()]
    low, high = measured.low, measured.high
    if measured.in_percent.all():
        low, high = low.clip(lower=0), high.clip(upper=1)
    axes.errorbar(
        measured.place,
        measured.value,
        yerr=[measured.value - low, high - measured.value],
        label=line.label,
        markersize=6,
        linewidth=1.8,
        elinewidth=1.1,
        capsize=2.5,
        clip_on=False,
        zorder=3,
        **line.look.style,
    )
    if in_band:
        axes.fill_between(measured.place, low, high, color=line.look.colour, alpha=0.13, linewidth=0, zorder=2)


def _mark_failures(axes: Axes, lines: Sequence[Line]) -> None:
    """Write OOM at the top of each length at which memory ran out, above a mark for each line that ended so."""
    marked: Counter[int] = Counter()
    across = axes.get_xaxis_transform()
    for line in lines:
        for length in line.points.length[line.points.value.isna()]:
            marked[length] += 1
            below = offset_copy(across, axes.get_figure(root=True), y=-9 * marked[length], units="points")
            axes.plot(length, 1, "x", color=line.look.colour, transform=below, clip_on=False, zorder=4)
    for length in marked:
        axes.text(length, 1, "OOM", transform=across, ha="center", va="bottom")


def _shift(shown: set[int], lengths: set[int], lines: int) -> float:
    """Return the distance between neighbouring lines at one length, in powers of two."""
    places = [math.log2(length) for length in sorted(lengths)]
    span = math.log2(max(shown) / min(shown)) or 1.0
    nearest = min((right - left for left, right in pairwise(places)), default=span)
    return min(span / 120, nearest / (6 * lines))


def _set_lengths(axes: Axes, lengths: set[int], train_lengths: set[int], width: float) -> None:
    """Scale and label the length axis of a figure of so many inches."""
    axes.set_xscale("log", base=2)
    low, high = min(lengths | train_lengths), max(lengths | train_lengths)
    margin = (high / low) ** 0.05 if high > low else 2
    axes.set_xlim(low / margin, high * margin)
    ticks = _ticks(sorted(lengths), AXES_WIDTH * width / math.log2(high / low * margin**2))
    axes.set_xticks(ticks, [length_label(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(LENGTH_AXIS)


def _ticks(lengths: Sequence[int], inches: float) -> list[int]:
    """Return the lengths whose labels have room, powers of two first, on an axis of so many inches per doubling."""
    order = sorted(range(len(lengths)), key=lambda tick: (lengths[tick] & (lengths[tick] - 1) != 0, tick))
    places = [inches * math.log2(length) for length in lengths]
    return [lengths[tick] for tick in ticks_with_room(places, [length_label(length) for length in lengths], order)]


def _subtitle(points: pd.DataFrame, is_cost: bool) -> str:
    """Return which model the lines show, how many samples the points stand for and what the bars are."""
    parts = [f"model {name}" for name in short_names(points).values() if points.model.nunique() == 1]
    if count := counted(points.samples, "repeat" if is_cost else "sample"):
        parts.append(count if is_cost else f"{count} per length")
    if (points.low < points.high).any():
        parts.append("bars: least to most" if is_cost else "bars: 95 % confidence")
    if not points.higher_is_better.fillna(True).iloc[0]:
        parts.append("lower is better")
    if is_cost and points.value.isna().any():
        parts.append("OOM: out of memory")
    return "; ".join(parts)
