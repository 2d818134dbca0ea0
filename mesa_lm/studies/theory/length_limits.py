"""How long an input the woven transformer stands: what can be proved for any length, and where ReRoPE's weave fails."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mesa_lm.studies.theory.constructions import MAX_POSITION, rerope, stair, start_weight

# Up to here every length is tried; beyond, the sums run over blocks a thousandth of their length wide.
EXACT_LEN = 2**20
BLOCK_RATIO = 1.001
# Largest length looked at: what float64 holds with room for the arithmetic.
LONGEST = 1e300
# Weights e^-d of keys further away do not reach float64's last digit.
NEGLIGIBLE_FROM = 40


def guaranteed_length(max_length: int, near: int, width: int | None = None, positions: int = MAX_POSITION) -> float:
    """Return a length below which the woven transformer provably stays above H, for every M < t.

    Layer 1 reads at least W(t-1) + 1 at t, so that 1 / a(t), the sum of layer 2's weights with the start token's scaled
    to 1, is at most the sum over i of exp(W(t-1) - W(i-1) - W(t-i)). For t >= 2N + 2 that is at most
    2 sum(exp(-(j - s(j))) for j <= N) + (t - 2N - 2) exp(-(N - s(N))), s(j) = ceil(j/E) and 0 for ReRoPE. For ReRoPE
    the bound M of this sum is reached at t = (M - 2C) e^N + 2N, C = sum of e^-j over j < N: about M e^N.

    Args:
        max_length: M in tokens.
        near: N in tokens, below M.
        width: E in tokens, for Stair PE; None for ReRoPE.
        positions: The largest position that layer 1 reads; no longer distance is covered.

    Returns:
        t in tokens, M at least.

    Source:
        This project; see docs/theory.md. The sum's growth with (t - 2N) e^-N for ReRoPE is the published argument's.
    """
    distance_map = rerope(near) if width is None else stair(near, width)
    for length in range(max_length + 1, 2 * near + 2):
        distance = distance_map(torch.arange(length)).double()
        if (distance[-1] - distance - distance.flip(0)).exp().sum() >= max_length:
            return length
    rise = [0 if width is None else -(-distance // width) for distance in range(near + 1)]
    ends = sum(math.exp(step - distance) for distance, step in enumerate(rise))
    bound = (max_length - 2 * ends) * math.exp(near - rise[near]) + 2 * near + 2
    if width is not None:
        bound = min(bound, near + width * (positions - 1 - near) + 2)
    return max(max_length, bound)


def failure_length(max_length: int, near: int, positions: int = MAX_POSITION) -> float | None:
    """Return the first length at which the transformer woven with W(d) = min(d, N) falls to H or below.

    For t >= 2N, 1 / a(t) = sum of e^(1 - g(i)) over i <= t - N + sum of e^(N + 1 - d - g(t - d)) over d < N, where g(i)
    is what layer 1 takes for i: it depends on i alone, and is read off the weight e^-N / (C + (i - N) e^-N).

    Args:
        max_length: M in tokens.
        near: N in tokens, below M.
        positions: The largest position that layer 1 reads.

    Returns:
        t in tokens: exact up to 2^20, to about six digits beyond, None where it exceeds 1e300.

    Source:
        This project; see docs/theory.md.
    """
    blocks = math.ceil(math.log(LONGEST / EXACT_LEN) / math.log(BLOCK_RATIO))
    far = EXACT_LEN * BLOCK_RATIO ** torch.arange(1, blocks + 1, dtype=torch.float64)
    length = torch.cat([torch.arange(1, EXACT_LEN + 1, dtype=torch.float64), far])
    middle = (length[1:] + length[:-1] + 1) / 2  # of the tokens after one length, up to the next
    counts = length.diff()
    weight = torch.cat([torch.ones(1), counts * (1 - _woven_position(middle, near, positions)).exp()])
    total = weight.cumsum(0)
    # At `length` + N, so that the far keys are those up to `length`.
    for distance in range(min(near, NEGLIGIBLE_FROM)):
        total += (near + 1 - distance - _woven_position(length + near - distance, near, positions)).exp()
    length += near
    failed = ((total >= max_length) & (length > max_length) & (length >= 2 * near)).nonzero()
    if not len(failed):
        return None
    first = int(failed[0])
    if first < EXACT_LEN:
        return int(length[first])
    share = (max_length - total[first - 1]) / (total[first] - total[first - 1])
    return float((length[first - 1] + share * (length[first] - length[first - 1])).ceil())


def _woven_position(length: Tensor, near: int, positions: int) -> Tensor:
    """Return what layer 1 takes for t under W(d) = min(d, N), by the feed-forward net's formula."""
    ordinary = start_weight(length.clamp(max=near + 1))
    weight = 1 / (1 / ordinary + (length - near - 1).clamp(min=0))
    # Between the knots k and k + 1, linear in the weight.
    knot = torch.log1p((math.e - 1) / weight).add(1e-9).floor().clamp(max=positions - 1)
    upper, lower = start_weight(knot), start_weight(knot + 1)
    return knot + ((upper - weight) / (upper - lower)).clamp(0, 1)
