"""The weights of the theorems' transformers, and the maps of relative positions they are run with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mesa_lm.methods.weaves import Placement, Stair
from mesa_lm.studies.theory.stack import DistanceMap, Layer, Stack

# Tokens: the start token, and one id for all others, since no construction tells them apart.
START, OTHER = 0, 1
# Components of the hidden states, from 0: constant 1; 1 at the start token alone; the output; layer 1's weight of the
# start token; the position read from it.
ONE, IS_START, OUTPUT, WEIGHT, POSITION = range(5)
# Layer 1's weight of the start token is about e^-t, which is below float64's normal numbers from t = 709 on.
MAX_POSITION = 700


def sequence(length: int) -> Tensor:
    """Return the (length,) tokens of an input: the start token, then others.

    Args:
        length: Tokens, at least 1.
    """
    return (torch.arange(length) > 0).long()


def nope(max_length: int, threshold: float) -> Stack:
    """Build theorem 3.1's transformer, to be run without relative positions.

    Keys are constant, so attention is uniform; values are (M [start token], 1 - H), and the output is their
    difference: o_t = M/t - 1 + H, above H exactly while t < M.

    Args:
        max_length: M in tokens.
        threshold: H.

    Returns:
        A stack of one layer; component `OUTPUT` of its last states is o_t.

    Source:
        arXiv 2410.15859, theorem 3.1.
    """
    width = OUTPUT + 1
    return Stack(embedding=_embedding(width), layers=(_output_layer(width, max_length, threshold),))


def positional(max_length: int, threshold: float, positions: int = MAX_POSITION) -> Stack:
    """Build the transformer of theorem 3.2, to be run with W(d) = d, and of 3.3 and corollary 4.1, with other maps.

    Layer 1 has zero queries and keys and reads the start token: under W(d) = d its weight is p(t) = (e-1)/(e^t - 1),
    which falls strictly in t, and the feed-forward net recovers t from it. Layer 2 scores q.k = t * 1 + 1 * (-i), which
    cancels the bias -(t - i); attention is then uniform as in `nope`. Where the published proof takes t - i for a
    product of one component with another, -t*i, this takes two components.

    Args:
        max_length: M in tokens.
        threshold: H.
        positions: The largest t that the feed-forward net recovers, M at least; it reads smaller weights as this t.

    Returns:
        A stack of two layers; component `OUTPUT` of its last states is o_t, `POSITION` what layer 1 took for t.

    Source:
        arXiv 2410.15859, theorems 3.2 and 3.3, corollary 4.1.
    """
    width = POSITION + 1
    feed_in, feed_out = _position_net(width, positions)
    query, key = _zeros(width, 2), _zeros(width, 2)
    query[POSITION, 0], query[ONE, 1] = 1.0, 1.0
    key[ONE, 0], key[POSITION, 1] = 1.0, -1.0
    value, output = _zeros(width, 1), _zeros(1, width)
    value[IS_START, 0], output[0, WEIGHT] = 1.0, 1.0
    reader = Layer(
        query=_zeros(width, 2),
        key=_zeros(width, 2),
        value=value,
        output=output,
        feed_in=feed_in,
        feed_out=feed_out,
    )
    return Stack(
        embedding=_embedding(width),
        layers=(reader, _output_layer(width, max_length, threshold, query, key)),
    )


def identity(distance: Tensor) -> Tensor:
    """Return W(d) = d: ordinary relative positions."""
    return distance


def rerope(near: int) -> DistanceMap:
    """Return W(d) = min(d, N), the weave of theorem 3.3.

    Args:
        near: N in tokens.
    """
    return lambda distance: distance.clamp(max=near)


def stair(near: int, width: int) -> DistanceMap:
    """Return Stair PE, the weave of corollary 4.1: W(d) = d up to N, then N + ceil((d - N) / E).

    Args:
        near: N in tokens.
        width: E, tokens per step.
    """

    def woven(distance: Tensor) -> Tensor:
        last = int(distance.max())
        return last - Placement(last=last, weave=Stair(near=near, width=width)).position(last - distance)

    return woven


def start_weight(position: Tensor) -> Tensor:
    """Return p(t) = e^-(t-1) / S(t) = (e-1) / (e^t - 1) with S(t) = sum of e^-j over j < t.

    Args:
        position: t >= 1, float64 of any shape.

    Returns:
        Layer 1's weight of the start token under W(d) = d, of the same shape.
    """
    return (math.e - 1) / torch.expm1(position)


def _zeros(rows: int, columns: int) -> Tensor:
    return torch.zeros(rows, columns, dtype=torch.float64)


def _embedding(width: int) -> Tensor:
    """Return the (2, width) table of the start token and the others."""
    embedding = _zeros(2, width)
    embedding[:, ONE] = 1.0
    embedding[START, IS_START] = 1.0
    return embedding


def _output_layer(
    width: int, max_length: int, threshold: float, query: Tensor | None = None, key: Tensor | None = None
) -> Layer:
    """Return the layer that writes M a - (1 - H), a the start token's weight; uniform without query and key."""
    value, output = _zeros(width, 2), _zeros(2, width)
    value[IS_START, 0], value[ONE, 1] = max_length, 1 - threshold
    output[:, OUTPUT] = torch.tensor([1.0, -1.0])
    return Layer(
        query=_zeros(width, 1) if query is None else query,
        key=_zeros(width, 1) if key is None else key,
        value=value,
        output=output,
        feed_in=_zeros(width, 0),
        feed_out=_zeros(0, width),
    )


def _position_net(width: int, positions: int) -> tuple[Tensor, Tensor]:
    """Return the feed-forward weights that map p(t) to t, exactly for t = 1 .. positions and linearly between.

    It adds up 1 and, for every k below positions, a ramp relu(u) - relu(u - 1) that rises from 0 at p(k) to 1 at
    p(k + 1). The ramps left of t have u between 1 and e/(e - 1): float64 loses nothing, however steep they are.
    """
    knots = start_weight(torch.arange(1, positions + 1, dtype=torch.float64))
    steepness = 1 / (knots[:-1] - knots[1:])
    feed_in, feed_out = _zeros(width, 2 * positions - 1), _zeros(2 * positions - 1, width)
    ramps, ends = slice(1, positions), slice(positions, None)
    feed_in[ONE, 0] = 1.0
    feed_in[WEIGHT, ramps], feed_in[ONE, ramps] = -steepness, knots[:-1] * steepness
    feed_in[WEIGHT, ends], feed_in[ONE, ends] = -steepness, knots[:-1] * steepness - 1
    feed_out[:positions, POSITION] = 1.0
    feed_out[positions:, POSITION] = -1.0
    return feed_in, feed_out
