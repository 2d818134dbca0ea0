"""Run the theorems' transformers over one input length; tell, draw and save what they put out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

from mesa_lm import __version__
from mesa_lm.errors import UsageError
from mesa_lm.reporting.plots import COLOURS, TIMELESS
from mesa_lm.studies.theory.constructions import (
    MAX_POSITION,
    OUTPUT,
    POSITION,
    identity,
    nope,
    positional,
    rerope,
    sequence,
    stair,
)
from mesa_lm.studies.theory.lengths import failure_length, guaranteed_length
from mesa_lm.studies.theory.stack import run

LONGEST_RUN = 16384  # tokens; the time grows with the square
LARGEST_THRESHOLD = 1e6  # above it, float64's rounding of 1 - H hides M/t
# Outputs this close to H, relative to the values that are added up, are H: they differ by rounding alone.
ROUNDING = 1e-13
POINTS = 400  # per curve, in the file
# NoPE and PE agree until float64's limit, the weaves nearly: the first of each pair is broad, the other above it.
STROKES = ((3.4, "-"), (1.6, "--"), (3.4, "-"), (0.9, "-"))  # widths and styles


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What the transformers are built for and run on.

    Attributes:
        max_length: M in tokens, the length past which the output without weave falls below the threshold.
        near: N in tokens, the distance up to which a weave changes nothing.
        width: E in tokens, Stair PE's tokens per step.
        threshold: H.
        length: Tokens of the input.

    Raises:
        UsageError: If one of them is out of range.
    """

    max_length: int
    near: int
    width: int
    threshold: float
    length: int

    def __post_init__(self) -> None:
        _require("M (--max-length)", self.max_length, 2, MAX_POSITION, "tokens")
        _require("N (--extrapolated-position)", self.near, 1, self.max_length - 1, "tokens, below M")
        _require("E (--extrapolated-width)", self.width, 1, LONGEST_RUN, "tokens")
        _require("H (--threshold)", self.threshold, -LARGEST_THRESHOLD, LARGEST_THRESHOLD, "in size")
        _require("--length", self.length, self.max_length + 1, LONGEST_RUN, "tokens, above M")


class Curve(NamedTuple):
    """One transformer's outputs.

    Attributes:
        name: Which transformer.
        distance_map: W in words, empty for none.
        output: (length,) o_t for t = 1 .. length.
        falls_at: First t > M with o_t at most H; None if there is none in the input.
        out_of_range_at: First t that layer 1 takes for the largest position that float64 resolves; None for none.
        guaranteed: For M < t < this, o_t is proved to be above H; None without weave.
    """

    name: str
    distance_map: str
    output: Tensor
    falls_at: int | None
    out_of_range_at: int | None
    guaranteed: float | None


class WovenFailure(NamedTuple):
    """Where ReRoPE's weave fails in turn, in tokens.

    Attributes:
        rough: M e^N.
        guaranteed: (M - 2C) e^N + 2N, reached exactly where layer 1 saturates at N + 1.
        first: The first failing length of the weights as built; None beyond 1e300.
    """

    rough: float
    guaranteed: float
    first: float | None


def curves(parameters: Parameters) -> list[Curve]:
    """Run the four transformers: NoPE, PE, and PE's weights with two weaves.

    Args:
        parameters: What to build and run.

    Returns:
        One curve for each.
    """
    max_length, threshold, length = parameters.max_length, parameters.threshold, parameters.length
    near, width = parameters.near, parameters.width
    tokens = sequence(length)
    without, with_positions = nope(max_length, threshold), positional(max_length, threshold)
    runs = (
        ("NoPE", "", None, run(without, tokens, None)),
        ("PE", "d", None, run(with_positions, tokens, identity)),
        (
            "ReRoPE weave",
            f"min(d, {near})",
            guaranteed_length(max_length, near),
            run(with_positions, tokens, rerope(near)),
        ),
        (
            "Stair weave",
            f"d up to {near}, then {near} + ceil((d - {near}) / {width})",
            guaranteed_length(max_length, near, width),
            run(with_positions, tokens, stair(near, width)),
        ),
    )
    found = []
    for name, distance_map, guaranteed, states in runs:
        output = states[-1][:, OUTPUT]
        rounding = ROUNDING * (max_length + abs(threshold))
        read = states[1][:, POSITION] if len(states) == 3 else torch.zeros(length)  # NoPE reads none
        found.append(
            Curve(
                name,
                distance_map,
                output,
                _first((output <= threshold + rounding) & (torch.arange(length) >= max_length)),
                _first(read >= MAX_POSITION),
                guaranteed,
            )
        )
    return found


def woven_failure(parameters: Parameters) -> WovenFailure:
    """Return where ReRoPE's weave fails, predicted and found.

    Args:
        parameters: Of which M and N count.
    """
    max_length, near = parameters.max_length, parameters.near
    return WovenFailure(
        max_length * math.exp(near), guaranteed_length(max_length, near), failure_length(max_length, near)
    )


def lengths_shown(parameters: Parameters) -> list[int]:
    """Return the lengths to tabulate: around M, and on to the end.

    Args:
        parameters: Of which M and the length count.
    """
    max_length, length = parameters.max_length, parameters.length
    around = {max_length // 2, max_length - 1, max_length, max_length + 1, 2 * max_length, 8 * max_length, length}
    return sorted(t for t in around if t <= length)


def save(parameters: Parameters, found: list[Curve], failure: WovenFailure, folder: Path) -> list[Path]:
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
    with matplotlib.rc_context({"svg.hashsalt": "mesa-lm", "axes.spines.top": False, "axes.spines.right": False}):
        figure = _figure(parameters, found)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in paths[:2]:
                figure.savefig(path, dpi=160, metadata=TIMELESS[path.suffix])
            paths[2].write_text(json.dumps(_content(parameters, found, failure), indent=1) + "\n")
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written to: {error.strerror or error}") from error
    return paths


def _require(name: str, found: float, low: float, high: float, unit: str) -> None:
    if not low <= found <= high:  # also for a NaN
        raise UsageError(f"{name} must be from {low:.7g} to {high:.7g} {unit}, found {found:.7g}")


def _first(wanted: Tensor) -> int | None:
    """Return the first t, from 1, at which the condition holds."""
    places = wanted.nonzero()
    return int(places[0]) + 1 if len(places) else None


def _content(parameters: Parameters, found: list[Curve], failure: WovenFailure) -> dict[str, Any]:
    """Return what the JSON file holds."""
    return {
        "mesa_lm": __version__,
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
    return sorted({*spaced, *lengths_shown(parameters)})


def _figure(parameters: Parameters, found: list[Curve]) -> Figure:
    """Return the figure: o_t against t, with the threshold and M."""
    threshold, max_length, length = parameters.threshold, parameters.max_length, parameters.length
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for curve, colour, (broad, style) in zip(found, COLOURS, STROKES, strict=False):
        axes.plot(
            range(1, length + 1),
            curve.output,
            color=colour,
            linestyle=style,
            linewidth=broad,
            label=curve.name,
            zorder=3,
        )
    axes.axhline(threshold, color="0.2", linewidth=1.0, zorder=2)
    axes.axvline(max_length, color="0.35", linestyle=":", linewidth=1.4, zorder=2)
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, length)
    ticks = [2**power for power in range(length.bit_length())]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    # Linear around H, where the sign of o_t - H counts, and logarithmic further off.
    axes.set_yscale(
        "function", functions=(lambda o: np.arcsinh(o - threshold), lambda place: np.sinh(place) + threshold)
    )
    steps = [-1, 0, 1, *(step * 10**power for power in range(4) for step in (3, 10) if step * 10**power < max_length)]
    axes.yaxis.set_major_locator(FixedLocator([threshold + step for step in steps]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda o, _: f"{o:g}"))
    axes.set_ylim(threshold - 1.25, threshold + 1.1 * max_length)
    axes.text(1.06, threshold + 0.06, f"threshold H = {threshold:g}", fontsize=9, color="0.2")
    axes.text(max_length * 1.05, threshold + 0.8 * max_length, f"M = {max_length}", fontsize=9, color="0.35")
    axes.set_xlabel("t (tokens)")
    axes.set_ylabel("output o_t")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title("The theorems' transformers: output by length\n", fontsize=12, loc="left")
    about = f"M = {max_length}, N = {parameters.near}, E = {parameters.width}; PE and both weaves share their weights"
    axes.text(0, 1.04, about, transform=axes.transAxes, fontsize=9, color="0.35")
    figure.legend(loc="outside lower center", ncols=len(found), frameon=False, fontsize=9, handlelength=3)
    return figure
