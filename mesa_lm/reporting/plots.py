"""Draw a metric against input length, one line per model and method."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, groupby, pairwise
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator, PercentFormatter, StrMethodFormatter

from mesa_lm.errors import UsageError
from mesa_lm.reporting.results import Cell, Interval, interval, is_proportion, length_label

# Okabe and Ito 2008, Color universal design: told apart by all common forms of colour vision. Yellow, too faint on
# white, is left out. The numbers of colours and markers share no factor, so 56 lines differ in one or the other.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
METRIC_LABELS = {
    "acc": "accuracy",
    "exact_match": "exact match",
    "nll": "mean NLL (nats per token)",
    "tail_nll": "NLL of the tail (nats per token)",
}
# What `mesa-lm bench` and sweeps measure: the axis label, and by what a value is divided for it.
COSTS = {
    "prefill_s": ("prefill time (s)", 1),
    "decode_s": ("time per decoding step (s)", 1),
    "sample_s": ("time per sample (s)", 1),
    "peak_bytes": ("peak memory (GiB)", 2**30),
    "kv_bytes": ("memory of keys and values (GiB)", 2**30),
}
# What keeps the time of drawing out of the file, so that equal results give equal files.
TIMELESS: dict[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
MAX_TICKS = 14
WIDTH, HEIGHT = 7.0, 4.0  # inches, the height without the legend
# Characters of the legend's font that fit into the width, and those that a line's handle takes.
LABEL_LENGTH, HANDLE_LENGTH = 80, 6


class Style(NamedTuple):
    """Hold how a line looks."""

    colour: str
    marker: str
    label: str


class _PlainLogFormatter(LogFormatter):
    """matplotlib's choice of which ticks between powers of ten to label, as plain numbers: 0.6, not 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def draw(cells: Sequence[Cell], path: Path, others: Iterable[Cell] = ()) -> None:
    """Draw one metric of one task against the input length.

    The length axis is logarithmic. Bars and bands are 95% confidence intervals; the points of one length are set side
    by side by a little, so that equal values stay visible. A dotted line marks each training length that the results
    name. Times and memory have a logarithmic axis, bars from the least to the most, and a marker at the top where a
    method ran out of memory.

    Args:
        cells: The points; all of one task and metric, in the order of `results.read`.
        path: The file to write, `.png`, `.svg` or `.pdf`; missing folders are created.
        others: All cells of the results. Those of the same task named `METRIC_min`, `METRIC_max` and `oom` say how far
            repeated measurements lie apart, and where memory ran out.

    Raises:
        UsageError: If the file has another suffix or cannot be written.
    """
    save(path, lambda: _figure(cells, others))


def save(path: Path, figure_of: Callable[[], Figure]) -> None:
    """Write a figure in the common style; equal figures give equal files.

    Args:
        path: The file to write, `.png`, `.svg` or `.pdf`; missing folders are created.
        figure_of: Makes the figure.

    Raises:
        UsageError: If the file has another suffix or cannot be written.
    """
    if path.suffix.lower() not in TIMELESS:
        raise UsageError(f"{path}: cannot draw a file with suffix {path.suffix!r} (allowed: {', '.join(TIMELESS)})")
    with matplotlib.rc_context({"svg.hashsalt": "mesa-lm", "axes.spines.top": False, "axes.spines.right": False}):
        figure = figure_of()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=160, metadata=TIMELESS[path.suffix.lower()])
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _with_costs(cells: Sequence[Cell], others: Iterable[Cell]) -> tuple[list[Cell], dict[Cell, Interval]]:
    """Return the points in the unit of their axis, those that ran out of memory as NaN, and their bars."""
    metric = cells[0].metric
    divisor = COSTS.get(metric, ("", 1))[1]
    same_task = [cell for cell in others if cell.task == cells[0].task]
    values = {(cell.model, cell.method, cell.length, cell.metric): cell.value for cell in same_task}
    points, bars = [], {}
    for cell in cells:
        point = replace(cell, value=cell.value / divisor) if divisor > 1 else cell
        ends = [values.get((cell.model, cell.method, cell.length, f"{metric}_{end}")) for end in ("min", "max")]
        found = interval(point) if None in ends else Interval(*(end / divisor for end in ends if end is not None))
        bars[point] = found or Interval(point.value, point.value)
        points.append(point)
    for cell in same_task if metric in COSTS else ():
        if cell.metric == "oom" and cell.value == 1:
            points.append(replace(cell, metric=metric, value=math.nan))
    return points, bars


