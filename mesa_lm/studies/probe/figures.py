"""The probe's pictures: values against position, heat maps, and predicted beside measured failure lengths."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mesa_lm.lengths import length_label
from mesa_lm.reporting.figure_style import (
    COLOURS,
    FONT_SIZE,
    GRID,
    INK,
    LOOKS,
    MUTED,
    add_frame,
    house_style,
    save_figure,
    ticks_with_room,
    wrapped,
)
from mesa_lm.studies.probe.findings import Findings
from mesa_lm.studies.probe.predict import find_jumps

SUFFIXES = (".png", ".svg")
PANELS_PER_ROW = 4
HEAT_ROWS = 48  # dimensions of a heat map
PANEL_WIDTH, PANEL_HEIGHT = 2.6, 1.9  # inches
FAILURE_MARKERS = {"predicted": "D", "passkey": "o", "tail_nll": "s"}
LABELS = {"predicted": "predicted", "passkey": "passkey accuracy fails", "tail_nll": "loss of the last tokens fails"}
WIDTH = 7.0  # inches, of the picture of failure lengths
NONE_GAP = 0.11  # between the longest length and "none", of the lengths' part of the axis


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


def _panels(findings: Findings) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with one panel for each method, with common axes."""
    names = list(findings.profiles)
    rows = math.ceil(len(names) / PANELS_PER_ROW)
    columns = math.ceil(len(names) / rows)
    figure = Figure(figsize=(max(2, columns) * PANEL_WIDTH, rows * PANEL_HEIGHT + 0.5))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for unused in grid[len(names) :]:
        unused.remove()
    axes = dict(zip(names, grid, strict=False))
    step = findings.train_length * max(1, findings.length // findings.train_length // 4)
    ticks = range(0, findings.length + 1, step)
    labels = ["0" if tick == 0 else length_label(tick) for tick in ticks]
    inches = 0.75 * PANEL_WIDTH / findings.length
    labelled = ticks_with_room([tick * inches for tick in ticks], labels, range(len(labels)))
    for index, (name, panel) in enumerate(axes.items()):
        panel.set_title(wrapped(name, 0.9 * PANEL_WIDTH), size=FONT_SIZE, loc="left")
        panel.tick_params(labelbottom=index + columns >= len(names))
        panel.set_xticks([ticks[tick] for tick in labelled], [labels[tick] for tick in labelled])
    figure.supxlabel("position (tokens)", size=FONT_SIZE)
    return figure, axes


def _subtitle(findings: Findings) -> str:
    return f"model {findings.model}; {findings.text}; dotted: training length T = {findings.train_length}"


@house_style()
def values_figure(findings: Findings) -> Figure:
    """Return the value of the dimension with the highest score, one panel for each method."""
    jump = findings.jumps[0]
    figure, axes = _panels(findings)
    for name, panel in axes.items():
        profile = findings.profiles[name]
        values = profile.of_dimension(jump.layer, jump.dimension)
        panel.plot(profile.starts, values, color=LOOKS.get(name, LOOKS["origin"]).colour, linewidth=1.5)
        panel.axhline(jump.threshold, color=MUTED, linestyle="--", linewidth=0.9)
        panel.axvline(findings.train_length, color=MUTED, linestyle=":", linewidth=1.1)
        position = findings.crossings(name)[0]
        if position is not None:
            panel.plot(position, jump.threshold, marker="D", markersize=4.5, color=INK)
    figure.supylabel("value", size=FONT_SIZE)
    title = f"Layer {jump.layer}, dimension {jump.dimension}: mean value of each T/16 tokens"
    add_frame(figure, title, f"{_subtitle(findings)}; dashed: threshold; diamond: first crossing")
    return figure


@house_style()
def heat_figure(findings: Findings) -> Figure:
    """Return the dimensions with the highest scores in one layer against position, one panel for each method."""
    layer = findings.jumps[0].layer
    rows = find_jumps(findings.profiles["origin"].of_layer(layer), HEAT_ROWS)
    figure, axes = _panels(findings)
    for name, panel in axes.items():
        profile = findings.profiles[name]
        heat = np.array([jump.departure(profile.of_dimension(jump.layer, jump.dimension)).tolist() for jump in rows])
        edges = [*profile.starts, findings.length]
        image = panel.pcolormesh(edges, range(len(rows) + 1), heat, cmap="RdBu_r", vmin=-2, vmax=2, rasterized=True)
        panel.axvline(findings.train_length, color="black", linestyle=":", linewidth=1.1)
        panel.set_yticks([])
    axes["origin"].invert_yaxis()
    lines = math.ceil(len(axes) / PANELS_PER_ROW)
    bar = figure.colorbar(
        image, ax=list(axes.values()), extend="both", aspect=12, shrink=1 / lines, anchor=(0, 1), panchor=(1, 1)
    )
    bar.set_ticks([-1, 0, 1], labels=["as before T", "threshold", "as after T\nunder origin"])
    figure.supylabel("dimension", size=FONT_SIZE)
    title = f"Layer {layer}: the {len(rows)} dimensions that jump most at T, largest jump on top"
    add_frame(figure, title, _subtitle(findings))
    return figure


@house_style()
def failure_figure(findings: Findings) -> Figure:
    """Return predicted beside measured failure lengths; an open mark at the end: no failure up to there."""
    names = list(findings.profiles)
    figure = Figure(figsize=(WIDTH, 0.34 * len(names) + 0.9))
    axes = figure.add_subplot()
    failures: dict[str, dict[str, int | None]] = {"predicted": {name: findings.predicted(name) for name in names}}
    for what, curves in findings.measured.items():
        failures[what] = {name: curve.failed_at for name, curve in curves.items()}
    doublings = math.log2(findings.length / findings.train_length)
    # "none" stands beside the longest length, with room for both labels.
    end = findings.length * 2 ** (NONE_GAP * doublings)
    legend = []
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
        legend.append((Line2D([], [], marker=marker, color=colour, linestyle=""), LABELS[what]))
    axes.set_xscale("log", base=2)
    ticks = [findings.train_length * 2**step for step in range(math.floor(doublings) + 1)]
    axes.set_xticks([*ticks, end], [*map(length_label, ticks), "none"])
    axes.xaxis.minorticks_off()
    margin = 2 ** (0.04 * doublings)
    axes.set_xlim(findings.train_length / margin, end * margin)
    axes.set_yticks(range(len(names)), [wrapped(name, 0.35 * WIDTH) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.set_xlabel("failure length (tokens)")
    about = f"model {findings.model}; {findings.text}; none: no failure up to {length_label(findings.length)} tokens"
    add_frame(figure, "Predicted and measured failure length", about, legend)
    return figure
