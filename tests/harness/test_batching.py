"""Batches: how many rows fit, and padding on either side."""

import pytest
import torch

from mesa_lm.harness.batching import largest_batch, padded


@pytest.mark.parametrize(("fitting", "found", "tried"), [(99, 23, [23]), (6, 5, [23, 11, 5]), (0, 1, [23, 11, 5, 2])])
def test_largest_batch_halves_until_it_fits(fitting, found, tried):
    attempts = []

    def attempt(rows):
        attempts.append(rows)
        if rows > fitting:
            raise RuntimeError("CUDA out of memory.")

    assert largest_batch(attempt, 23) == found
    assert attempts == tried


def test_largest_batch_passes_other_errors_on():
    def attempt(rows):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        largest_batch(attempt, 2)


def test_padding_on_either_side():
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    ids, mask = padded(rows, "left", 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = padded(rows, "right", 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
