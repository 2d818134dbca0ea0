"""Find the dimensions that jump at T, and where a method takes them past the threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mesa_lm.errors import UsageError
from mesa_lm.studies.probe.profile import Profile

WINDOW = 8  # blocks on either side of T, half of T
LASTING = 2  # blocks that must lie past the threshold one after another
MIN_SCORE = 1.0
# Below this share of the layer's mean magnitude a spread is rounding, not variation.
NEGLIGIBLE_SPREAD = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Jump:
    """Describe a dimension whose value jumps at T under `origin`.

    Args:
        layer: Decoder layer, from 0.
        dimension: Dimension of the hidden state, from 0.
        score: Size of the jump in spreads; see `find_jumps`.
        below: Mean over the T/2 tokens before T.
        above: Mean over the T/2 tokens from T on.
    """

    layer: int
    dimension: int
    score: float
    below: float
    above: float

    @property
    def threshold(self) -> float:
        """The value at T, smoothed over the T tokens around it."""
        return (self.below + self.above) / 2

    def departure(self, values: Tensor) -> Tensor:
        """Return values on a scale of -1 (usual before T), 0 (the threshold) and 1 (usual from T on)."""
        return (values - self.threshold) / (self.above - self.threshold)


def find_jumps(origin: Profile, top: int) -> list[Jump]:
    """Rank the dimensions by how far their value jumps at T.

    The score is |mean after - mean before| / (deviation after + deviation before), over the block means of the T/2
    tokens on either side of T; a dimension jumps if it is at least 1.

    Args:
        origin: Of the untouched model, at least 3/2 T long.
        top: Most dimensions to return.

    Returns:
        The dimensions with the highest scores, highest first.

    Raises:
        UsageError: No dimension jumps.
    """
    edge = origin.boundary
    before, after = origin.values[:, edge - WINDOW : edge], origin.values[:, edge : edge + WINDOW]
    floor = NEGLIGIBLE_SPREAD * before.abs().mean(dim=(1, 2))[:, None]
    below, above = before.mean(1), after.mean(1)
    score = (above - below).abs() / (before.std(1) + after.std(1) + floor)
    scores, places = score.flatten().sort(descending=True, stable=True)
    if scores[0] < MIN_SCORE:
        raise UsageError(
            f"probe: no dimension jumps at T={origin.train_length}: the highest score is {scores[0]:.2f}, needed is "
            f"{MIN_SCORE:.0f}; try another --word or --text, or more --layers"
        )
    size = score.shape[1]
    return [
        Jump(
            layer=origin.layers[place // size],
            dimension=place % size,
            score=value,
            below=float(below.flatten()[place]),
            above=float(above.flatten()[place]),
        )
        for value, place in zip(scores[:top].tolist(), places[:top].tolist(), strict=True)
        if value >= MIN_SCORE
    ]


def crossing(profile: Profile, jump: Jump) -> int | None:
    """Return the first position from T on at which a dimension goes past its threshold and stays for T/8 tokens.

    Args:
        profile: Of any method.
        jump: The dimension.

    Returns:
        A position, the first of a block; None if there is none up to the end.
    """
    past = jump.departure(profile.of_dimension(jump.layer, jump.dimension)) > 0
    lasting = past.unfold(0, LASTING, 1).all(-1)[profile.boundary :].nonzero()
    return profile.starts[profile.boundary + int(lasting[0])] if len(lasting) else None


def predicted_length(crossings: Sequence[int | None]) -> int | None:
    """Return the position by which at least half of the dimensions have crossed, None if they never have."""
    half = math.ceil(len(crossings) / 2)
    crossed = sorted(position for position in crossings if position is not None)
    return crossed[half - 1] if len(crossed) >= half else None
