"""The probe's pictures: values against position, heat maps, and predicted beside measured failure lengths."""

import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mesa_lm.errors import UsageError
from mesa_lm.reporting.plots import COLOURS, TIMELESS
from mesa_lm.reporting.results import length_label
from mesa_lm.studies.probe.predict import find_jumps, values_of
from mesa_lm.studies.probe.report import Report

SUFFIXES = (".png", ".svg")
COLUMNS = 4
HEAT_ROWS = 48  # dimensions of a heat map
PANEL_WIDTH, PANEL_HEIGHT = 2.6, 1.9  # inches
MARKERS = {"predicted": "D", "passkey": "o", "tail_nll": "s"}
LABELS = {"predicted": "predicted", "passkey": "passkey accuracy fails", "tail_nll": "loss of the last tokens fails"}
GREY = "0.35"


def draw_all(report: Report, folder: Path) -> list[Path]:
    """Draw every picture as PNG and SVG.

    Args:
        report: What to draw.
        folder: Where to; it exists.

    Returns:
        The files.

    Raises:
        UsageError: A file cannot be written.
    """
    paths = []
    with matplotlib.rc_context({"svg.hashsalt": "mesa-lm", "axes.spines.top": False, "axes.spines.right": False}):
        for name, draw in (("values", _values), ("heat", _heat), ("lengths", _lengths)):
            figure = draw(report)
            for suffix in SUFFIXES:
                path = folder / f"probe_{name}{suffix}"
                try:
                    figure.savefig(path, dpi=130, metadata=TIMELESS[suffix])
                except OSError as error:
                    raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
                paths.append(path)
    return paths


def _panels(report: Report, title: str) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with one panel for each method, with common axes."""
    names = list(report.profiles)
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(2, columns) * PANEL_WIDTH, rows * PANEL_HEIGHT + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for unused in grid[len(names) :]:
        unused.remove()
    axes = dict(zip(names, grid, strict=False))
    for index, (name, panel) in enumerate(axes.items()):
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=8, labelbottom=index + columns >= len(names))
        ticks = range(0, report.length + 1, report.train_length * max(1, report.length // report.train_length // 4))
        panel.set_xticks(list(ticks), ["0" if tick == 0 else length_label(tick) for tick in ticks])
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.supxlabel("position (tokens)", fontsize=9)
    return figure, axes


def _values(report: Report) -> Figure:
    """Draw the value of the dimension with the highest score, one panel for each method."""
    jump = report.jumps[0]
    title = f"layer {jump.layer}, dimension {jump.dimension}: mean value of each T/16 tokens; {report.text}"
    figure, axes = _panels(report, title)
    for index, (name, panel) in enumerate(axes.items()):
        profile = report.profiles[name]
        values = values_of(profile, report.layers, jump)
        panel.plot(profile.starts, values, color=COLOURS[index % len(COLOURS)], linewidth=1.3)
        threshold = panel.axhline(jump.threshold, color=GREY, linestyle="--", linewidth=0.9)
        train_length = panel.axvline(report.train_length, color=GREY, linestyle=":", linewidth=1.1)
        position = report.crossings(name)[0]
        if position is not None:
            panel.plot(position, jump.threshold, marker="D", markersize=4.5, color="black")
    crossing_mark = Line2D([], [], marker="D", markersize=4.5, color="black", linestyle="")
    figure.legend(
        [train_length, threshold, crossing_mark],
        [f"T = {report.train_length}", "threshold", "first crossing"],
        loc="outside lower right",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    figure.supylabel("value", fontsize=9)
    return figure


def _heat(report: Report) -> Figure:
    """Draw the dimensions with the highest scores in one layer against position, one panel for each method."""
    layer = report.jumps[0].layer
    index = report.layers.index(layer)
    origin = report.profiles["origin"]
    rows = find_jumps(replace(origin, values=origin.values[index : index + 1]), [layer], HEAT_ROWS)
    title = f"layer {layer}, {len(rows)} dimensions, largest jump on top; {report.text}"
    figure, axes = _panels(report, title)
    for name, panel in axes.items():
        profile = report.profiles[name]
        heat = np.array([jump.departure(values_of(profile, report.layers, jump)).tolist() for jump in rows])
        edges = [*profile.starts, report.length]
        image = panel.pcolormesh(edges, range(len(rows) + 1), heat, cmap="RdBu_r", vmin=-2, vmax=2, rasterized=True)
        panel.axvline(report.train_length, color="black", linestyle=":", linewidth=1.1)
        panel.set_yticks([])
    axes["origin"].invert_yaxis()
    bar = figure.colorbar(image, ax=list(axes.values()), extend="both", aspect=30)
    bar.set_ticks([-1, 0, 1], labels=["as before T", "threshold", "as after T\nunder origin"])
    bar.ax.tick_params(labelsize=8)
    figure.supylabel("dimension", fontsize=9)
    return figure


def _lengths(report: Report) -> Figure:
    """Draw predicted beside measured failure lengths; an open mark at the end: no failure up to there."""
    names = list(report.profiles)
    figure = Figure(figsize=(7.0, 0.34 * len(names) + 1.7), layout="constrained")
    axes = figure.add_subplot()
    failures: dict[str, dict[str, int | None]] = {"predicted": {name: report.predicted(name) for name in names}}
    for what, curves in report.measured.items():
        failures[what] = {name: curve.failed_at for name, curve in curves.items()}
    end = report.length * 1.12
    for offset, (what, lengths) in enumerate(failures.items()):
        colour, marker, shift = COLOURS[offset], MARKERS[what], 0.22 * (offset - 1)
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
    doublings = math.floor(math.log2(report.length / report.train_length))
    ticks = [report.train_length * 2**step for step in range(doublings + 1)]
    axes.set_xticks([*ticks, end], [*map(length_label, ticks), "none"])
    axes.xaxis.minorticks_off()
    axes.set_xlim(report.train_length * 0.92, end * 1.08)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"failure length (tokens); none: no failure up to {report.length}")
    axes.set_title("Predicted and measured failure length", fontsize=11, loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure
