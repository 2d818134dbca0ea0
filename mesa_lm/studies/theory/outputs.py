"""Run the theorems' transformers over one input length; tell what they put out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mesa_lm.errors import UsageError
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
from mesa_lm.studies.theory.length_limits import failure_length, guaranteed_length
from mesa_lm.studies.theory.stack import DistanceMap, run_stack

LONGEST_RUN = 16384  # tokens; the time grows with the square
LARGEST_THRESHOLD = 1e6  # above it, float64's rounding of 1 - H hides M/t
# Outputs this close to H, relative to the values that are added up, are H: they differ by rounding alone.
EQUAL_WITHIN = 1e-13


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

    @property
    def shown(self) -> list[int]:
        """The lengths to tabulate: around M, and on to the end."""
        most = self.max_length
        around = {most // 2, most - 1, most, most + 1, 2 * most, 8 * most, self.length}
        return sorted(t for t in around if t <= self.length)

    def woven_failure(self) -> WovenFailure:
        """Return where ReRoPE's weave fails, predicted and found."""
        return WovenFailure(
            rough=self.max_length * math.exp(self.near),
            guaranteed=guaranteed_length(self.max_length, self.near),
            first=failure_length(self.max_length, self.near),
        )


class OutputCurve(NamedTuple):
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


def curves(parameters: Parameters) -> list[OutputCurve]:
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

    def curve(name: str, distance_map: str, guaranteed: float | None, states: list[Tensor]) -> OutputCurve:
        output = states[-1][:, OUTPUT]
        rounding = EQUAL_WITHIN * (max_length + abs(threshold))
        read = states[1][:, POSITION] if len(states) == 3 else torch.zeros(length)  # NoPE reads none
        failed = (output <= threshold + rounding) & (torch.arange(length) >= max_length)
        return OutputCurve(name, distance_map, output, _first(failed), _first(read >= MAX_POSITION), guaranteed)

    def woven(name: str, in_words: str, distance_map: DistanceMap, *stair_width: int) -> OutputCurve:
        states = run_stack(with_positions, tokens, distance_map)
        return curve(name, in_words, guaranteed_length(max_length, near, *stair_width), states)

    return [
        curve("NoPE", "", None, run_stack(without, tokens, None)),
        curve("PE", "d", None, run_stack(with_positions, tokens, identity)),
        woven("ReRoPE weave", f"min(d, {near})", rerope(near)),
        woven("Stair weave", f"d up to {near}, then {near} + ceil((d - {near}) / {width})", stair(near, width), width),
    ]


def _require(name: str, found: float, low: float, high: float, unit: str) -> None:
    if not low <= found <= high:  # also for a NaN
        raise UsageError(f"{name} must be from {low:.7g} to {high:.7g} {unit}, found {found:.7g}")


def _first(wanted: Tensor) -> int | None:
    """Return the first t, from 1, at which the condition holds."""
    places = wanted.nonzero()
    return int(places[0]) + 1 if len(places) else None
