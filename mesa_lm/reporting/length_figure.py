"""Draw a metric against input length, one line per model and method."""

import math
from collections.abc import Sequence
from itertools import pairwise
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator, PercentFormatter, StrMethodFormatter

from mesa_lm.lengths import length_label
from mesa_lm.reporting.costs import COSTS, OOM_METRIC
from mesa_lm.reporting.figure_style import METRIC_LABELS, Line, house_style, lines_of, short_names

MAX_TICKS = 14
WIDTH, HEIGHT = 7.0, 4.0  # inches, the height without the legend
# Characters of the legend's font that fit into the width, and those that a line's handle takes.
LABEL_LENGTH, HANDLE_LENGTH = 80, 6


class _PlainLogFormatter(LogFormatter):
    """matplotlib's choice of which ticks between powers of ten to label, as plain numbers: 0.6, not 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


@house_style()
def length_figure(points: pd.DataFrame, others: pd.DataFrame | None = None) -> Figure:
    """Return a figure of one metric of one task against the input length.

    The length axis is logarithmic. Bars and bands are 95% confidence intervals; the points of one length are set side
    by side by a little, so that equal values stay visible. A dotted line marks each training length that the results
    name. Times and memory have a logarithmic axis, bars from the least to the most, and a marker at the top where a
    method ran out of memory.

    Args:
        points: Rows of `Results.table`, all of one task and metric.
        others: All rows of the results. Those of the same task named `METRIC_min`, `METRIC_max` and `oom` say how far
            repeated measurements lie apart, and where memory ran out.
    """
    task, metric = points.iloc[0][["task", "metric"]]
    is_cost, label = metric in COSTS, METRIC_LABELS.get(metric, metric.replace("_", " "))
    points = _with_bounds(points)
    if is_cost:
        points = _with_costs(points, points if others is None else others[others.task == task])
    lengths, train_lengths = set(points.length), set(points.train_length.dropna())
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    lines = list(lines_of(points))
    # Times and memory hardly ever coincide, as scores do.
    shift = 0.0 if is_cost else _shift(lengths | train_lengths, lengths, len(lines))
    for index, line in enumerate(lines):
        _add_line(axes, line, 2 ** (shift * (index - (len(lines) - 1) / 2)))
    for length in sorted(train_lengths):
        told = f"training length T = {length_label(length)}"
        axes.axvline(length, color="0.35", linestyle=":", linewidth=1.4, zorder=1, label=told)
    _set_lengths(axes, lengths, train_lengths)
    axes.set_ylabel(label)
    if is_cost:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(2, 0.5)))
    if points.in_percent.all():
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(f"{task}: {label.partition(' (')[0]} by input length\n", fontsize=12, loc="left")
    axes.text(0, 1.04, _subtitle(points, is_cost), transform=axes.transAxes, fontsize=9, color="0.35")
    _add_legend(figure, axes)
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


def _add_line(axes: Axes, line: Line, factor: float) -> None:
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
        color=line.colour,
        marker=line.marker,
        label=fill(line.label, LABEL_LENGTH),
        markersize=6,
        linewidth=1.8,
        elinewidth=1.1,
        capsize=2.5,
        clip_on=False,
        zorder=3,
    )
    axes.fill_between(measured.place, low, high, color=line.colour, alpha=0.13, linewidth=0, zorder=2)
    across = axes.get_xaxis_transform()
    for place in points.place[points.value.isna()]:
        axes.plot(place, 1.0, "x", color=line.colour, transform=across, clip_on=False, zorder=4)
        axes.text(place, 0.96, "OOM", transform=across, color=line.colour, fontsize=8, ha="center", va="top")


def _shift(shown: set[int], lengths: set[int], lines: int) -> float:
    """Return the distance between neighbouring lines at one length, in powers of two."""
    places = [math.log2(length) for length in sorted(lengths)]
    span = math.log2(max(shown) / min(shown)) or 1.0
    nearest = min((right - left for left, right in pairwise(places)), default=span)
    return min(span / 120, nearest / (6 * lines))


def _set_lengths(axes: Axes, lengths: set[int], train_lengths: set[int]) -> None:
    """Scale and label the length axis."""
    axes.set_xscale("log", base=2)
    ticks = _ticks(lengths)
    axes.set_xticks(ticks, [length_label(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("input length (tokens)")
    low, high = min(lengths | train_lengths), max(lengths | train_lengths)
    margin = (high / low) ** 0.05 if high > low else 2
    axes.set_xlim(low / margin, high * margin)


def _ticks(lengths: set[int]) -> Sequence[int]:
    """Return the lengths to label: all whose labels have room, powers of two first."""
    gap = math.log2(max(lengths) / min(lengths)) / MAX_TICKS
    ticks: list[int] = []
    for length in sorted(lengths, key=lambda length: (length & (length - 1) != 0, length)):
        if all(abs(math.log2(length / tick)) >= gap for tick in ticks):
            ticks.append(length)
    return sorted(ticks)


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Add the legend below the axes, in as many columns as fit, and make the figure higher by its height."""
    handles, labels = axes.get_legend_handles_labels()
    widths = [max(map(len, label.splitlines())) + HANDLE_LENGTH for label in labels]
    rows = 1
    while rows < len(labels) and sum(max(widths[i : i + rows]) for i in range(0, len(labels), rows)) > LABEL_LENGTH:
        rows += 1
    columns = math.ceil(len(labels) / rows)
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.set_figheight(HEIGHT + legend.get_window_extent().height / figure.dpi)


def _subtitle(points: pd.DataFrame, is_cost: bool) -> str:
    """Return which model the lines show, how many samples the points stand for and what the bars are."""
    parts = [f"model {name}" for name in short_names(points).values() if points.model.nunique() == 1]
    if points.samples.notna().any():
        counts = dict.fromkeys((points.samples.min(), points.samples.max()))
        parts.append(f"{' to '.join(map(str, counts))} {'repeats' if is_cost else 'samples per length'}")
    if (points.low < points.high).any():
        parts.append("bars: least to most" if is_cost else "bands: 95 % confidence")
    if not points.higher_is_better.fillna(True).iloc[0]:
        parts.append("lower is better")
    return "; ".join(parts)
