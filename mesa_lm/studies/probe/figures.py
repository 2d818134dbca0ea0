"""The probe's pictures: values against position, heat maps, and predicted beside measured failure lengths."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mesa_lm.lengths import length_label
from mesa_lm.reporting.figure_style import COLOURS, house_style, save_figure
from mesa_lm.studies.probe.findings import Findings
from mesa_lm.studies.probe.predict import find_jumps

SUFFIXES = (".png", ".svg")
PANELS_PER_ROW = 4
HEAT_ROWS = 48  # dimensions of a heat map
PANEL_WIDTH, PANEL_HEIGHT = 2.6, 1.9  # inches
FAILURE_MARKERS = {"predicted": "D", "passkey": "o", "tail_nll": "s"}
LABELS = {"predicted": "predicted", "passkey": "passkey accuracy fails", "tail_nll": "loss of the last tokens fails"}
GREY = "0.35"


def save_figures(findings: Findings, folder: Path) -> list[Path]:
    """Draw every picture as PNG and SVG.

    Args:
        findings: What to draw.
        folder: Where to.

    Returns:
        The files.

    Raises:
        UsageError: A file cannot be written.
    """
    paths = []
    for name, draw in (("values", values_figure), ("heat", heat_figure), ("lengths", failure_figure)):
        figure = draw(findings)
        for suffix in SUFFIXES:
            paths.append(folder / f"probe_{name}{suffix}")
            save_figure(figure, paths[-1], dpi=130)
    return paths


def _panels(findings: Findings, title: str) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with one panel for each method, with common axes."""
    names = list(findings.profiles)
    columns = min(PANELS_PER_ROW, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(2, columns) * PANEL_WIDTH, rows * PANEL_HEIGHT + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for unused in grid[len(names) :]:
        unused.remove()
    axes = dict(zip(names, grid, strict=False))
    for index, (name, panel) in enumerate(axes.items()):
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=8, labelbottom=index + columns >= len(names))
        ticks = range(
            0, findings.length + 1, findings.train_length * max(1, findings.length // findings.train_length // 4)
        )
        panel.set_xticks(list(ticks), ["0" if tick == 0 else length_label(tick) for tick in ticks])
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.supxlabel("position (tokens)", fontsize=9)
    return figure, axes


@house_style()
def values_figure(findings: Findings) -> Figure:
    """Return the value of the dimension with the highest score, one panel for each method."""
    jump = findings.jumps[0]
    title = f"layer {jump.layer}, dimension {jump.dimension}: mean value of each T/16 tokens; {findings.text}"
    figure, axes = _panels(findings, title)
    for index, (name, panel) in enumerate(axes.items()):
        profile = findings.profiles[name]
        values = profile.of_dimension(jump.layer, jump.dimension)
        panel.plot(profile.starts, values, color=COLOURS[index % len(COLOURS)], linewidth=1.3)
        threshold = panel.axhline(jump.threshold, color=GREY, linestyle="--", linewidth=0.9)
        train_length = panel.axvline(findings.train_length, color=GREY, linestyle=":", linewidth=1.1)
        position = findings.crossings(name)[0]
        if position is not None:
            panel.plot(position, jump.threshold, marker="D", markersize=4.5, color="black")
    crossing_mark = Line2D([], [], marker="D", markersize=4.5, color="black", linestyle="")
    figure.legend(
        [train_length, threshold, crossing_mark],
        [f"T = {findings.train_length}", "threshold", "first crossing"],
        loc="outside lower right",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    figure.supylabel("value", fontsize=9)
    return figure


@house_style()
def heat_figure(findings: Findings) -> Figure:
    """Return the dimensions with the highest scores in one layer against position, one panel for each method."""
    layer = findings.jumps[0].layer
    rows = find_jumps(findings.profiles["origin"].of_layer(layer), HEAT_ROWS)
    title = f"layer {layer}, {len(rows)} dimensions, largest jump on top; {findings.text}"
    figure, axes = _panels(findings, title)
    for name, panel in axes.items():
        profile = findings.profiles[name]
        heat = np.array([jump.departure(profile.of_dimension(jump.layer, jump.dimension)).tolist() for jump in rows])
        edges = [*profile.starts, findings.length]
        image = panel.pcolormesh(edges, range(len(rows) + 1), heat, cmap="RdBu_r", vmin=-2, vmax=2, rasterized=True)
        panel.axvline(findings.train_length, color="black", linestyle=":", linewidth=1.1)
        panel.set_yticks([])
    axes["origin"].invert_yaxis()
    bar = figure.colorbar(image, ax=list(axes.values()), extend="both", aspect=30)
    bar.set_ticks([-1, 0, 1], labels=["as before T", "threshold", "as after T\nunder origin"])
    bar.ax.tick_params(labelsize=8)
    figure.supylabel("dimension", fontsize=9)
    return figure


@house_style()
def failure_figure(findings: Findings) -> Figure:
    """Return predicted beside measured failure lengths; an open mark at the end: no failure up to there."""
    names = list(findings.profiles)
    figure = Figure(figsize=(7.0, 0.34 * len(names) + 1.7), layout="constrained")
    axes = figure.add_subplot()
    failures: dict[str, dict[str, int | None]] = {"predicted": {name: findings.predicted(name) for name in names}}
    for what, curves in findings.measured.items():
        failures[what] = {name: curve.failed_at for name, curve in curves.items()}
    end = findings.length * 1.12
    for offset, (what, lengths) in enumerate(failures.items()):
        colour, marker, shift = COLOURS[offset], FAILURE_MARKERS[what], 0.22 * (offset - 1)
        for name, length in lengths.items():
            face = "none" if length is None else colour
            axes.plot(
                end if length is None else length,
                names.index(name) + shift,
                marker=marker,
                markersize=6,
                markerfacecolor=face,
                markeredgecolor=colour,
                linestyle="",
            )
        axes.plot([], [], marker=marker, color=colour, linestyle="", label=LABELS[what])
    axes.set_xscale("log", base=2)
    doublings = math.floor(math.log2(findings.length / findings.train_length))
    ticks = [findings.train_length * 2**step for step in range(doublings + 1)]
    axes.set_xticks([*ticks, end], [*map(length_label, ticks), "none"])
    axes.xaxis.minorticks_off()
    axes.set_xlim(findings.train_length * 0.92, end * 1.08)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"failure length (tokens); none: no failure up to {findings.length}")
    axes.set_title("Predicted and measured failure length", fontsize=11, loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure
