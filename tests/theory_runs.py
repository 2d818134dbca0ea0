"""Runs of the theorems' transformers, and what is read from them."""

import math

import torch
from torch import Tensor

from mesa_lm.studies.theory import stack
from mesa_lm.studies.theory.constructions import MAX_POSITION, OUTPUT, POSITION, positional, sequence
from mesa_lm.studies.theory.stack import DistanceMap, Stack


def outputs(construction: Stack, length: int, distance_map: DistanceMap | None) -> Tensor:
    return stack.run_stack(construction, sequence(length), distance_map)[-1][:, OUTPUT]


def positions_read(length: int, distance_map: DistanceMap) -> Tensor:
    return stack.run_stack(positional(2, 0.0), sequence(length), distance_map)[1][:, POSITION]


def tokens(length: int) -> Tensor:
    """t = 1 .. length."""
    return torch.arange(1, length + 1, dtype=torch.float64)


def start_weights(max_length: int, length: int, distance_map: DistanceMap, positions: int = MAX_POSITION) -> Tensor:
    """Layer 2's weight of the start token, from the output."""
    return (outputs(positional(max_length, 0.0, positions), length, distance_map) + 1) / max_length


def first_failure(output: Tensor, max_length: int, threshold: float) -> int | None:
    failed = ((output <= threshold + 1e-11) & (tokens(len(output)) > max_length)).nonzero()
    return int(failed[0]) + 1 if len(failed) else None


def near_sum(near: int) -> float:
    """C = sum of e^-j over j < N."""
    return sum(math.exp(-distance) for distance in range(near))
