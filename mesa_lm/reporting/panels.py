"""Draw depth x length heat maps, and the loss by position within one input."""

import math
import re
from collections.abc import Sequence
from itertools import cycle, groupby
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import NullLocator

from mesa_lm.errors import UsageError
from mesa_lm.reporting.plots import COLOURS, MARKERS, METRIC_LABELS, save, short_names
from mesa_lm.reporting.results import DEPTH, Cell, interval, length_label

POSITION = re.compile(r"nll_([0-9]+)_([0-9]+)")  # NLL of the tokens from one position to another
COLUMNS = 3
CELL_WIDTH, CELL_HEIGHT = 0.52, 0.3  # inches
# Where a value is written in black instead of white: the upper, light half of the colour map.
LIGHT = 0.55


def draw_depths(cells: Sequence[Cell], metric: str, path: Path) -> None:
    """Draw a metric by depth and input length, a heat map per model and method.

    Args:
        cells: Cells of one task, in the order of `results.read`; those named `METRIC_depth_P` are drawn.
        metric: The metric, a share from 0 to 1.
        path: The file to write, `.png`, `.svg` or `.pdf`.

    Raises:
        UsageError: If no cell says a depth, or the file cannot be written.
    """
    chosen = [
        (cell, float(match[2])) for cell in cells if (match := DEPTH.fullmatch(cell.metric)) and match[1] == metric
    ]
    if not chosen:
        raise UsageError(f"no {metric} by depth in the results: needed are results of passkey_grid")
    save(path, lambda: _depth_figure(chosen, metric))


def draw_positions(cells: Sequence[Cell], path: Path, length: int | None = None) -> None:
    """Draw the mean NLL by position within inputs of one length, a line per model and method with 95% bands.

    Args:
        cells: Cells of one task, in the order of `results.read`; those named `nll_FROM_TO` are drawn.
        path: The file to write, `.png`, `.svg` or `.pdf`.
        length: Input length in tokens; None for the longest there is.

    Raises:
        UsageError: If no cell says a position, none has that length, or the file cannot be written.
    """
    chosen = [cell for cell in cells if POSITION.fullmatch(cell.metric)]
    if not chosen:
        raise UsageError("no NLL by position in the results: needed are results of long_ppl")
    lengths = sorted({cell.length for cell in chosen})
    if length is None:
        length = lengths[-1]
    if length not in lengths:
        raise UsageError(f"no NLL by position at length {length} (allowed: {', '.join(map(str, lengths))})")
    save(path, lambda: _position_figure([cell for cell in chosen if cell.length == length]))


def _depth_figure(chosen: Sequence[tuple[Cell, float]], metric: str) -> Figure:
    """Return the heat maps, all over the same lengths and depths and on one colour scale."""
    lengths = sorted({cell.length for cell, _ in chosen})
    depths = sorted({depth for _, depth in chosen})
    names = short_names(cell.model for cell, _ in chosen)
    maps: dict[tuple[str, str], dict[tuple[int, float], Cell]] = {}
    for cell, depth in sorted(chosen, key=lambda item: (item[0].model, item[0].method != "origin", item[0].method)):
        maps.setdefault((cell.model, cell.method), {})[cell.length, depth] = cell
    measured = METRIC_LABELS.get(metric, metric)
    columns = min(COLUMNS, len(maps))
    rows = math.ceil(len(maps) / columns)
    width = columns * max(3.2, CELL_WIDTH * len(lengths) + 0.9) + 1.0
    height = rows * (CELL_HEIGHT * max(4, len(depths)) + 0.9) + 0.7
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, ((model, method), found) in zip(grid.flat, maps.items(), strict=False):
        image = _add_map(axes, found, lengths, depths)
        title = method if len(names) == 1 else f"{names[model]}: {method}"
        axes.set_title(fill(title, 34), fontsize=10, loc="left")
    for axes in grid.flat[len(maps) :]:
        axes.set_axis_off()
    model = f", model {next(iter(names.values()))}" if len(names) == 1 else ""
    figure.suptitle(f"{chosen[0][0].task}: {measured} by depth and input length{model}", fontsize=12, x=0.01, ha="left")
    figure.supxlabel("input length (tokens); dotted: training length T", fontsize=10)
    figure.supylabel("depth (% of the text before the key)", fontsize=10)
    figure.colorbar(image, ax=grid, label=measured, fraction=0.05)
    return figure


def _add_map(axes: Axes, found: dict[tuple[int, float], Cell], lengths: list[int], depths: list[float]) -> AxesImage:
    """Draw one heat map with its values written in; what was not measured stays empty."""
    rows = [[found[n, d].value if (n, d) in found else math.nan for n in lengths] for d in depths]
    # Cividis grows evenly in lightness, for every form of colour vision.
    image = axes.imshow(rows, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            if not math.isnan(value):
                colour = "black" if value > LIGHT else "white"
                axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(lengths)), [length_label(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    train_length = next(iter(found.values())).train_length
    if train_length is not None:
        # Between the lengths within T and those beyond; a line at the edge is seen there, too.
        place = sum(length <= train_length for length in lengths) - 0.5
        axes.axvline(place, color="#D55E00", linestyle=":", linewidth=2.5, clip_on=False)
    return image


def _position_figure(cells: Sequence[Cell]) -> Figure:
    """Return the lines over the positions of one length."""
    names = short_names(cell.model for cell in cells)
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.add_subplot()
    ordered = sorted(cells, key=lambda cell: (cell.model, cell.method != "origin", cell.method, _bucket(cell)))
    lines = groupby(ordered, key=lambda cell: (cell.model, cell.method))
    for ((model, method), group), colour, marker in zip(lines, cycle(COLOURS), cycle(MARKERS), strict=False):
        points = list(group)
        places = [sum(_bucket(cell)) / 2 for cell in points]
        label = method if len(names) == 1 else f"{names[model]}: {method}"
        axes.plot(places, [cell.value for cell in points], color=colour, marker=marker, label=fill(label, 60))
        bounds = [interval(cell) or (cell.value, cell.value) for cell in points]
        lows, highs = zip(*bounds, strict=True)
        axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
    for length in sorted({cell.train_length for cell in cells if cell.train_length is not None}):
        axes.axvline(length, color="0.35", linestyle=":", label=f"training length T = {length_label(length)}")
    axes.set_xscale("log", base=2)
    edges = sorted({edge for cell in cells for edge in _bucket(cell)} - {0})
    axes.set_xticks(edges, [length_label(edge) for edge in edges])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("position (tokens), each point the middle of its stretch")
    axes.set_ylabel("mean NLL (nats per token)")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    title = f"{cells[0].task}: NLL by position in inputs of {length_label(cells[0].length)} tokens"
    axes.set_title(title + "\n", fontsize=12, loc="left")
    parts = [f"model {name}" for name in names.values() if len(names) == 1]
    parts += [f"{cells[0].samples} samples"] if cells[0].samples else []
    subtitle = "; ".join([*parts, "bands: 95 % confidence", "lower is better"])
    axes.text(0, 1.04, subtitle, transform=axes.transAxes, fontsize=9, color="0.35")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _bucket(cell: Cell) -> tuple[int, int]:
    """Return the first position of a stretch and the one after its last."""
    match = POSITION.fullmatch(cell.metric)
    assert match is not None
    return int(match[1]), int(match[2])
