"""Rotary angles from the model's own module: at any position, in pieces, and for keys that are moved."""

import pytest
import torch
from zoo import tiny

from mesa_lm.attention.encoding import rotate
from mesa_lm.attention.rotary import Rotary
from mesa_lm.models.rotary_modules import own_rotary

# One for each rope type whose angles do not follow the input's length; YaRN's carry a factor.
FIXED = ("llama", "llama-llama3", "llama-yarn", "llama-linear")


def states(length):
    return torch.randn(1, 2, length, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", FIXED)
def test_moving_a_key_equals_placing_it(variant):
    encoding, key = Rotary(own_rotary(tiny(variant)), torch.float32), states(11)
    old, new = torch.arange(11)[None], torch.arange(11)[None] // 3 + 0.5
    moved = rotate(rotate(key, encoding.angles(old)), encoding.shift(new - old))
    torch.testing.assert_close(moved, rotate(key, encoding.angles(new)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", FIXED)
def test_scores_depend_on_distances_alone(variant):
    encoding, key = Rotary(own_rotary(tiny(variant)), torch.float32), states(11)
    near, far = torch.arange(11)[None], torch.arange(11)[None] + 997
    scores = [
        rotate(key, encoding.angles(at)) @ rotate(key, encoding.angles(at)).transpose(-1, -2) for at in (near, far)
    ]
    torch.testing.assert_close(scores[0], scores[1], atol=5e-3, rtol=0)  # float32 angles of some hundred radians


@pytest.mark.parametrize("variant", ["llama-dynamic", "phi3-longrope"])
def test_frequencies_that_follow_the_length_are_those_of_each_input(variant):
    encoding = Rotary(own_rotary(tiny(variant)), torch.float32)
    assert encoding.follows_length
    short, long = encoding.for_length(11), encoding.for_length(97)
    position = torch.arange(1, 5)[None]
    assert not torch.equal(short.angles(position).cos, long.angles(position).cos)
    assert torch.equal(encoding.for_length(11).angles(position).cos, short.angles(position).cos)
    assert not short.follows_length
