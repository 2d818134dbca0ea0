"""Draw a metric against input length, one line per model and method."""

import math
from collections.abc import Iterable, Sequence
from itertools import cycle, groupby, pairwise
from pathlib import Path
from textwrap import fill

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from mesa_lm.errors import UsageError
from mesa_lm.results import Cell, Interval, interval, is_proportion, length_label

# Okabe and Ito 2008, Color universal design: told apart by all common forms of colour vision. Yellow, too faint on
# white, is left out. The numbers of colours and markers share no factor, so 56 lines differ in one or the other.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
METRIC_LABELS = {"acc": "accuracy", "exact_match": "exact match", "nll": "mean NLL (nats per token)"}
# What keeps the time of drawing out of the file, so that equal results give equal files.
TIMELESS: dict[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
MAX_TICKS = 14
WIDTH, HEIGHT = 7.0, 4.0  # inches, the height without the legend
# Characters of the legend's font that fit into the width, and those that a line's handle takes.
LABEL_LENGTH, HANDLE_LENGTH = 80, 6


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draw one metric of one task against the input length.

    The length axis is logarithmic. Bars are 95% confidence intervals; the points of one length are set side by side by
    a little, so that equal values stay visible. A dotted line marks each training length that the results name.

    Args:
        cells: The points; all of one task and metric, in the order of `results.read`.
        path: The file to write, `.png`, `.svg` or `.pdf`; missing folders are created.

    Raises:
        UsageError: If the file has another suffix or cannot be written.
    """
    if path.suffix.lower() not in TIMELESS:
        raise UsageError(f"{path}: cannot draw a file with suffix {path.suffix!r} (allowed: {', '.join(TIMELESS)})")
    with matplotlib.rc_context({"svg.hashsalt": "mesa-lm", "axes.spines.top": False, "axes.spines.right": False}):
        figure = _figure(cells)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=160, metadata=TIMELESS[path.suffix.lower()])
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _figure(cells: Sequence[Cell]) -> Figure:
    """Return the figure of the cells."""
    lines = [list(points) for _, points in groupby(_origin_first(cells), key=lambda cell: (cell.model, cell.method))]
    names = _short_names(cell.model for cell in cells)
    train_lengths = {cell.train_length for cell in cells if cell.train_length is not None}
    lengths = {cell.length for cell in cells}
    metric = METRIC_LABELS.get(cells[0].metric, cells[0].metric.replace("_", " "))
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    shift = _shift(lengths | train_lengths, lengths, len(lines))
    for index, (points, colour, marker) in enumerate(zip(lines, cycle(COLOURS), cycle(MARKERS), strict=False)):
        label = points[0].method if len(names) == 1 else f"{names[points[0].model]}: {points[0].method}"
        factor = 2 ** (shift * (index - (len(lines) - 1) / 2))
        _add_line(axes, points, factor=factor, colour=colour, marker=marker, label=fill(label, LABEL_LENGTH))
    for length in sorted(train_lengths):
        label = f"training length T = {length_label(length)}"
        axes.axvline(length, color="0.35", linestyle=":", linewidth=1.4, zorder=1, label=label)
    _set_lengths(axes, lengths, train_lengths)
    axes.set_ylabel(metric)
    if all(_is_share(cell) for cell in cells):
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(f"{cells[0].task}: {metric.partition(' (')[0]} by input length\n", fontsize=12, loc="left")
    axes.text(0, 1.04, _subtitle(cells, names), transform=axes.transAxes, fontsize=9, color="0.35")
    _add_legend(figure, axes)
    return figure


def _origin_first(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with each model's origin before its methods: the baseline keeps its colour."""
    return sorted(cells, key=lambda cell: (cell.model, cell.method != "origin", cell.method, cell.length))


def _is_share(cell: Cell) -> bool:
    """Return whether a value is best read in percent: a share of samples, or a score between 0 and 1."""
    return is_proportion(cell) or (cell.higher_is_better is True and 0 <= cell.value <= 1)


def _add_line(axes: Axes, points: Sequence[Cell], *, factor: float, colour: str, marker: str, label: str) -> None:
    """Draw one line with its confidence intervals; unclipped, since many points lie on the axis limits."""
    bounds = [interval(cell) or Interval(cell.value, cell.value) for cell in points]
    if all(_is_share(cell) for cell in points):
        bounds = [Interval(max(0.0, low), min(1.0, high)) for low, high in bounds]
    axes.errorbar(
        [cell.length * factor for cell in points],
        [cell.value for cell in points],
        yerr=[
            [cell.value - low for cell, (low, _) in zip(points, bounds, strict=True)],
            [high - cell.value for cell, (_, high) in zip(points, bounds, strict=True)],
        ],
        color=colour,
        marker=marker,
        markersize=6,
        linewidth=1.8,
        elinewidth=1.1,
        capsize=2.5,
        label=label,
        clip_on=False,
        zorder=3,
    )


def _shift(shown: set[int], lengths: set[int], lines: int) -> float:
    """Return the distance between neighbouring lines at one length, in powers of two."""
    places = [math.log2(length) for length in sorted(lengths)]
    span = math.log2(max(shown) / min(shown)) or 1.0
    nearest = min((right - left for left, right in pairwise(places)), default=span)
    return min(span / 120, nearest / (3 * lines))


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


def _short_names(models: Iterable[str]) -> dict[str, str]:
    """Return the last part of each model's name, or the whole where that would be the same for two models."""
    full = set(models)
    last = {name: Path(name).name for name in full}
    return last if len(set(last.values())) == len(full) else {name: name for name in full}


def _subtitle(cells: Sequence[Cell], names: dict[str, str]) -> str:
    """Return which model the lines show, how many samples the points stand for and what the bars are."""
    parts = [f"model {name}" for name in names.values() if len(names) == 1]
    counts = sorted({cell.samples for cell in cells if cell.samples is not None})
    if counts:
        parts.append(f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} samples per length")
    if any(interval(cell) for cell in cells):
        parts.append("bars: 95 % confidence")
    if cells[0].higher_is_better is False:
        parts.append("lower is better")
    return "; ".join(parts)
