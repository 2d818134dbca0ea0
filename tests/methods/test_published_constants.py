"""Defaults that follow T are the published constants at the T of the published models."""

import math
from types import SimpleNamespace

import pytest

import mesa_lm


@pytest.mark.parametrize(
    ("name", "length", "published"),
    [
        ("star", 131072, {"block_size": 32768, "anchor_block_size": 32768}),
        ("string", 131072, {"shift": 43253, "local_value": 128, "rope_scale": 0.1 * math.log(2) + 1}),
        ("lampe", 4096, {"window": 512, "initial": 200, "rope_scale": 0.1 * math.log(2) + 1}),
        ("lampe", 8192, {"window": 512, "initial": 200}),
        ("dpe", 8192, {"window": 1024}),
        ("dpe", 131072, {"window": 1024}),
    ],
)
def test_defaults_are_the_published_constants(name, length, published):
    config = SimpleNamespace(model_type="llama", max_position_embeddings=length)
    bound = mesa_lm.make_method(name).bind(config)
    assert {option: getattr(bound, option) for option in published} == published
    if name == "lampe":
        assert bound.mapped_length(10**6) == 1536