def _figure(cells: Sequence[Cell], others: Iterable[Cell] = ()) -> Figure:
    """Return the figure of the cells."""
    cells, bars = _with_costs(cells, others)
    lines = [list(points) for _, points in groupby(_origin_first(cells), key=lambda cell: (cell.model, cell.method))]
    names = short_names(cell.model for cell in cells)
    train_lengths = {cell.train_length for cell in cells if cell.train_length is not None}
    lengths = {cell.length for cell in cells}
    labels = METRIC_LABELS | {name: label for name, (label, _) in COSTS.items()}
    metric = labels.get(cells[0].metric, cells[0].metric.replace("_", " "))
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    # Times and memory hardly ever coincide, as scores do.
    shift = 0.0 if cells[0].metric in COSTS else _shift(lengths | train_lengths, lengths, len(lines))
    for index, (points, colour, marker) in enumerate(zip(lines, cycle(COLOURS), cycle(MARKERS), strict=False)):
        label = points[0].method if len(names) == 1 else f"{names[points[0].model]}: {points[0].method}"
        factor = 2 ** (shift * (index - (len(lines) - 1) / 2))
        style = Style(colour, marker, fill(label, LABEL_LENGTH))
        _add_line(axes, points, bars, factor=factor, style=style)
    for length in sorted(train_lengths):
        label = f"training length T = {length_label(length)}"
        axes.axvline(length, color="0.35", linestyle=":", linewidth=1.4, zorder=1, label=label)
    _set_lengths(axes, lengths, train_lengths)
    axes.set_ylabel(metric)
    if cells[0].metric in COSTS:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(2, 0.5)))
    if all(_is_share(cell) for cell in cells):
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(f"{cells[0].task}: {metric.partition(' (')[0]} by input length\n", fontsize=12, loc="left")
    subtitle = _subtitle(cells, names, any(low < high for low, high in bars.values()))
    axes.text(0, 1.04, subtitle, transform=axes.transAxes, fontsize=9, color="0.35")
    _add_legend(figure, axes)
    return figure


def _origin_first(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with each model's origin before its methods: the baseline keeps its colour."""
    return sorted(cells, key=lambda cell: (cell.model, cell.method != "origin", cell.method, cell.length))


def _is_share(cell: Cell) -> bool:
    """Return whether a value is best read in percent: a share of samples, or a score between 0 and 1."""
    return is_proportion(cell) or (cell.higher_is_better is True and 0 <= cell.value <= 1)


def _add_line(
    axes: Axes, points: Sequence[Cell], bars: Mapping[Cell, Interval], *, factor: float, style: Style
) -> None:
    """Draw one line with its intervals; unclipped, since many points lie on the axis limits."""
    measured = [cell for cell in points if cell in bars]
    bounds = [bars[cell] for cell in measured]
    if all(_is_share(cell) for cell in measured):
        bounds = [Interval(max(0.0, low), min(1.0, high)) for low, high in bounds]
    places = [cell.length * factor for cell in measured]
    below = [cell.value - low for cell, (low, _) in zip(measured, bounds, strict=True)]
    above = [high - cell.value for cell, (_, high) in zip(measured, bounds, strict=True)]
    axes.errorbar(
        places,
        [cell.value for cell in measured],
        yerr=[below, above],
        color=style.colour,
        marker=style.marker,
        label=style.label,
        markersize=6,
        linewidth=1.8,
        elinewidth=1.1,
        capsize=2.5,
        clip_on=False,
        zorder=3,
    )
    lows, highs = [low for low, _ in bounds], [high for _, high in bounds]
    axes.fill_between(places, lows, highs, color=style.colour, alpha=0.13, linewidth=0, zorder=2)
    failed = [cell.length * factor for cell in points if cell not in bars]
    across = axes.get_xaxis_transform()
    for place in failed:
        axes.plot(place, 1.0, "x", color=style.colour, transform=across, clip_on=False, zorder=4)
        axes.text(place, 0.96, "OOM", transform=across, color=style.colour, fontsize=8, ha="center", va="top")


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


def _ticks(lengths: set[int]) -> list[int]:
    """Return the lengths to label: all whose labels have room, powers of two first."""
    gap = math.log2(max(lengths) / min(lengths)) / MAX_TICKS
    ticks: list[int] = []
    for length in sorted(lengths, key=lambda length: (length & (length - 1) != 0, length)):
        if all(abs(math.log2(length / tick)) >= gap for tick in ticks):
            ticks.append(length)
    return sorted(ticks)


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Return the last part of each model's name, or the whole where that would be the same for two models.

    Args:
        models: The names; folders, or names on the hub.

    Returns:
        From a name to the short one.
    """
    full = set(models)
    last = {name: Path(name).name for name in full}
    return last if len(set(last.values())) == len(full) else {name: name for name in full}


def _subtitle(cells: Sequence[Cell], names: dict[str, str], has_bars: bool) -> str:
    """Return which model the lines show, how many samples the points stand for and what the bars are."""
    parts = [f"model {name}" for name in names.values() if len(names) == 1]
    repeated = cells[0].metric in COSTS
    counts = sorted({cell.samples for cell in cells if cell.samples is not None})
    if counts:
        unit = "repeats" if repeated else "samples per length"
        parts.append(f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} {unit}")
    if has_bars:
        parts.append("bars: least to most" if repeated else "bands: 95 % confidence")
    if cells[0].higher_is_better is False:
        parts.append("lower is better")
    return "; ".join(parts)
