"""Draw and save what the theorems' transformers put out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mesa_lm.reporting.figure_style import (
    COLOURS,
    GRID,
    INK,
    LOOKS,
    MUTED,
    add_frame,
    house_style,
    save_figure,
    ticks_with_room,
)
from mesa_lm.reporting.files import save_file
from mesa_lm.studies.theory.outputs import OutputCurve, Parameters, WovenFailure

POINTS = 400  # per curve, in the file
# NoPE and PE agree until float64's limit, the weaves nearly: the first of each pair is broad, the other above it.
WIDTH = 7.0  # inches
CURVE_COLOURS = (COLOURS[3], LOOKS["origin"].colour, LOOKS["rerope"].colour, LOOKS["stair"].colour)
STROKES = ((3.4, "-"), (1.6, "--"), (3.4, "-"), (0.9, "-"))  # widths and styles


def save_outputs(parameters: Parameters, found: list[OutputCurve], failure: WovenFailure, folder: Path) -> list[Path]:
    """Write theory.png, theory.svg and theory.json.

    Args:
        parameters: What was run.
        found: Its curves.
        failure: Where the weave fails.
        folder: Where to write; made if missing.

    Returns:
        The files' paths.

    Raises:
        UsageError: If one cannot be written.
    """
    paths = [folder / f"theory{suffix}" for suffix in (".png", ".svg", ".json")]
    figure = output_figure(parameters, found)
    for path in paths[:2]:
        save_figure(figure, path)
    save_file(paths[2], json.dumps(_content(parameters, found, failure), indent=1) + "\n")
    return paths


@house_style()
def output_figure(parameters: Parameters, found: list[OutputCurve]) -> Figure:
    """Return the figure: o_t against t, with the threshold and M."""
    threshold, max_length, length = parameters.threshold, parameters.max_length, parameters.length
    figure = Figure(figsize=(WIDTH, 4.0))
    axes = figure.add_subplot()
    legend = []
    for curve, colour, (broad, style) in zip(found, CURVE_COLOURS, STROKES, strict=False):
        (line,) = axes.plot(
            range(1, length + 1), curve.output, color=colour, linestyle=style, linewidth=broad, zorder=3
        )
        legend.append((line, curve.name))
    axes.axhline(threshold, color=INK, linewidth=1.0, zorder=2)
    axes.axvline(max_length, color=MUTED, linestyle=":", linewidth=1.4, zorder=2)
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, length)
    powers = range(length.bit_length())
    inches = 0.8 * WIDTH / math.log2(length)
    labelled = ticks_with_room([power * inches for power in powers], [str(2**power) for power in powers], powers)
    axes.set_xticks([2**power for power in labelled], [str(2**power) for power in labelled])
    axes.xaxis.set_minor_locator(NullLocator())
    # Linear around H, where the sign of o_t - H counts, and logarithmic further off.
    axes.set_yscale(
        "function", functions=(lambda o: np.arcsinh(o - threshold), lambda place: np.sinh(place) + threshold)
    )
    steps = [-1, 0, 1, *(step * 10**power for power in range(4) for step in (3, 10) if step * 10**power < max_length)]
    axes.yaxis.set_major_locator(FixedLocator([threshold + step for step in steps]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda o, _: f"{o:g}"))
    axes.set_ylim(threshold - 1.25, threshold + 1.1 * max_length)
    beside: dict[str, Any] = {"textcoords": "offset points", "color": MUTED}
    axes.annotate(f"threshold H = {threshold:g}", (1, threshold), (4, 3), **beside)
    # On the side of the line that has room.
    shift, side = (-4, "right") if max_length**2 > length else (4, "left")
    axes.annotate(f"M = {max_length}", (max_length, axes.get_ylim()[1]), (shift, -3), ha=side, va="top", **beside)
    axes.set_xlabel("t (tokens)")
    axes.set_ylabel("output o_t")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    about = f"M = {max_length}, N = {parameters.near}, E = {parameters.width}; PE and both weaves share their weights"
    add_frame(figure, "The theorems' transformers: output by length", about, legend)
    return figure


def _content(parameters: Parameters, found: list[OutputCurve], failure: WovenFailure) -> dict[str, Any]:
    """Return what the JSON file holds."""
    return {
        "mesa_lm": version("mesa-lm"),
        "parameters": asdict(parameters),
        "constructions": [
            {
                **curve._asdict(),
                "output": [[t, curve.output[t - 1].item()] for t in _lengths_kept(parameters)],
            }
            for curve in found
        ],
        "rerope_failure": failure._asdict(),
    }


def _lengths_kept(parameters: Parameters) -> list[int]:
    """Return those shown, and others equally far apart on a logarithmic axis."""
    spaced = (round(t) for t in np.geomspace(1, parameters.length, POINTS))
    return sorted({*spaced, *parameters.shown})
