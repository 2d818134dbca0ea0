"""A small causal attention stack in float64: given weights, any map of relative positions, explicit softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DistanceMap = Callable[[Tensor], Tensor]
# Bounds the memory of the scores to this many queries times the sequence length.
BLOCK_LEN = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Weights of one layer: one attention head, then a ReLU feed-forward net, both added to the hidden states.

    There are no biases: a hidden component that is 1 for every token takes their place.

    Attributes:
        query: (width, head_dim).
        key: (width, head_dim).
        value: (width, value_dim).
        output: (value_dim, width).
        feed_in: (width, units); zero units for a layer without feed-forward net.
        feed_out: (units, width).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    feed_in: Tensor
    feed_out: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """An embedding table of (vocabulary, width) and the layers above it."""

    embedding: Tensor
    layers: tuple[Layer, ...]


def run_stack(stack: Stack, tokens: Tensor, distance_map: DistanceMap | None) -> list[Tensor]:
    """Run a stack over one sequence.

    Args:
        stack: The weights, all float64.
        tokens: (len,) token ids.
        distance_map: W, from integer distances to those that the scores q.k - W(t - i) use; None for q.k alone.

    Returns:
        The hidden states (len, width): the embedding, then those after each layer.
    """
    bias = None if distance_map is None else distance_map(torch.arange(len(tokens))).double()
    states = [stack.embedding[tokens]]
    for layer in stack.layers:
        hidden = states[-1]
        hidden = hidden + _attend(hidden @ layer.query, hidden @ layer.key, hidden @ layer.value, bias) @ layer.output
        states.append(hidden + (hidden @ layer.feed_in).relu() @ layer.feed_out)
    return states


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Return the causal attention's outputs (len, value_dim); bias is (len,), by distance."""
    outputs = []
    for start in range(0, len(query), BLOCK_LEN):
        end = min(start + BLOCK_LEN, len(query))
        score = query[start:end] @ key[:end].T
        distance = torch.arange(start, end)[:, None] - torch.arange(end)
        if bias is not None:
            score = score - bias[distance.clamp(min=0)]
        outputs.append(score.masked_fill(distance < 0, -math.inf).softmax(-1) @ value[:end])
    return torch.cat(outputs)
